"""The graph of `platform-maintenance`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG

from marketdata.datasets import DATASETS, DERIVED
from tests.dags.test_commodity_price_pipeline import graph

SNAPSHOT = Path(__file__).parent / "snapshots" / "platform-maintenance.json"


@pytest.fixture(scope="session")
def dag(bag: DagBag) -> DAG:
    return bag.dags["platform-maintenance"]


def test_schedule(dag: DAG) -> None:
    timetable: Any = dag.timetable
    assert type(timetable).__name__ == "CronTriggerTimetable"
    assert (timetable.expression, str(timetable.timezone)) == ("0 4 * * *", "UTC")


def test_graph_is_the_one_that_was_reviewed(dag: DAG) -> None:
    """After a change that is meant: `UPDATE_SNAPSHOTS=1 pytest tests/dags`, and read the difference."""
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(json.dumps(graph(dag), indent=1) + "\n")
    assert graph(dag) == json.loads(SNAPSHOT.read_text())


def test_every_dataset_is_maintained_and_waits_for_its_loads(dag: DAG) -> None:
    pools = {task.command[-1]: task.pool for task in dag.tasks}  # type: ignore[attr-defined]
    assert set(pools) == {*DATASETS, *DERIVED}
    assert {pools[name] for name in DATASETS} == {f"{name}_load" for name in DATASETS}
