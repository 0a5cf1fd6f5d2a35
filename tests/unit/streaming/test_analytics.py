"""When a partition's quiet windows are due: by the log's clock, which no machine's own clock can hold back."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from marketdata.streaming.analytics import Partition
from marketdata.streaming.window_store import Feed
from marketdata.streaming.windows import Book, Windows

NOW = datetime.now(UTC)


def clock_of(*, appended: datetime, read_seconds_ago: float, at_end: bool) -> datetime:
    partition = Partition(
        Feed(1, 0, "topic", 1, 0, 0), Windows(Book()), 0, appended=int(appended.timestamp() * 1e6),
        read_at=time.monotonic() - read_seconds_ago, at_end=at_end,
    )  # fmt: skip
    return datetime.fromtimestamp(partition.clock() / 1e6, UTC)


def test_before_the_end_it_is_when_the_last_record_was_appended() -> None:
    assert clock_of(appended=NOW - timedelta(hours=3), read_seconds_ago=9, at_end=False) <= NOW - timedelta(hours=3)


def test_at_the_end_it_is_now() -> None:
    assert clock_of(appended=NOW - timedelta(hours=3), read_seconds_ago=9, at_end=True) >= NOW


def test_where_this_machine_is_an_hour_behind_the_brokers_it_goes_on_all_the_same() -> None:
    appended = NOW + timedelta(hours=1)
    assert clock_of(appended=appended, read_seconds_ago=9, at_end=True) >= appended + timedelta(seconds=8)
