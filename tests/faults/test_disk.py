"""The lake's disk is full while batches are extracted, judged, transformed and published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import UnavailableError
from marketdata.settings import Settings
from marketdata.streaming.publish import publish
from tests.contract.prices import batch_of, price
from tests.contract.topic import held, identities, own_topic
from tests.faults import disks
from tests.faults.disks import Disk, small_disk
from tests.faults.test_crash_points import Run, run

__all__ = ["run"]

pytestmark = pytest.mark.skipif(not disks.available(), reason=disks.NEEDS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "lake", 16) if disks.available() else nullcontext(Disk(tmp_path)) as disk:
        yield disk


def files(disk: Disk) -> list[Path]:
    return sorted(path for path in disk.folder.rglob("*") if path.is_file() and path.name != "filler")


@pytest.mark.parametrize("step", ["extract", "validate", "transform"])
def test_a_step_says_so_leaves_nothing_half_written_and_goes_on_when_there_is_space(
    step: str, disk: Disk, run: Run
) -> None:
    steps = ["extract", "validate", "transform"]
    for before in steps[: steps.index(step)]:
        run.step(before)
    there = files(disk)
    disk.fill()
    for _ in range(2):
        with pytest.raises(UnavailableError, match="No space left on device"):
            run.step(step)
    assert files(disk) == there
    disk.free()
    for after in steps[steps.index(step) :]:
        run.step(after)
    run.step("publish")
    assert len(held(run.settings)) == 29


def test_a_publish_says_so_nothing_becomes_visible_and_the_next_one_publishes_once(
    disk: Disk, embedded: Settings, settings_for: Callable[..., Settings]
) -> None:
    settings = own_topic(embedded, settings_for)
    rows = [price(f"2024-01-{day:02}", f"{day}.25") for day in range(1, 29)]
    batch = batch_of(settings, rows)
    there = files(disk)
    disk.fill()
    for _ in range(2):
        with pytest.raises(UnavailableError, match="No space left on device"):
            publish(COMMODITY_PRICES, batch, settings)
    assert held(settings) == []
    assert files(disk) == there
    disk.free()
    assert publish(COMMODITY_PRICES, batch, settings).published == 28
    assert publish(COMMODITY_PRICES, batch, settings).repeated
    assert identities(held(settings)) == {(row["record_id"], row["content_hash"]): 1 for row in rows}
