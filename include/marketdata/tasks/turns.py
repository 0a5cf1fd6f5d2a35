"""One at a time: what must not happen twice at once on one laptop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout
from rich.console import Console

from marketdata.errors import TryLaterError
from marketdata.settings import Settings

LONGEST_SECONDS = 3700
"""A little more than a run may take."""


@contextmanager
def turn(settings: Settings, screen: Console) -> Iterator[None]:
    """Wait until no `marketdata run` is under way here: a scheduler would take up its run as its own.

    Raises:
        TryLaterError: the other one takes longer than a run may.
    """
    settings.marketdata_home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.marketdata_home / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        screen.print("another run is under way here; waiting for it to end")
        try:
            lock.acquire(timeout=LONGEST_SECONDS)
        except Timeout:
            raise TryLaterError(
                "another run is still under way here; nothing was started", "marketdata runs list"
            ) from None
    try:
        yield
    finally:
        lock.release()
