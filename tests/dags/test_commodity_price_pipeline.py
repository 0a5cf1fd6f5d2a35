"""The graph of `commodity-price-pipeline`: its schedule, its shape, the command of each task as it is rendered."""

from __future__ import annotations

import copy
import itertools
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError

SNAPSHOTS = Path(__file__).parent / "snapshots"


def test_schedule(dag: DAG) -> None:
    timetable: Any = dag.timetable
    assert type(timetable).__name__ == "CronDataIntervalTimetable"
    assert (timetable.expression, str(timetable.timezone)) == ("0 2 * * *", "UTC")


def test_graph_is_the_one_that_was_reviewed(dag: DAG) -> None:
    matches_the_snapshot(dag)


def test_order(dag: DAG) -> None:
    order = ["preflight", "extract", "quality.validate", "quality.transform"]
    for before, after in itertools.pairwise(order):
        assert dag.get_task(before).downstream_task_ids == {after}
    delivered = {"deliver.publish", "deliver.load"}
    assert dag.get_task("quality.transform").downstream_task_ids == delivered
    assert dag.get_task("reconcile").upstream_task_ids == delivered
    assert dag.leaves == [dag.get_task("reconcile")], "the last task decides the run's colour"


def test_reconcile_runs_whatever_happened(dag: DAG) -> None:
    rules = {task.task_id: task.trigger_rule for task in dag.tasks}
    assert rules.pop("reconcile") == "all_done"
    assert set(rules.values()) == {"all_success"}


@pytest.mark.parametrize(
    "params",
    [
        {"start": "2019-13-01"},
        {"start": 20190101},
        {"end": "tomorrow"},
        {"lookback_days": -1},
        {"lookback_days": "30"},
        {"sources": "archive; rm"},
        {"sources": ""},
    ],
)
def test_parameters_of_the_wrong_form_are_refused(dag: DAG, params: dict[str, Any]) -> None:
    given = copy.deepcopy(dag.params)
    with pytest.raises(ParamValidationError):
        given.update(params)


@pytest.mark.parametrize(
    "params",
    [{}, {"start": "2019-01-01", "end": "2019-02-01"}, {"lookback_days": 0}, {"sources": "files,api"}, {"start": None}],
)
def test_parameters_of_the_right_form_are_taken(dag: DAG, params: dict[str, Any]) -> None:
    given = copy.deepcopy(dag.params)
    given.update(params)
    given.validate()


DAYS = {
    "data_interval_start": datetime(2019, 1, 2, 2, tzinfo=UTC),
    "data_interval_end": datetime(2019, 1, 3, 2, tzinfo=UTC),
}
NO_DAYS = {"data_interval_start": None, "data_interval_end": None}
SET = {"start": None, "end": None, "lookback_days": None, "sources": None}


@pytest.mark.parametrize(
    ("run", "params", "expected"),
    [
        ({"run_type": "scheduled", **DAYS}, {}, "2019-01-02 2019-01-03 30 0 -"),
        ({"run_type": "backfill", **DAYS}, {}, "2019-01-02 2019-01-03 0 0 -"),
        ({"run_type": "backfill", "clear_number": 2, **DAYS}, {}, "2019-01-02 2019-01-03 0 2 -"),
        ({"run_type": "manual", **NO_DAYS}, {}, "2019-01-02 2019-01-03 0 0 -"),
        (
            {"run_type": "manual", **NO_DAYS},
            {"start": "1986-01-02", "end": "1986-01-05", "lookback_days": 3, "sources": "files,archive"},
            "1986-01-02 1986-01-05 3 0 files,archive",
        ),
    ],
)
def test_extract_as_rendered(dag: DAG, run: dict[str, Any], params: dict[str, Any], expected: str) -> None:
    words = rendered(dag, "extract", run={"clear_number": 0, **run}, params={**SET, **params})
    start, end, lookback, cleared, sources = expected.split()
    assert words == [
        "extract", "--dataset", "commodity_prices", "--start", start, "--end", end, "--lookback-days", lookback,
        "--attempt-of-run", cleared, "--sources", "" if sources == "-" else sources,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task_id", "handed_over_by"),
    [
        ("quality.validate", "extract"),
        ("quality.transform", "quality.validate"),
        ("deliver.publish", "quality.transform"),
        ("deliver.load", "quality.transform"),
        ("reconcile", "quality.transform"),
    ],
)
def test_the_others_as_rendered(dag: DAG, task_id: str, handed_over_by: str) -> None:
    command = task_id.rpartition(".")[2]
    with_batch = rendered(dag, task_id, xcom={handed_over_by: {"batch": "file:///lake/m.json", "rows": 3}})
    assert with_batch == [command, "--dataset", "commodity_prices", "--batch", "file:///lake/m.json"]
    assert rendered(dag, task_id, xcom={})[-2:] == ["--batch", ""], "the run did not get so far"


def rendered(
    dag: DAG,
    task_id: str,
    *,
    run: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
    xcom: dict[str, Any] | None = None,
) -> list[str]:
    task: Any = dag.get_task(task_id).prepare_for_execution()
    context: Any = {
        "dag_run": SimpleNamespace(run_after=datetime(2019, 1, 3, 9, tzinfo=UTC), **(run or {})),
        "params": params or SET,
        "ti": SimpleNamespace(xcom_pull=lambda task_ids: (xcom or {}).get(task_ids)),
    }
    task.render_template_fields(context, dag.get_template_env())
    return list(task.command)


def matches_the_snapshot(dag: DAG) -> None:
    """After a change that is meant: `UPDATE_SNAPSHOTS=1 pytest tests/dags`, and read the difference."""
    snapshot = SNAPSHOTS / f"{dag.dag_id}.json"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        snapshot.write_text(json.dumps(graph(dag), indent=1) + "\n")
    assert graph(dag) == json.loads(snapshot.read_text())


def graph(dag: DAG) -> dict[str, Any]:
    """What a reviewer has to see when it changes."""
    return {
        "dag_id": dag.dag_id,
        "schedule": getattr(dag.timetable, "expression", None),
        "start_date": str(dag.start_date),
        "params": {name: dag.params.get_param(name).schema for name in dag.params},
        "tags": sorted(dag.tags),
        "tasks": {
            task.task_id: {
                "command": task.command,  # type: ignore[attr-defined]
                "profile": task.profile,  # type: ignore[attr-defined]
                "pool": task.pool,
                "trigger_rule": str(task.trigger_rule),
                "downstream": sorted(task.downstream_task_ids),
            }
            for task in sorted(dag.tasks, key=lambda task: task.task_id)
        },
    }
