"""The graphs of `platform-load-test` and `chaos-drill`: what is reviewed, what may be said, what is rendered."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError

from marketdata.operations.profiles import PROFILES
from marketdata.operations.scenarios import SCENARIOS
from tests.dags.test_commodity_price_pipeline import matches_the_snapshot, rendered

LOAD, CHAOS = "platform-load-test", "chaos-drill"


@pytest.fixture
def load_test(bag: DagBag) -> DAG:
    return bag.dags[LOAD]


@pytest.fixture
def chaos(bag: DagBag) -> DAG:
    return bag.dags[CHAOS]


@pytest.mark.parametrize("dag_id", [LOAD, CHAOS])
def test_graph_is_the_one_that_was_reviewed(bag: DagBag, dag_id: str) -> None:
    matches_the_snapshot(bag.dags[dag_id])


@pytest.mark.parametrize(("dag_id", "work"), [(LOAD, "load"), (CHAOS, "drill")])
def test_what_was_struck_is_healed_however_the_drill_ended(bag: DagBag, dag_id: str, work: str) -> None:
    dag = bag.dags[dag_id]
    check, clear = dag.get_task("check"), dag.get_task("clear")
    assert check.is_setup
    assert clear.is_teardown
    assert clear.upstream_task_ids == {"check", work}
    assert dag.get_task(work).upstream_task_ids == {"check"}
    assert clear.on_failure_fail_dagrun, "what could not be healed or removed is seen"
    assert dag.get_task(work).pool == "drills"


def test_profiles_and_scenarios_are_those_of_the_package(load_test: DAG, chaos: DAG) -> None:
    assert load_test.params.get_param("profile").schema["enum"] == list(PROFILES)
    assert all(f"`{name}`" in (chaos.doc_md or "") for name in SCENARIOS)


def test_the_monthly_run_strikes_nothing_that_others_use(chaos: DAG) -> None:
    assert chaos.params["dry_run"] is True
    assert {name for name, scenario in SCENARIOS.items() if not scenario.shared} == {
        "consumer-crash", "trino-down", "task-evicted",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"dry_run": True, "scenarios": "all", "consumers": 3}, "chaos --scenario all --consumers 3 --dry-run"),
        (
            {"dry_run": False, "scenarios": "broker-failure", "consumers": 2},
            "chaos --scenario broker-failure --consumers 2 --no-dry-run",
        ),
    ],
)
def test_the_drill_as_rendered(chaos: DAG, params: dict[str, Any], expected: str) -> None:
    assert rendered(chaos, "drill", params=params) == expected.split()


@pytest.mark.parametrize(("messages", "word"), [(None, "0"), (5000, "5000")])
def test_the_load_as_rendered(load_test: DAG, messages: int | None, word: str) -> None:
    words = rendered(load_test, "load", params={"profile": "burst", "consumers": 3, "messages": messages})
    assert words == ["load-test", "--profile", "burst", "--consumers", "3", "--messages", word]


@pytest.mark.parametrize(
    ("dag_id", "params"),
    [
        (LOAD, {"profile": "flood"}),
        (LOAD, {"consumers": 0}),
        (LOAD, {"messages": 10}),
        (CHAOS, {"dry_run": "no"}),
        (CHAOS, {"dry_run": None}),
        (CHAOS, {"scenarios": "all; rm"}),
        (CHAOS, {"scenarios": "--no-dry-run"}),
    ],
)
def test_parameters_of_the_wrong_form_are_refused(bag: DagBag, dag_id: str, params: dict[str, Any]) -> None:
    given = copy.deepcopy(bag.dags[dag_id].params)
    with pytest.raises(ParamValidationError):
        given.update(params)
