"""A disk so small that it can be filled to the last byte: what is written to it then fails for real (ENOSPC)."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDS = "needs root on Linux: a small disk is a file system in memory, mounted for the test"


def available() -> bool:
    """Whether this process may mount."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Disk:
    folder: Path

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.folder / "filler").open("ab", buffering=0) as filler:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        filler.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Disk]:
    """A disk at this folder, which is made; gone with all that lies on it when the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m,mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "marketdata", str(folder)], check=True)
    try:
        yield Disk(folder)
    finally:
        # Lazily: whoever still has a file open keeps it, and nobody finds it any more.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
