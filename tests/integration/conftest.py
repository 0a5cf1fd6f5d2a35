from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.laptop import Laptop


@pytest.fixture
def laptop_at() -> Iterator[Callable[..., Laptop]]:
    """Laptops with engines of their own, stopped at the end."""
    started: list[Laptop] = []

    def at(home: Path, **variables: str) -> Laptop:
        started.append(Laptop(home, variables))
        return started[-1]

    yield at
    for laptop in started:
        laptop.marketdata("engines", "down")


@pytest.fixture(scope="module")
def laptop(new_home: Callable[[str], Path]) -> Iterator[Laptop]:
    """One laptop for the tests of a module."""
    machine = Laptop(new_home("laptop"))
    yield machine
    machine.marketdata("engines", "down")
