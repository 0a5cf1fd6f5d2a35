"""The tests' only way to wait: for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(what: str, condition: Callable[[], Any], seconds: float = 60.0, *, but: Callable[[], object] = str) -> Any:
    """Wait for a condition and return what it gives.

    Args:
        but: what there was instead, for the error.

    Raises:
        AssertionError: it was not met in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what} {but()}".rstrip())
        time.sleep(0.05)
    return found
