"""Which days a run is about, for every way a run comes to be."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from marketdata.orchestration.interval import RunInterval, run_interval


@dataclass(frozen=True)
class Run:
    run_type: str
    run_after: datetime
    data_interval_start: datetime | None = None
    data_interval_end: datetime | None = None


def at(day: int, hour: int = 2) -> datetime:
    return datetime(2019, 1, day, hour, tzinfo=UTC)


SCHEDULED = Run("scheduled", at(3), at(2), at(3))
BACKFILL = Run("backfill", at(3), at(2), at(3))
MANUAL = Run("manual", at(3, 9), at(2), at(3))
DATELESS = Run("manual", at(3, 9))


@pytest.mark.parametrize(
    ("run", "params", "expected"),
    [
        (SCHEDULED, {}, RunInterval(date(2019, 1, 2), date(2019, 1, 3), 30)),
        (BACKFILL, {}, RunInterval(date(2019, 1, 2), date(2019, 1, 3), 0)),
        (MANUAL, {}, RunInterval(date(2019, 1, 2), date(2019, 1, 3), 0)),
        (DATELESS, {}, RunInterval(date(2019, 1, 2), date(2019, 1, 3), 0)),
        (SCHEDULED, {"lookback_days": 0}, RunInterval(date(2019, 1, 2), date(2019, 1, 3), 0)),
        (BACKFILL, {"lookback_days": 7}, RunInterval(date(2019, 1, 2), date(2019, 1, 3), 7)),
        (MANUAL, {"start": "1986-01-02"}, RunInterval(date(1986, 1, 2), date(2019, 1, 3), 0)),
        (DATELESS, {"start": "1986-01-02", "end": "1986-01-04"}, RunInterval(date(1986, 1, 2), date(1986, 1, 4), 0)),
        (DATELESS, {"start": None, "lookback_days": None}, RunInterval(date(2019, 1, 2), date(2019, 1, 3), 0)),
    ],
)  # fmt: skip
def test_days(run: Run, params: dict[str, Any], expected: RunInterval) -> None:
    assert run_interval(run, params) == expected


def test_an_interval_of_zero_length_is_its_day() -> None:
    assert run_interval(Run("manual", at(3), at(2), at(2)), {}) == RunInterval(date(2019, 1, 2), date(2019, 1, 3), 0)


def test_days_are_utc_days() -> None:
    from datetime import timezone

    tokyo = timezone(timedelta(hours=9))
    run = Run("manual", at(3), datetime(2019, 1, 2, 5, tzinfo=tokyo), datetime(2019, 1, 3, 5, tzinfo=tokyo))
    assert run_interval(run, {}).start == date(2019, 1, 1)


@pytest.mark.parametrize(
    "params", [{"end": "2019-01-02"}, {"start": "2019-01-05"}, {"start": "2019-02-01", "end": "2019-01-01"}]
)
def test_an_interval_without_a_day_fails_and_is_not_tried_again(params: dict[str, str]) -> None:
    with pytest.raises(AirflowFailException, match="holds no day"):
        run_interval(SCHEDULED, params)
