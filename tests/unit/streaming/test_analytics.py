"""When a partition's quiet windows are due: by the log's clock, which no machine's own clock can hold back.

And who waits for whom: no partition for another one's sink, nobody who is leaving for PostgreSQL.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from marketdata.errors import UnavailableError
from marketdata.settings import Settings
from marketdata.streaming import analytics
from marketdata.streaming.analytics import Partition, TopicSinks
from marketdata.streaming.window_store import Feed, WindowStore
from marketdata.streaming.windows import Book, Windows

NOW = datetime.now(UTC)


def clock_of(*, appended: datetime, read_seconds_ago: float, at_end: bool) -> datetime:
    partition = Partition(
        Feed(1, 0, "topic", 1, 0, 0, NOW), Windows(Book()), 0, appended=int(appended.timestamp() * 1e6),
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


def test_a_partition_that_cannot_be_told_keeps_no_other_one_waiting(
    settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sink:
        def __init__(self, _settings: Settings, _topic: str, feed: Feed) -> None:
            self._partition = feed.partition

        def deliver(self, _postgres: Any) -> int:
            if self._partition == 0:
                raise ValueError("year -1 is out of range")
            delivered.append(self._partition)
            return 1

    delivered: list[int] = []
    monkeypatch.setattr(analytics, "TopicSink", Sink)
    monkeypatch.setattr(analytics, "connected", lambda _settings: contextlib.nullcontext())
    feeds = [Feed(number, number, "topic", 1, 0, 0, NOW) for number in range(3)]
    with pytest.raises(ValueError, match="out of range"):
        TopicSinks(settings_for(), lambda: feeds).deliver()
    assert delivered == [1, 2]


def test_who_is_told_to_stop_does_not_wait_for_postgres(settings_for: Callable[..., Settings]) -> None:
    away = settings_for(postgres_dsn="postgresql://user:password@127.0.0.1:1/none")
    store = WindowStore(away, "topic", Book())
    store.stop.set()
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        store.claim(0, "topic", "one")
    assert time.monotonic() - began < 20
