"""Every way a run can fail, with real processes killed: each failure told once, none false, none twice."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.engines.installation import FINAL, Installation, installation
from tests.engines.slack import Posted, Slack, slack_server
from tests.waiting import until

pytest.importorskip("airflow.providers.slack", reason="the Slack provider is not installed")

DAGS = Path(__file__).parent / "dags"
HELD = ("sigterm", "runner_killed", "supervisor_killed", "task_marked", "run_marked", "scheduler_killed")


@pytest.fixture(scope="module")
def postgres(new_home: Callable[[str], Path]) -> Iterator[Any]:
    from marketdata import engines
    from marketdata.settings import ENDPOINTS_VARIABLE, Settings

    home = new_home("matrix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARKETDATA_HOME", str(home))
        patch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
        engines.up(Settings(), ["postgres"])
        try:
            yield Settings()
        finally:
            engines.down(Settings())


class Matrix:
    """What the rows of the matrix share."""

    def __init__(self, airflow: Installation, slack: Slack, folder: Path, dsn: str) -> None:
        self.airflow = airflow
        self.slack = slack
        self.folder = folder
        self.dsn = dsn
        self.runs: dict[str, str] = {}

    def start(self, *dag_ids: str) -> None:
        for dag_id in dag_ids:
            self.runs[dag_id] = self.airflow.trigger(dag_id)

    def pids(self, dag_id: str) -> tuple[int, int]:
        """Runner and supervisor of the try that waits."""
        file = self.folder / f"{dag_id}.pids"
        text = until(f"{dag_id} runs", lambda: file.exists() and file.read_text(), 180)
        runner, supervisor = text.split()
        return int(runner), int(supervisor)

    def ended(self, dag_id: str, seconds: float = 300) -> dict[str, Any]:
        def final() -> dict[str, Any] | None:
            run = self.airflow.run(dag_id, self.runs[dag_id])
            return run if run["state"] in FINAL else None

        found: dict[str, Any] = until(f"{dag_id} ends", final, seconds)
        return found

    def failures(self, dag_id: str) -> list[Posted]:
        return self.slack.about(f"{dag_id} failed in", self.runs[dag_id])

    def told(self, dag_id: str) -> tuple[Posted, float]:
        """The message of a run's failure, and how many seconds after the run's end it was taken."""
        end = datetime.fromisoformat(self.ended(dag_id)["end_date"]).timestamp()
        post = until(f"{dag_id} is told", lambda: self.failures(dag_id), 180)[0]
        return post, post.at - end

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query, values)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def matrix(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    folder = tmp_path_factory.mktemp("failures")
    with slack_server() as slack:
        extra = {
            "FAILURES_FOLDER": str(folder),
            # Nine tasks start at once: one that comes late is not to be taken for dead.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
            "ENVIRONMENT": "faults",
            "AIRFLOW_CONN_SLACK_DEFAULT": json.dumps(slack.bot),
        }
        with installation(postgres, DAGS, extra, folder / "logs") as airflow:
            wanted = {"raises", "clears", "missed_deadline", "last", "outage", *HELD}
            until("Airflow knows the DAGs", lambda: airflow.ready(wanted), 300)
            yield Matrix(airflow, slack, folder, postgres.require("postgres_dsn"))


def test_every_failure_is_told_once(matrix: Matrix, capsys: pytest.CaptureFixture[str]) -> None:
    airflow, slack = matrix.airflow, matrix.slack
    seconds: dict[str, float] = {}
    matrix.start("raises", "clears", "missed_deadline", *HELD)

    runner, _ = matrix.pids("sigterm")
    os.kill(runner, signal.SIGTERM)
    runner, _ = matrix.pids("runner_killed")
    os.kill(runner, signal.SIGKILL)
    runner, supervisor = matrix.pids("supervisor_killed")
    os.kill(supervisor, signal.SIGKILL)
    os.kill(runner, signal.SIGKILL)
    matrix.pids("task_marked")
    task = f"dags/task_marked/dagRuns/{matrix.runs['task_marked']}/taskInstances/fails"
    airflow.call("PATCH", task, {"new_state": "failed"})
    matrix.pids("run_marked")
    airflow.call("PATCH", f"dags/run_marked/dagRuns/{matrix.runs['run_marked']}", {"state": "failed"})

    rows = ("raises", "clears", "sigterm", "runner_killed", "supervisor_killed", "task_marked", "run_marked")
    posts = {}
    for row in rows:
        posts[row], seconds[row] = matrix.told(row)

    # A cleared run that succeeds has recovered, and says so where its failure was told.
    (matrix.folder / "clears.go").touch()
    airflow.call("POST", "dags/clears/clearTaskInstances", {
        "dag_run_id": matrix.runs["clears"], "dry_run": False, "only_failed": True, "reset_dag_runs": True,
    })  # fmt: skip
    recovery = until("the recovery is told", lambda: slack.about("clears recovered"))[0]
    assert recovery.thread_ts == posts["clears"].ts

    until("the deadline is told", lambda: slack.about("missed_deadline", "missed its deadline"))
    (matrix.folder / "missed_deadline.go").touch()
    assert matrix.ended("missed_deadline")["state"] == "success"

    # The scheduler dies under a running task, and while Slack does not answer. The next one finds both.
    matrix.pids("scheduler_killed")
    slack.down = True
    matrix.start("outage")
    matrix.pids("outage")
    (matrix.folder / "outage.go").touch()
    matrix.ended("outage")
    until(
        "a notice waits for Slack",
        lambda: matrix.rows(
            "SELECT 1 FROM marketdata.notices WHERE dag_id = 'outage' AND sent_at IS NULL AND tries > 0"
        ),
    )
    airflow.kill("scheduler")
    # As if it had died before it wrote the notice: nobody hears of this end again.
    matrix.rows("DELETE FROM marketdata.notices WHERE dag_id = 'sigterm'")
    slack.down = False
    airflow.start_scheduler()
    _, seconds["outage, scheduler killed"] = matrix.told("outage")
    until("the lost notice is told", lambda: len(matrix.failures("sigterm")) == 2)
    (matrix.folder / "scheduler_killed.go").touch()
    assert matrix.ended("scheduler_killed")["state"] == "success"

    # Whatever else there was to be told has been told before the last one: they are posted in order.
    matrix.start("last")
    _, seconds["last"] = matrix.told("last")
    counts = {row: len(matrix.failures(row)) for row in matrix.runs}
    expected = dict.fromkeys((*rows, "outage", "last"), 1) | {"missed_deadline": 0, "scheduler_killed": 0}
    assert counts == {**expected, "sigterm": 2}, "the row that was deleted by hand is told again, no other is"
    assert len(slack.posted) == sum(counts.values()) + 2, "failures, one recovery, one deadline"
    assert slack.refused == []

    table = "\n".join(f"  {row:<26} {value:6.2f} s" for row, value in seconds.items())
    with capsys.disabled():
        sys.stdout.write(f"\nfailure to message\n{table}\n")
    assert max(seconds[row] for row in rows) < 60


def test_messages_say_what_a_person_needs(matrix: Matrix) -> None:
    (post,) = matrix.failures("raises")
    text = json.dumps(post.payload, ensure_ascii=False)
    assert "hunter2" not in text
    assert "<!channel>" not in text
    assert "ValueError: &lt;!channel&gt; raises &amp; postgresql://***@db:5432/prices gave no rows" in text
    assert "at failures.py:" in text
    assert "try 1 of 1" in text
    assert f"{matrix.airflow.address}/dags/raises/runs/" in text
    assert "Not run because of it: `after`" in text
    assert "CommodityPipelineFailure" in text
    assert "its process was killed or lost" in json.dumps(matrix.failures("runner_killed")[0].payload)
    assert "marked as failed by" in json.dumps(matrix.failures("task_marked")[0].payload)
    assert "The run was marked as failed by" in json.dumps(matrix.failures("run_marked")[0].payload)
