"""One DAG for each way to fail; a task says who it is and waits to be killed, marked or let go."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, BaseOperator, DeadlineAlert, DeadlineReference, SyncCallback

FOLDER = Path(os.environ.get("FAILURES_FOLDER", "/nonexistent"))

HELD = ("sigterm", "runner_killed", "supervisor_killed", "task_marked", "run_marked", "scheduler_killed", "outage")
SUCCEED_ONCE_LET_GO = ("clears", "missed_deadline", "scheduler_killed")
LONGEST_SECONDS = 900


class Fails(BaseOperator):
    """Fails, after it has waited for a file of its DAG's name where the DAG is one that is held."""

    def execute(self, context: Any) -> None:
        (FOLDER / f"{self.dag_id}.pids").write_text(f"{os.getpid()} {os.getppid()}")
        go = FOLDER / f"{self.dag_id}.go"
        self.killed = False
        deadline = time.monotonic() + LONGEST_SECONDS
        while self.dag_id in (*HELD, "missed_deadline") and not go.exists() and time.monotonic() < deadline:
            if self.killed:
                raise RuntimeError("ended from outside")
            time.sleep(0.05)
        if self.dag_id in SUCCEED_ONCE_LET_GO and go.exists():
            return
        raise ValueError(f"<!channel> {self.dag_id} & postgresql://etl:hunter2@db:5432/prices gave no rows")

    def on_kill(self) -> None:
        """What SIGTERM to a task's process comes to."""
        self.killed = True


class After(BaseOperator):
    """Never runs after a failure."""

    def execute(self, context: Any) -> None:
        pass


for name in ("raises", "clears", "missed_deadline", "last", *HELD):
    alert = DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=1),
        callback=SyncCallback("slack_alerts.deadline_missed"),
    )
    with DAG(
        name,
        schedule=None,
        start_date=datetime(2026, 1, 1),  # noqa: DTZ001
        default_args={"retries": int(name == "scheduler_killed"), "retry_delay": timedelta(seconds=1)},
        deadline=alert if name == "missed_deadline" else None,
    ) as dag:
        Fails(task_id="fails") >> After(task_id="after")
    globals()[name] = dag
