"""The scanners, in an environment of their own: their dependencies are not ours."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).with_name("requirements.lock")
HOME = ROOT / "build" / "scanners"

# A scanner that would fetch rules, ask for a newer version or tell somebody of our findings reaches nothing.
NOWHERE = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
OFFLINE = NOWHERE | {name.upper(): value for name, value in NOWHERE.items()}
SECONDS = 300


@cache
def environment() -> Path:
    """The folder of the scanners' programs, installed anew when the lock has changed."""
    HOME.parent.mkdir(parents=True, exist_ok=True)
    stamp = HOME / "lock.sha256"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    with FileLock(HOME.with_suffix(".lock")):
        if not stamp.exists() or stamp.read_text() != wanted:
            uv = str(Path(sys.executable).with_name("uv"))
            shutil.rmtree(HOME, ignore_errors=True)
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(HOME)], check=True)
            python = str(HOME / "bin" / "python")
            sync = ["pip", "sync", "--quiet", "--compile-bytecode", "--python", python, "--require-hashes", str(LOCK)]
            subprocess.run([uv, *sync], check=True)
            stamp.write_text(wanted)
    return HOME / "bin"


def run(program: str | Path, *arguments: str | Path, exits: Sequence[int], cwd: Path = ROOT, **variables: str) -> str:
    """Standard output of a scanner; `exits` are the codes that mean it has scanned."""
    if isinstance(program, str):
        program = environment() / program
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        env={**kept, **OFFLINE, "PATH": f"{environment()}{os.pathsep}{kept.get('PATH', os.defpath)}", **variables},
        cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode in exits, (
        f"{program} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout
