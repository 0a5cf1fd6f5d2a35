"""Which days a run is about: one answer for scheduled, backfilled, manual and date-less runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol

from airflow.sdk.exceptions import AirflowFailException

LOOKBACK_DAYS = 30
"""How far back a scheduled run asks for revisions."""


class DagRun(Protocol):
    """What is needed of Airflow's run."""

    @property
    def run_type(self) -> str: ...
    @property
    def run_after(self) -> datetime: ...
    @property
    def data_interval_start(self) -> datetime | None: ...
    @property
    def data_interval_end(self) -> datetime | None: ...


@dataclass(frozen=True)
class RunInterval:
    """Days [start, end) of a run, and how many days before them to ask for revisions."""

    start: date
    end: date
    lookback_days: int


def run_interval(dag_run: DagRun, params: Mapping[str, Any]) -> RunInterval:
    """The days of a run; a Jinja macro of the DAGs.

    The run's data interval, in whole UTC days; a run without one is about the last day that had ended when it was due.
    The parameters ``start``, ``end`` (the day after the last one) and ``lookback_days`` win where they are given.

    Raises:
        AirflowFailException: the parameters name no day; another try would fail again.
    """
    if dag_run.data_interval_start and dag_run.data_interval_end:
        start, end = _day(dag_run.data_interval_start), _day(dag_run.data_interval_end)
    else:
        end = _day(dag_run.run_after)
        start = end - timedelta(days=1)
    end = max(end, start + timedelta(days=1))
    start = date.fromisoformat(params["start"]) if params.get("start") else start
    end = date.fromisoformat(params["end"]) if params.get("end") else end
    if end <= start:
        raise AirflowFailException(
            f"the run's interval [{start}, {end}) holds no day; nothing was read (fix: start a new run whose parameter "
            "`end` is the day after the last one)"
        )
    lookback = params.get("lookback_days")
    if lookback is None:
        lookback = LOOKBACK_DAYS if dag_run.run_type == "scheduled" else 0
    return RunInterval(start, end, int(lookback))


def _day(moment: datetime) -> date:
    return moment.astimezone(UTC).date()
