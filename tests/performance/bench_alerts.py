"""How soon a failed run is told in Slack: every way to fail, many times, with real processes killed.

``python -m tests.performance.bench_alerts`` starts a PostgreSQL and an Airflow on it; the ways to fail, and the server
that stands in for Slack, are those of ``tests/faults/test_failure_matrix.py``. The ways are tried at the same time, and
each again and again, but for the last: there the scheduler is killed after its runs have failed and before anybody is
told, because Slack does not answer.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.engines.installation import installation
from tests.engines.slack import slack_server
from tests.faults.test_failure_matrix import DAGS, Matrix
from tests.performance.bench_plugins import postgres
from tests.waiting import until

RUNS = 20
LIMIT_SECONDS = 60
SCHEDULERS_KILLED = 2
SCHEDULER_KILLED = "Slack down, then scheduler killed"

# A supervisor's death is noticed sooner than in the tests: what is measured begins with the end of the run.
_QUICKER = {"AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "5"}


def run() -> dict[str, Any]:
    """Seconds from a run's end to its message: p50 and max of each way to fail, and whether each was told once."""
    with postgres() as settings, slack_server() as slack, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        extra = {
            **_QUICKER,
            "FAILURES_FOLDER": name,
            "ENVIRONMENT": "bench",
            "AIRFLOW_CONN_SLACK_DEFAULT": json.dumps(slack.bot),
        }
        with installation(settings, DAGS, extra, folder / "logs") as airflow:
            until("Airflow knows the DAGs", lambda: airflow.ready({*_WAYS, "outage", "last"}), 120)
            matrix = Matrix(airflow, slack, folder, settings.require("postgres_dsn"))
            with ThreadPoolExecutor(len(_WAYS)) as threads:
                rows = {way: threads.submit(_repeat, matrix, way, act) for way, act in _WAYS.items()}
            seconds = {way: row.result() for way, row in rows.items()}
            seconds[SCHEDULER_KILLED] = _without_scheduler(matrix)
            # Messages are posted in order: whatever was to be told a second time has been told before this one.
            matrix.start("last")
            matrix.told("last")
            assert slack.refused == []
            return {way: _summary(row, matrix) for way, row in seconds.items()}


def _repeat(matrix: Matrix, way: str, act: Callable[[Matrix], None]) -> dict[tuple[str, str], float]:
    """Fail so often, one run after the other: DAG and run → seconds from its end to its message."""
    seconds: dict[tuple[str, str], float] = {}
    for _ in range(RUNS):
        (matrix.folder / f"{way}.pids").unlink(missing_ok=True)
        seen = len(matrix.slack.posted)
        matrix.start(way)
        act(matrix)
        run_id = matrix.runs[way]
        seconds[way, run_id] = _told(matrix, way, run_id, seen)
    return seconds


def _told(matrix: Matrix, dag_id: str, run_id: str, seen: int) -> float:
    """Wait for the message first: many ask at once, and the stand-in is cheaper to ask than Airflow."""

    def message() -> float | None:
        told = (post.at for post in matrix.slack.posted[seen:] if run_id in json.dumps(post.payload))
        return next(told, None)

    at = until(f"{dag_id} is told", message, 180)
    end: str = until(f"{dag_id} has ended", lambda: matrix.airflow.run(dag_id, run_id)["end_date"])
    return float(at) - datetime.fromisoformat(end).timestamp()


def _without_scheduler(matrix: Matrix) -> dict[tuple[str, str], float]:
    """Runs fail, Slack does not answer, the scheduler is killed; Slack answers again, and another scheduler starts."""
    seconds: dict[tuple[str, str], float] = {}
    (matrix.folder / "outage.go").touch()
    waiting = "SELECT count(*) FROM marketdata.notices WHERE run_id = ANY(%s) AND sent_at IS NULL"
    for _ in range(SCHEDULERS_KILLED):
        matrix.slack.down = True
        seen = len(matrix.slack.posted)
        ids = [matrix.airflow.trigger("outage") for _ in range(RUNS // SCHEDULERS_KILLED)]
        until("all have failed", lambda ids=ids: matrix.rows(waiting, ids) == [(len(ids),)], 120)
        matrix.airflow.kill("scheduler")
        matrix.slack.down = False
        matrix.airflow.start_scheduler()
        seconds |= {("outage", run_id): _told(matrix, "outage", run_id, seen) for run_id in ids}
    return seconds


def _summary(seconds: dict[tuple[str, str], float], matrix: Matrix) -> dict[str, Any]:
    times = sorted(seconds.values())
    messages = [len(matrix.slack.about(f"{dag_id} failed in", run_id)) for dag_id, run_id in seconds]
    return {
        "runs": len(times),
        "p50": round(statistics.median(times), 2),
        "max": round(times[-1], 2),
        "each_told_once": set(messages) == {1},
        "seconds": [round(one, 2) for one in times],
    }


def _runner_is_sent(number: signal.Signals, way: str) -> Callable[[Matrix], None]:
    return lambda matrix: os.kill(matrix.pids(way)[0], number)


def _supervisor_is_killed(matrix: Matrix) -> None:
    runner, supervisor = matrix.pids("supervisor_killed")
    os.kill(supervisor, signal.SIGKILL)
    os.kill(runner, signal.SIGKILL)


def _task_is_marked(matrix: Matrix) -> None:
    matrix.pids("task_marked")
    task = f"dags/task_marked/dagRuns/{matrix.runs['task_marked']}/taskInstances/fails"
    matrix.airflow.call("PATCH", task, {"new_state": "failed"})


def _run_is_marked(matrix: Matrix) -> None:
    matrix.pids("run_marked")
    matrix.airflow.call("PATCH", f"dags/run_marked/dagRuns/{matrix.runs['run_marked']}", {"state": "failed"})


_WAYS: dict[str, Callable[[Matrix], None]] = {
    "raises": lambda matrix: None,
    "sigterm": _runner_is_sent(signal.SIGTERM, "sigterm"),
    "runner_killed": _runner_is_sent(signal.SIGKILL, "runner_killed"),
    "supervisor_killed": _supervisor_is_killed,
    "task_marked": _task_is_marked,
    "run_marked": _run_is_marked,
}
"""DAG → what is done to its run, once its task waits."""


def main() -> None:
    began = time.monotonic()
    print(json.dumps({**run(), "whole bench, s": round(time.monotonic() - began)}, indent=1))


if __name__ == "__main__":
    main()
