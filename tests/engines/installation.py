"""A real Airflow for tests: api-server, scheduler and dag-processor as processes that can be killed one by one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from marketdata.engines.airflow import airflow_environment, migrate_airflow
from marketdata.engines.process import free_port
from marketdata.settings import Settings

QUICK = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "8",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "6",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "1",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    "AIRFLOW__CORE__PARALLELISM": "9",
}
"""A killed process is missed after seconds, not minutes."""

ANSWER_SECONDS = 120
"""A busy machine's server has been silent for 20."""

FINAL = ("success", "failed")


class Installation:
    """Airflow on this PostgreSQL, with the repository's plugins.

    Args:
        extra: more variables, e.g. a connection.
    """

    def __init__(self, settings: Settings, dags: Path, extra: Mapping[str, str], logs: Path) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            **airflow_environment(settings),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": self.address,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.address}/execution/",
            **QUICK,
            **extra,
        }
        self.logs = logs
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.orphaned: list[int] = []
        migrate_airflow(settings)

    def start(self, name: str, *arguments: str) -> None:
        """Start one of the processes in a session of its own."""
        log = (self.logs / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", "airflow", name, *arguments],
            env=self.environment,
            cwd=self.logs,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def start_scheduler(self) -> None:
        self.start("scheduler", "--skip-serve-logs")

    def kill(self, name: str) -> None:
        """SIGKILL to this process alone; its children live on or notice."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(10)
        self.orphaned.append(process.pid)

    def kill_with_tasks(self, name: str) -> None:
        """SIGKILL to this process and all that it has started, as when its machine dies."""
        process = self.processes.pop(name)
        _kill_session(process.pid)
        process.wait(10)

    def stop(self) -> None:
        """End everything that was started, children included."""
        for name in ("scheduler", "dag-processor", "api-server"):
            if name in self.processes:
                self.processes[name].send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 15
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.orphaned.append(process.pid)
        for session in self.orphaned:
            _kill_session(session)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the REST API, as an administrator."""
        with urllib.request.urlopen(f"{self.address}/auth/token", timeout=ANSWER_SECONDS) as answer:  # noqa: S310
            token = json.load(answer)["access_token"]
        request = urllib.request.Request(  # noqa: S310
            f"{self.address}/api/v2/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
            return json.load(answer)

    def trigger(self, dag_id: str) -> str:
        return str(self.call("POST", f"dags/{dag_id}/dagRuns", {"logical_date": None})["dag_run_id"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")
        return found

    def ready(self, dag_ids: set[str]) -> bool:
        """Whether the API answers and every DAG is known."""
        try:
            return dag_ids <= {dag["dag_id"] for dag in self.call("GET", "dags?limit=100")["dags"]}
        except (OSError, urllib.error.HTTPError):
            return False


def _kill_session(leader: int) -> None:
    """SIGKILL to every process of a session: a task of Airflow's has a process group of its own."""
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)


@contextmanager
def installation(settings: Settings, dags: Path, extra: Mapping[str, str], logs: Path) -> Iterator[Installation]:
    """An Airflow that runs for as long as the block lasts."""
    logs.mkdir(parents=True, exist_ok=True)
    airflow = Installation(settings, dags, extra, logs)
    try:
        airflow.start("api-server")
        airflow.start("dag-processor")
        airflow.start_scheduler()
        yield airflow
    finally:
        airflow.stop()
