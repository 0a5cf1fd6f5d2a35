"""A run's configuration and parameters, as somebody would write them who wants more than a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.param import process_params
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError

ROOT = Path(__file__).resolve().parents[2]

HOSTILE = [
    "{{ 7 * 7 }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{ conn.postgres.password }}",
    "{{ var.value.api_key }}",
    "$(touch owned)",
    "`touch owned`",
    "; touch owned",
    "| touch owned",
    "&& touch owned",
    "${HOME}",
    "' OR '1'='1",
    "'; DROP TABLE commodity_prices; --",
    "../../../../etc/passwd",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "--help",
    "-",
    "archive --batch file:///etc/passwd",
    "archive\n--batch",
    "archive\x00",
    "ARCHIVE",
    "archive,,api",
    "аrchive",  # its first letter is Cyrillic
    "a" * 101,
    "x" * 10_000_000,
    ["archive"],
    {"archive": 1},
    17.5,
    True,
]


@pytest.fixture(scope="module")
def dag() -> DAG:
    from marketdata.orchestration import run

    return run.load_dag("commodity-price-pipeline")


def validated(dag: DAG, **conf: Any) -> dict[str, Any]:
    """The parameters of a run of this configuration, as Airflow gives them to a template."""
    return process_params(dag, dag.tasks[0], conf, suppress_exception=False)


@pytest.mark.parametrize("name", ["sources", "start", "end", "lookback_days"])
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
def test_what_is_no_parameter_of_its_form_is_refused(dag: DAG, name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError, match=name):
        validated(dag, **{name: value})


@pytest.mark.parametrize("days", [-1, 367, 10**12, 1.5, float("nan"), float("inf")])
def test_a_look_back_has_bounds(dag: DAG, days: float) -> None:
    with pytest.raises(ParamValidationError, match="lookback_days"):
        validated(dag, lookback_days=days)


@pytest.mark.parametrize(
    "day", ["0000-01-01", "2020-02-30", "10000-01-01", "2020-1-1", "2020-01-01T00:00:00", "20200101", "2020-W01-1", ""]
)
def test_a_day_is_a_day(dag: DAG, day: str) -> None:
    """The empty text is taken for none."""
    from marketdata.orchestration.interval import run_interval

    moment = datetime(2020, 1, 2, tzinfo=UTC)
    due: Any = SimpleNamespace(run_type="manual", run_after=moment, data_interval_start=None, data_interval_end=None)
    try:
        interval = run_interval(due, validated(dag, start=day))
    except (ParamValidationError, AirflowFailException):
        return
    assert str(interval.start) in ("2020-01-01", "2019-12-30"), "what reached a command is a date Python wrote"


def test_templates_are_filled_with_parameters_that_have_a_form_and_with_results(dag: DAG) -> None:
    """Nothing else of a run's configuration, and nothing of a connection or variable, has a way into a command."""
    known = {"params.sources", "run_interval(dag_run, params)", "dag_run.clear_number", "ti.xcom_pull("}
    for task in dag.tasks:
        for word in task.command:  # type: ignore[attr-defined]
            if "{" in word:
                assert any(part in word for part in known), word
                assert not any(part in word for part in ("conf", "conn.", "var.", "safe", "env")), word


def test_only_the_words_of_a_command_are_templates(dag: DAG) -> None:
    for task in dag.tasks:
        assert set(task.template_fields) == {"command"}
        assert "{" not in task.command[0]  # type: ignore[attr-defined]
        assert dag.render_template_as_native_obj is False, "a text would become code's objects"
