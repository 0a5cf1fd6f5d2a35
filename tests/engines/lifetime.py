"""Programs that end with the thread that started them, whatever ends it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def ending_with_us(command: Sequence[str]) -> list[str]:
    """The command as one that the kernel kills when the thread that starts it ends; only Linux can.

    Not by `preexec_fn`: that is Python in the copy of a process whose threads are gone. Two of some fifty restarts of a
    broker crashed in it.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else [*command]
