"""The operator in a real Airflow: what people see in its log and XCom, and what outlives a scheduler."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from marketdata.orchestration import policy
from marketdata.settings import Settings
from tests.engines.installation import FINAL, Installation, installation
from tests.engines.kubernetes.cluster import Cluster
from tests.kubernetes.launching import APP, command_image, launcher, scheduled
from tests.waiting import until

__all__ = ["command_image", "launcher"]

DAGS = """
import os
from datetime import timedelta
from airflow.sdk import DAG
from marketdata.orchestration.pod import MarketdataPodOperator

COMMANDS = {commands}
for name, code in COMMANDS.items():
    with DAG(name, schedule=None, default_args={{"retries": 2, "retry_delay": timedelta(seconds=1)}}) as dag:
        MarketdataPodOperator(task_id="task", command=["exec", code], app="{app}", tier="critical")
    globals()[name] = dag
"""
WORKS_A_WHILE = "print('BEGUN'.lower(), flush=True); time.sleep(25); result = {'by_try': attempt}"
COMMANDS = {
    "fails_twice": "print('TRIED'.lower()); result = {'by_try': attempt}; sys.exit(69 * (attempt < 3))",
    "bad_data": "print('error: 7 % refused', file=sys.stderr); sys.exit(65)",
    "scheduler_dies": WORKS_A_WHILE,
    "everything_dies": WORKS_A_WHILE,
    "is_marked_failed": "print('BEGUN'.lower(), flush=True); time.sleep(600)",
}


class Runs:
    """One run of each DAG, and where its traces are."""

    def __init__(self, airflow: Installation, cluster: Cluster, logs: Path) -> None:
        self.airflow = airflow
        self._cluster = cluster
        self._logs = logs
        self._ids: dict[str, str] = {}

    def start(self, dag_id: str) -> None:
        self._ids[dag_id] = self.airflow.trigger(dag_id)

    def state(self, dag_id: str) -> str:
        return str(self.airflow.run(dag_id, self._ids[dag_id])["state"])

    def ended(self, dag_id: str) -> str:
        return str(until(f"{dag_id} ends", lambda: {self.state(dag_id)} & set(FINAL), 600).pop())

    def task(self, dag_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.airflow.call("GET", f"{self._path(dag_id)}/taskInstances/task")
        return found

    def mark_failed(self, dag_id: str) -> None:
        self.airflow.call("PATCH", f"{self._path(dag_id)}/taskInstances/task", {"new_state": "failed"})

    def xcom(self, dag_id: str) -> Any:
        path = f"{self._path(dag_id)}/taskInstances/task/xcomEntries/return_value?deserialize=true"
        return self.airflow.call("GET", path)["value"]

    def log(self, dag_id: str, attempt: int) -> str:
        file = (
            self._logs / f"dag_id={dag_id}" / f"run_id={self._ids[dag_id]}" / "task_id=task" / f"attempt={attempt}.log"
        )
        return file.read_text() if file.exists() else ""

    def pods(self, dag_id: str) -> list[dict[str, Any]]:
        selector = f"--selector=app={APP},workflow={dag_id}"
        found: list[dict[str, Any]] = self._cluster.get("pods", f"--namespace={policy.NAMESPACE}", selector)["items"]
        return found

    def created(self, dag_id: str) -> int:
        """How many pods there ever were."""
        return len(scheduled(self._cluster, f"{dag_id.replace('_', '-')}-exec"))

    def at_work(self, dag_id: str) -> None:
        until(f"the pod of {dag_id} is at work", lambda: "begun" in self.log(dag_id, 1), 240)

    def _path(self, dag_id: str) -> str:
        return f"dags/{dag_id}/dagRuns/{quote(self._ids[dag_id], safe='')}"


@pytest.fixture(scope="module")
def runs(
    cluster: Cluster, services: Settings, launcher: Path, command_image: str, new_home: Callable[[str], Path]
) -> Iterator[Runs]:
    home = new_home("operator")
    dags = home / "dags"
    dags.mkdir()
    (dags / "commands.py").write_text(DAGS.format(commands=repr(COMMANDS), app=APP))
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(launcher)}}
    extra = {
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(connection),
        # Longer than a busy server has been seen to be silent: a task that lives is not to be taken for dead.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "KUBECONFIG": str(home / "none"),
        "MARKETDATA_ENDPOINTS": str(home / "no-endpoints.json"),
        "MARKETDATA_IMAGE": command_image,
        "ENVIRONMENT": "production",
        "LAKE_URI": str(services.lake_uri),
    }
    with installation(services, dags, extra, home / "processes") as airflow:
        until("Airflow knows the DAGs", lambda: airflow.ready(set(COMMANDS)), 180)
        yield Runs(airflow, cluster, home / "logs")
    words = ("delete", "pods", f"--namespace={policy.NAMESPACE}", f"--selector=app={APP}", "--grace-period=1")
    cluster.kubectl(*words, "--wait=false")


def test_two_failures_then_a_success_and_none_where_it_is_no_use(runs: Runs) -> None:
    runs.start("fails_twice")
    runs.start("bad_data")
    assert runs.ended("fails_twice") == "success"
    assert runs.task("fails_twice")["try_number"] == 3
    assert runs.xcom("fails_twice") == {"by_try": 3}
    for attempt in (1, 2, 3):
        log = runs.log("fails_twice", attempt)
        assert '"event":"tried"' in log.replace('": "', '":"')
        assert "Running on" in log
    assert "exit 69: a dependency is down" in runs.log("fails_twice", 1)
    assert "Event Scheduled" in runs.log("fails_twice", 1)
    assert runs.ended("bad_data") == "failed"
    assert runs.task("bad_data")["try_number"] == 1
    assert "7 % refused" in runs.log("bad_data", 1)
    for hidden in ("secretKeyRef", "secret_key_ref", "readOnlyRootFilesystem", "read_only_root_filesystem"):
        assert hidden not in "".join(runs.log("fails_twice", attempt) for attempt in (1, 2, 3))


def test_a_task_marked_as_failed_takes_its_pod_with_it(runs: Runs) -> None:
    runs.start("is_marked_failed")
    runs.at_work("is_marked_failed")
    runs.mark_failed("is_marked_failed")
    until("the pod is gone", lambda: not runs.pods("is_marked_failed"))


def test_a_scheduler_that_dies_leaves_one_pod_that_the_next_one_takes_over(runs: Runs) -> None:
    """Its tasks' processes live on for a while beside their successors."""
    runs.start("scheduler_dies")
    runs.at_work("scheduler_dies")
    runs.airflow.kill("scheduler")
    runs.airflow.start_scheduler()
    assert runs.ended("scheduler_dies") == "success"
    assert runs.created("scheduler_dies") == 1
    assert runs.xcom("scheduler_dies") == {"by_try": 1}


def test_a_machine_that_dies_with_its_tasks_leaves_one_pod_that_the_next_try_takes_over(runs: Runs) -> None:
    runs.start("everything_dies")
    runs.at_work("everything_dies")
    runs.airflow.kill_with_tasks("scheduler")
    runs.airflow.start_scheduler()
    assert runs.ended("everything_dies") == "success"
    assert runs.task("everything_dies")["try_number"] > 1
    assert runs.created("everything_dies") == 1
    assert runs.xcom("everything_dies") == {"by_try": 1}, "what the pod of the first try handed over"
