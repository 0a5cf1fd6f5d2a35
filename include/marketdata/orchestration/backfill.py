"""Backfill a DAG and follow it: `python -m marketdata.orchestration.backfill --from 2019-01-02 --to 2019-01-04`.

`airflow backfill create`, then one line per run as its state changes, until all have ended. The running scheduler of
this environment does the work. Exit code 0: every run succeeded, 1: one failed, 64: nothing could be created, 75: time
is up or another backfill of the DAG is running.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock

from marketdata.errors import MarketdataError, TryLaterError, UsageError

ENDED = frozenset({"success", "failed"})
SETTLING = timedelta(seconds=60)
"""Airflow takes a backfill for running up to half a minute after its last run has ended."""

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Run:
    """A run of a backfill; `skipped` says why Airflow made none."""

    day: date
    state: str
    skipped: str = ""

    @property
    def ended(self) -> bool:
        return bool(self.skipped) or self.state in ENDED

    def __str__(self) -> str:
        return f"{self.day}  {f'left as it is: {self.skipped}' if self.skipped else self.state}"


def create(dag_id: str, first: date, last: date, *, reprocess: str, max_active_runs: int) -> int:
    """Create the backfill of the days from first to last, both included; its id.

    Raises:
        UsageError: the DAG is unknown or paused, or there is no day to run.
        TryLaterError: another backfill of the DAG is running.
    """
    from airflow.cli.cli_parser import get_parser
    from airflow.models.backfill import AlreadyRunningBackfill
    from airflow.sdk.exceptions import AirflowException

    before = _latest(dag_id)
    until = min(datetime.combine(last, clock.max, UTC), datetime.now(UTC))
    command = get_parser().parse_args([
        "backfill", "create", "--dag-id", dag_id, "--reprocess-behavior", reprocess,
        "--from-date", datetime.combine(first, clock.min, UTC).isoformat(), "--to-date", until.isoformat(),
        "--max-active-runs", str(max_active_runs),
    ])  # fmt: skip
    give_up = datetime.now(UTC) + SETTLING
    while True:
        try:
            command.func(command)
            break
        except AlreadyRunningBackfill as error:
            running = before is not None and not all(run.ended for run in runs(before))
            if running or datetime.now(UTC) > give_up:
                raise TryLaterError(f"another backfill of {dag_id} is running", "wait for its end") from error
            time.sleep(_POLL_SECONDS)
        except (AirflowException, SystemExit) as error:
            said = str(error) if isinstance(error, AirflowException) else "there is no run to create"
            raise UsageError(f"no backfill of {dag_id} from {first} to {last}: {said}") from error
    created = _latest(dag_id)
    if created is None or created == before:
        raise UsageError(f"no backfill of {dag_id} from {first} to {last} was created")
    return created


def runs(backfill: int) -> list[Run]:
    """The runs of a backfill, in its order."""
    from airflow.models.backfill import BackfillDagRun
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = (
        select(BackfillDagRun.logical_date, BackfillDagRun.exception_reason, DagRun.state)
        .outerjoin(DagRun, DagRun.id == BackfillDagRun.dag_run_id)
        .where(BackfillDagRun.backfill_id == backfill)
        .order_by(BackfillDagRun.sort_ordinal)
    )
    with create_session() as session:
        return [Run(day.date(), str(state or ""), str(reason or "")) for day, reason, state in session.execute(query)]


def follow(backfill: int, limit: timedelta) -> Iterator[Run]:
    """Each run whenever its state has changed, until all have ended.

    Raises:
        TryLaterError: they have not within the limit; they go on.
    """
    deadline = datetime.now(UTC) + limit
    shown: dict[date, Run] = {}
    while True:
        current = runs(backfill)
        for run in current:
            if shown.get(run.day) != run:
                shown[run.day] = run
                yield run
        if all(run.ended for run in current):
            return
        if datetime.now(UTC) > deadline:
            left = sum(not run.ended for run in current)
            raise TryLaterError(f"{left} runs have not ended within {limit}; they go on", "see the Airflow UI")
        time.sleep(_POLL_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m marketdata.orchestration.backfill", description=__doc__)
    parser.add_argument("--dag-id", default="commodity-price-pipeline")
    parser.add_argument("--from", dest="first", type=date.fromisoformat, required=True, help="first day")
    parser.add_argument("--to", dest="last", type=date.fromisoformat, required=True, help="last day, included")
    parser.add_argument("--reprocess", choices=("none", "failed", "completed"), default="none")
    parser.add_argument("--max-active-runs", type=int, default=1)
    parser.add_argument("--limit-seconds", type=float, default=3600.0, help="how long to wait for the runs")
    options = parser.parse_args(arguments)
    try:
        _require_unpaused(options.dag_id)
        backfill = create(
            options.dag_id,
            options.first,
            options.last,
            reprocess=options.reprocess,
            max_active_runs=options.max_active_runs,
        )
        last_states = {}
        for run in follow(backfill, timedelta(seconds=options.limit_seconds)):
            last_states[run.day] = run.state
            sys.stdout.write(f"{run}\n")
            sys.stdout.flush()
    except MarketdataError as error:
        logging.getLogger(__name__).error("%s", error)
        return error.exit_code
    return 1 if "failed" in last_states.values() else 0


def _latest(dag_id: str) -> int | None:
    from airflow.models.backfill import Backfill
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    with create_session() as session:
        return session.scalar(select(func.max(Backfill.id)).where(Backfill.dag_id == dag_id))


def _require_unpaused(dag_id: str) -> None:
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    with create_session() as session:
        dag = session.get(DagModel, dag_id)
        if dag is None:
            raise UsageError(f"Airflow does not know the DAG {dag_id}", "start it: make up")
        if dag.is_paused:
            raise UsageError(f"{dag_id} is paused; its runs would not start", f"airflow dags unpause {dag_id}")


if __name__ == "__main__":
    sys.exit(main())
