"""Run a DAG once, in this process: `python -m marketdata.orchestration.run --conf '{"start": "2019-01-01"}'`.

Airflow's settings and its migrated database come from the environment. Nothing but logs is written; the exit code is 0
if the run succeeded, 1 if it failed, 128 and the signal's number if it was told to end. Tasks run one after the other.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marketdata.errors import UsageError
from marketdata.orchestration import scheduler
from marketdata.settings import CHECKOUT

if TYPE_CHECKING:
    from airflow.sdk import DAG

RETRY_DELAY = timedelta(seconds=2)
"""Of a run that somebody is waiting for; a command has been patient with its engines and sources already."""

_POLL_SECONDS = 0.5
_ENDING = frozenset({signal.SIGINT, signal.SIGTERM})

log = logging.getLogger(__name__)


def dag_file(dag_id: str) -> Path:
    """The file of a DAG: its id with underscores."""
    return CHECKOUT / "dags" / f"{dag_id.replace('-', '_')}.py"


def load_dag(dag_id: str) -> DAG:
    """Parse one DAG's file and no other.

    Raises:
        UsageError: there is no such file, it does not parse, or it holds no DAG of that id.
    """
    from airflow.dag_processing.dagbag import DagBag

    file = dag_file(dag_id)
    if not file.exists():
        raise UsageError(f"{file} does not exist", "a DAG's file is named after its id")
    bag = DagBag(dag_folder=file)
    if bag.import_errors:
        raise UsageError(f"{file} does not parse: {next(iter(bag.import_errors.values())).strip().splitlines()[-1]}")
    if dag_id not in bag.dags:
        raise UsageError(f"{file} holds no DAG {dag_id}")
    return bag.dags[dag_id]


def run(dag_id: str, conf: dict[str, Any], at: datetime) -> bool:
    """Run a DAG; True if the run succeeded.

    A scheduler that works on the same metadata would take up a run of ours as its own: where there is one, it gets the
    run to do, and this process waits; if it dies meanwhile, the run is done here from its beginning.

    Args:
        at: when it is due, aware; its run id is ``manual__`` and this moment. It is the logical date too: without one
            Airflow would clear every earlier run of the DAG.

    Raises:
        UsageError: there is no such DAG.
    """
    if scheduler.works_on(dag_id) and (state := _by_the_scheduler(dag_id, conf, at)):
        return state == "success"
    dag = load_dag(dag_id)
    dag.deadline = None  # a run without a scheduler has nobody to miss it, and Airflow 3.3.2 fails on it here
    for task in dag.tasks:
        task.retry_delay = RETRY_DELAY
        task.retry_exponential_backoff = 0
    finished = dag.test(logical_date=at, run_after=at, run_conf=conf)
    return str(finished.state) == "success"


def _by_the_scheduler(dag_id: str, conf: dict[str, Any], at: datetime) -> str:
    run_id = _run_id(at)
    scheduler.trigger(dag_id, run_id, at, conf)
    log.info("a scheduler is running: it does %s", run_id)
    state = "queued"
    while state not in ("success", "failed"):
        time.sleep(_POLL_SECONDS)
        before, state = state, scheduler.state_of(dag_id, run_id)
        if state != before:
            log.info("%s is %s", run_id, state)
        elif not scheduler.works_on(dag_id):
            log.warning("the scheduler works no more: %s is done here", run_id)
            return ""
    return state


def _run_id(at: datetime) -> str:
    return f"manual__{at.isoformat()}"


def _end_when_told(dag_id: str, at: datetime) -> None:
    """On SIGINT and SIGTERM, end the process and its run at once; the command of the task ends with the process.

    The task runner takes both for the failure of a task and goes on with the next try. They are therefore blocked, for
    the threads to come too, and waited for by one thread.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

    def wait() -> None:
        number = signal.sigwait(_ENDING)
        try:
            from marketdata.orchestration import cluster

            scheduler.mark_failed(dag_id, _run_id(at))
            # What runs here ends with this process.
            cluster.kill_all()
            log.error("told to end: %s is marked as failed, nothing of it goes on", _run_id(at))
        finally:
            os._exit(128 + number)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m marketdata.orchestration.run", description=__doc__)
    parser.add_argument("--dag-id", default="commodity-price-pipeline")
    parser.add_argument("--conf", type=json.loads, default={}, help="the run's parameters, as JSON")
    parser.add_argument("--at", type=_moment, default=datetime.now(UTC), help="when the run is due; default: now")
    options = parser.parse_args(arguments)
    try:
        _end_when_told(options.dag_id, options.at)
        return 0 if run(options.dag_id, options.conf, options.at) else 1
    except UsageError as error:
        log.error("%s", error)
        return error.exit_code


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


if __name__ == "__main__":
    sys.exit(main())
