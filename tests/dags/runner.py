"""Run the DAG once per scenario and print what each run left: the other side of `test_runs.py`."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from marketdata.orchestration import local, run


def main(scenarios: dict[str, tuple[str, dict[str, Any]]]) -> None:
    dag = run.load_dag("commodity-price-pipeline")
    run.load_dag = lambda _: dag
    for task in dag.tasks:
        task.retry_delay = timedelta(seconds=0.1)  # type: ignore[attr-defined]
        task.retry_exponential_backoff = 0  # type: ignore[attr-defined]
    for name, (programs, parameters) in scenarios.items():
        local.SCRIPTS = Path(programs)
        green = run.run(dag.dag_id, parameters, datetime.now(UTC))
        sys.stdout.flush()
        sys.stderr.flush()
        print(f"\nRAN {json.dumps([name, {'green': green, **left()}])}", flush=True)


def left() -> dict[str, Any]:
    from airflow.models.dagrun import DagRun
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        last = session.query(DagRun).order_by(DagRun.id.desc()).first()
        rendered = session.query(RenderedTaskInstanceFields).filter_by(run_id=last.run_id)
        values = session.query(XComModel).filter_by(run_id=last.run_id)
        tasks = last.get_task_instances()
        return {
            "run_id": last.run_id,
            "tasks": {task.task_id.rpartition(".")[2]: [str(task.state), task.try_number] for task in tasks},
            "rendered": {row.task_id: row.rendered_fields for row in rendered},
            "links": {f"{row.task_id} {row.key}": row.value for row in values if row.key.startswith("_link")},
        }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
