"""Processes of the platform that a drill starts, and that end with it, also where it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr

from marketdata.settings import Settings

_LAUNCH = f"""
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, {signal.SIGKILL:d})  # PR_SET_PDEATHSIG: a drill that is killed leaves nobody behind
os.execv(sys.argv[1], sys.argv[1:])
"""


def start(own: Settings, module: str, words: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Run a Python module with these settings; what it says goes to the end of `log`."""
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, sys.executable, "-m", module, *words],
            env={**os.environ, **environment(own), **variables},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )


def environment(settings: Settings) -> dict[str, str]:
    """These settings as environment variables."""
    values = {name.upper(): value for name, value in settings if value is not None}
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else str(value) for name, value in values.items()
    }


def last_words(log: Path) -> str:
    """The last error it told, after a colon; empty where it told none."""
    said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return "".join(said[-1:]).removeprefix("error")[:500]
