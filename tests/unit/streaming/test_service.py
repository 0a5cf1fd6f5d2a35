"""What a service does beside its main loop: sinks that fail, histograms filled a batch at a time, notices of moves."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import numpy as np
import pytest

from marketdata.streaming.price_moves import notice_of
from marketdata.streaming.service import E2E_BUCKETS, Courier, Measures
from marketdata.streaming.window_store import Change
from marketdata.streaming.windows import Figures


def measures() -> Measures:
    return Measures("job", "streaming", "group", "topic")


def value(of: Measures, name: str, **labels: str) -> float | None:
    return of.registry.get_sample_value(name, labels)


def test_a_sink_that_fails_is_tried_again_and_counted() -> None:
    seen = measures()
    done = threading.Event()
    tries = []

    def work() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("the sink is down")
        done.set()
        return 1

    courier = Courier("lake", 0.01, work, seen)
    assert done.wait(30)
    courier.stop(30)
    assert value(seen, "failed_batches_total", job_name="job") == 1


def test_stopping_carries_what_is_there_a_last_time_and_does_not_wait_for_a_sink_that_hangs() -> None:
    calls = []
    idle = Courier("topics", 3600, lambda: calls.append(1) or 1, measures())
    idle.stop(30)
    assert len(calls) in (1, 2)
    hangs = threading.Event()
    started = threading.Event()

    def hang() -> int:
        started.set()
        hangs.wait(60)
        return 0

    stuck = Courier("topics", 3600, hang, measures())
    assert started.wait(30)
    stuck.stop(0.05)
    hangs.set()


def test_latencies_fall_into_the_buckets_up_to_half_an_hour() -> None:
    seen = measures()
    seen.latencies(np.array([0.05, 0.1, 0.2, 700.0, 5000.0]))
    labels = {"job_name": "job", "layer": "streaming"}
    counts = [value(seen, "e2e_latency_seconds_bucket", **labels, le=str(bound)) for bound in E2E_BUCKETS]
    assert counts == [2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4]
    assert value(seen, "e2e_latency_seconds_bucket", **labels, le="+Inf") == 5
    assert value(seen, "e2e_latency_seconds_count", **labels) == 5
    assert E2E_BUCKETS[-3:] == (600.0, 900.0, 1800.0)


def test_a_partition_that_is_taken_away_leaves_no_lag_behind() -> None:
    seen = measures()
    labels = {"group": "group", "topic": "topic", "partition": "1"}
    seen.lag(1, 5, 2.5)
    assert value(seen, "kafka_consumer_lag_seconds", **labels) == 2.5
    seen.forget(1)
    assert value(seen, "kafka_consumer_lag_records", **labels) is None


def change(first: int, last: int, before: int | None) -> Change:
    of = Figures(0, 2, 0, first, last, min(first, last), max(first, last), first + last, (first + last) // 2, 0.0)
    key = ("default", "Oil", "eia", "<!channel> WTI", "daily")
    return Change(key, ("USD", "bbl"), datetime(2024, 1, 2, tzinfo=UTC), of, before)


@pytest.mark.parametrize(
    ("first", "last", "before", "says"),
    [
        (100_000_000, 105_000_000, None, "+5.00 % within one minute, to 105 USD"),
        (100_000_000, 104_999_999, None, None),
        (100_000_000, 101_000_000, 120_000_000, "-15.83 % since the price before, to 101 USD"),
        (100_000_000, 100_000_000, 0, None),
        (-100_000_000, 100_000_000, -5, None),
    ],
)
def test_a_move_is_told_from_its_threshold_on(first: int, last: int, before: int | None, says: str | None) -> None:
    notice = notice_of(change(first, last, before), 5.0, "production")
    if says is None:
        assert notice is None
    else:
        assert notice is not None
        assert says in notice.message.text
        assert "<!channel>" not in str(notice.message)
        assert notice.run_id == "default/Oil/eia/<!channel> WTI/daily/2024-01-02T00:00:00+00:00"
