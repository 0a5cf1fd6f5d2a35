"""A run's end to its alert in Slack, every panel of every dashboard, every check of every runbook: on real programs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import psycopg
import pytest
import requests

from marketdata import engines
from marketdata import settings as settings_module
from marketdata.observability.runs import recorded
from marketdata.settings import ENDPOINTS_VARIABLE, Settings
from tests.engines.monitoring import MONITORING, ROOT, Monitoring, monitoring, require, unhurried
from tests.waiting import until

DAG = "commodity-price-pipeline"
HOLD = "2s"
"""In place of the minutes an alert is held in production."""

BOARDS = sorted((MONITORING / "dashboards").glob("*.json"))


@pytest.fixture(scope="module")
def settings(new_home: Callable[[str], Path]) -> Iterator[Settings]:
    """Engines of this module's own, with Airflow."""
    require("prometheus", "prometheus-pushgateway", "prometheus-alertmanager", "prometheus-blackbox-exporter")
    home = new_home("monitored")
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        patch.setenv("MARKETDATA_HOME", str(home))
        patch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
        engines.up(Settings(), ["postgres"])
        try:
            yield Settings()
        finally:
            engines.down(Settings())


@pytest.fixture(scope="module")
def stack(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitoring]:
    """All of the monitoring, watching this module's PostgreSQL."""
    address = urlsplit(settings.require("postgres_dsn"))
    probed = {"postgres": f"{address.hostname}:{address.port}"}
    with monitoring(tmp_path_factory.mktemp("monitoring"), probed, hold=HOLD) as running:
        yield running


@pytest.fixture(scope="module")
def listener(settings: Settings, stack: Monitoring) -> Iterator[Any]:
    """The plugin's listener as a scheduler has it, but for Airflow's metadata, which says nothing here."""
    spec = importlib.util.spec_from_file_location("run_metrics_monitored", ROOT / "plugins" / "run_metrics.py")
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    with pytest.MonkeyPatch.context() as patch:
        unhurried(patch)
        patch.setenv("PUSHGATEWAY_URL", stack.gateway)
        settings_module.load.cache_clear()
        patch.setattr(plugin._Records, "finished", lambda self, since: [])
        patch.setattr(plugin._Records, "dags", lambda self: [])
        yield plugin.RunMetricsListener()


def dag_run(run_id: str, minutes_ago: int = 0) -> Any:
    ended = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    began = ended - timedelta(seconds=42)
    return SimpleNamespace(dag_id=DAG, run_id=run_id, clear_number=0, start_date=began, end_date=ended)


def record_run(settings: Settings, run_id: str) -> None:
    """The run record of a run that did everything."""
    series = {"source": "lbma", "series": "PM", "frequency": "daily"}
    by_series = [
        {**series, "commodity": "Gold", "extracted": 250, "quarantined": 0, "published": 250, "loaded": 250},
        {**series, "commodity": "Oil", "extracted": 120, "quarantined": 1, "published": 119, "loaded": 119},
    ]
    for step, result in (
        ("extract", {"rows": 370}),
        ("validate", {"batch_id": f"v-{run_id}", "expectations_met": 12, "expectations_broken": 0}),
        ("transform", {"batch_id": f"b-{run_id}", "rows": 369}),
        ("publish", {"published": 369}),
        ("load", {"inserted": 369}),
        ("reconcile", {"published": 369, "by_series": by_series}),
    ):
        with recorded(settings, "commodity_prices", run_id, step) as row:
            row.result = result


def test_a_failed_run_becomes_an_alert_in_slack(
    settings: Settings, stack: Monitoring, listener: Any, record_property: Callable[[str, object], None]
) -> None:
    failed = f"batch_jobs_failed_total{{job='{DAG}'}}"
    listener.on_starting(component=type("Job", (), {})())
    until("the counters are at 0", lambda: stack.prometheus.value(failed) == 0)
    record_run(settings, "good")
    listener.on_dag_run_success(dag_run=dag_run("good", minutes_ago=1))
    until("the successful run is scraped", lambda: stack.prometheus.value(f"batch_jobs_total{{job='{DAG}'}}") == 1)
    assert "CommodityPipelineFailure" not in stack.prometheus.alerts()

    ended = time.time()
    listener.on_dag_run_failed(dag_run=dag_run("bad"))
    seconds = {"pushed": time.time() - ended}
    until("the failure is scraped", lambda: stack.prometheus.value(failed) == 1)
    seconds["scraped"] = time.time() - ended
    until("the alert fires", lambda: "CommodityPipelineFailure" in stack.prometheus.alerts())
    seconds["firing"] = time.time() - ended

    def told() -> list[tuple[float, dict[str, Any]]]:
        return [(at, body) for at, body in stack.webhook.received if "CommodityPipelineFailure" in json.dumps(body)]

    ((at, body),) = until("the message is in Slack", told)
    seconds["in Slack"] = at - ended
    text = json.dumps(body)
    assert "Commodity price pipeline failed" in text
    assert "docs/runbooks/CommodityPipelineFailure.md" in text
    assert body["channel"] == "#data-alerts"
    for name, value in seconds.items():
        record_property(name, round(value, 2))
    print({name: round(value, 2) for name, value in seconds.items()})


def test_the_lesser_alert_is_held_back_while_the_greater_one_fires(stack: Monitoring) -> None:
    until("the lesser alert fires", lambda: "BatchJobLastRunFailed" in stack.prometheus.alerts())

    def inhibited() -> bool:
        answer = requests.get(f"{stack.alertmanager}/api/v2/alerts", timeout=10).json()
        found = {alert["labels"]["alertname"]: alert["status"] for alert in answer}
        return bool(found.get("BatchJobLastRunFailed", {}).get("inhibitedBy"))

    until("the lesser alert is inhibited", inhibited)
    assert not [body for _, body in stack.webhook.received if "BatchJobLastRunFailed" in json.dumps(body)]


def test_an_engine_that_goes_away_is_told(settings: Settings, stack: Monitoring) -> None:
    assert until("the probe succeeds", lambda: stack.prometheus.value("probe_success{engine='postgres'}") == 1)
    until("no alert fires", lambda: "EngineUnreachable" not in stack.prometheus.alerts())
    engines.down(settings, ["postgres"])
    try:
        until("the alert fires", lambda: "EngineUnreachable" in stack.prometheus.alerts())
    finally:
        engines.up(Settings(), ["postgres"])
    until("the alert ends", lambda: "EngineUnreachable" not in stack.prometheus.alerts())


def test_every_rule_is_evaluated_without_an_error(stack: Monitoring) -> None:
    until("all rules have been evaluated", stack.prometheus.healthy_rules)


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_valid_fresh_and_each_of_its_queries_returns_data(
    path: Path, settings: Settings, stack: Monitoring, listener: Any, shared_data: Path
) -> None:
    document = json.loads(path.read_text())
    jsonschema.validate(
        document, json.loads((shared_data / "checks" / "grafana" / "dashboard.jsonschema.json").read_text())
    )
    fresh = subprocess.run([sys.executable, MONITORING / "dashboards.py", "--check"], check=False)
    assert fresh.returncode == 0, "run: python deploy/monitoring/dashboards.py"
    if stack.prometheus.value("batch_job_records") is None:
        record_run(settings, "for the boards")
        listener.on_dag_run_success(dag_run=dag_run("for the boards"))
    empty = []
    for panel in document["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            ask = stack.prometheus.query if target["instant"] else lambda e: stack.prometheus.range(e, 60)
            try:
                until(expression, lambda ask=ask, e=expression: ask(e))
            except AssertionError:
                empty.append(f"{panel['title']}: {expression}")
    assert not empty


PROBE = """
import os
from datetime import datetime

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

from marketdata.observability import push

# The process ends after its run: until then all has to be delivered, on a busy machine too.
push.BUDGET_SECONDS, push.PUSH_SECONDS = 60.0, 30.0


def work():
    if os.environ["PROBE"] == "failed":
        raise ValueError("as asked")


with DAG("metrics-probe", schedule=None) as dag:
    PythonOperator(task_id="work", python_callable=work)
if __name__ == "__main__":
    print("STATE", dag.test(run_after=datetime.fromisoformat(os.environ["PROBE_AFTER"])).state)
"""


def test_airflow_itself_calls_the_plugin_and_a_lost_run_is_found_in_its_metadata(
    settings: Settings, stack: Monitoring, tmp_path: Path
) -> None:
    engines.migrate_airflow(settings)
    dags = tmp_path / "dags"
    dags.mkdir()
    program = dags / "probe.py"
    program.write_text(PROBE)
    base = {**os.environ, **engines.airflow_environment(settings), "AIRFLOW__CORE__DAGS_FOLDER": str(dags)}
    for name in ("PYTHONDONTWRITEBYTECODE", "PUSHGATEWAY_URL"):
        base.pop(name, None)

    def run(state: str, day: int, **variables: str) -> None:
        variables |= {"PROBE": state, "PROBE_AFTER": f"2026-01-{day:02d}T00:00:00+00:00"}
        done = subprocess.run(
            [sys.executable, str(program)], env={**base, **variables}, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip
        assert f"STATE {state}" in done.stdout, done.stdout + done.stderr

    run("failed", 1)
    metrics = f"{stack.gateway}/metrics"
    pushed = requests.get(metrics, timeout=10).text
    assert 'job="metrics-probe"' not in pushed, "the gateway was not set: nothing may be pushed"
    run("success", 2, PUSHGATEWAY_URL=stack.gateway)

    def counts() -> dict[str, float]:
        pushed = requests.get(metrics, timeout=10).text
        lines = [line for line in pushed.splitlines() if 'job="metrics-probe"' in line]
        return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}

    found = until("both runs are counted", lambda: counts() if counts().get("batch_jobs_total") == 2 else None)
    assert found["batch_jobs_success_total"] == found["batch_jobs_failed_total"] == 1
    assert found["batch_job_last_run_success"] == 1
    with psycopg.connect(settings.require("postgres_dsn")) as connection:
        rows = connection.execute(
            "SELECT state, count(*) FROM marketdata.run_outcomes WHERE dag_id = 'metrics-probe' GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert rows == [("failed", 1), ("success", 1)]


def checks() -> list[str]:
    """Commands of the parts of runbooks that only look."""
    found = set()
    for path in (ROOT / "docs" / "runbooks").glob("*.md"):
        parts = re.split(r"^## ", path.read_text(), flags=re.MULTILINE)
        for part in parts:
            if part.startswith(("Checks", "Verification")):
                for block in re.findall(r"```console\n(.*?)```", part, re.DOTALL):
                    found |= {line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")}
    return sorted(found)


@pytest.fixture(scope="module")
def desk(settings: Settings, stack: Monitoring, listener: Any) -> dict[str, str]:
    """The environment of the person on call: everything runs, tables and topics are there."""
    from marketdata.datasets import COMMODITY_PRICES, quarantine  # type: ignore[attr-defined]
    from marketdata.lakehouse import open_lakehouse
    from marketdata.streaming import topics

    running = engines.up(Settings(), ["kafka", "postgres", "airflow"])
    topics.apply(running)
    lakehouse = open_lakehouse(running)
    lakehouse.ensure(COMMODITY_PRICES)
    lakehouse.ensure(quarantine(COMMODITY_PRICES))
    record_run(running, "looked at")
    listener.on_dag_run_success(dag_run=dag_run("looked at"))
    environment = {
        **os.environ, **engines.airflow_environment(running), "PROMETHEUS_URL": stack.prometheus.url,
        "ALERTMANAGER_URL": stack.alertmanager, "PUSHGATEWAY_URL": stack.gateway,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def knows_the_dag() -> bool:
        details = ["airflow", "dags", "details", DAG]
        return subprocess.run(details, cwd=ROOT, env=environment, capture_output=True, check=False).returncode == 0

    until("Airflow knows the DAG", knows_the_dag, 300)
    return environment


@pytest.mark.parametrize("command", checks())
def test_a_runbooks_check_runs(command: str, desk: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=desk, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
