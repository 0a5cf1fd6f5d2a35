"""Alert rules, scrape and routing configuration: valid, tested both ways, and each alert with its runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from marketdata.observability.metrics import METRICS

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "deploy" / "monitoring"
RUNBOOKS = ROOT / "docs" / "runbooks"
CASES = Path(__file__).with_name("rules")
COMPONENTS = sorted(path.name for path in (MONITORING / "rules").glob("*.yaml"))
OTHERS = {
    "up", "probe_success", "push_time_seconds", "push_failure_time_seconds",
    "prometheus_rule_evaluation_failures_total", "alertmanager_notifications_failed_total",
    "airflow_scheduler_heartbeat_total", "airflow_dag_processing_import_errors",
}  # fmt: skip
"""Metrics that others make and the rules may name."""

FUNCTIONS = {
    "absent", "absent_over_time", "and", "avg", "avg_over_time", "by", "increase", "max", "max_over_time", "offset",
    "on", "or", "rate", "sum", "time", "unless", "clamp_min",
}  # fmt: skip


def rules(component: str) -> list[dict[str, Any]]:
    content = yaml.safe_load((MONITORING / "rules" / component).read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def cases(component: str) -> list[Path]:
    """Files of promtool cases of a component: named as it, or beginning with its name."""
    return sorted(CASES.glob(f"{component.removesuffix('.yaml')}*.yaml"))


def alerts() -> Iterator[tuple[str, dict[str, Any]]]:
    for component in COMPONENTS:
        for rule in rules(component):
            if "alert" in rule:
                yield component, rule


ALERTS = [pytest.param(component, rule, id=rule["alert"]) for component, rule in alerts()]


def tool(*command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed (Debian package prometheus or prometheus-alertmanager)")
    done = subprocess.run(command, cwd=MONITORING, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def metrics_of(expression: str) -> set[str]:
    """Names of metrics in an expression; those of recording rules hold a colon."""
    bare = re.sub(r'"[^"]*"|\'[^\']*\'|\[[^]]*]|\{[^}]*}|\b(by|on|ignoring|without)\s*\([^)]*\)', " ", expression)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare))
    return {word for word in words - FUNCTIONS if "_" in word or word == "up"}


def test_there_are_rules_to_test() -> None:
    assert len(ALERTS) >= 16


def test_prometheus_takes_the_configuration() -> None:
    tool("promtool", "check", "config", "prometheus.yml")


def test_alertmanager_takes_the_configuration() -> None:
    tool("amtool", "check-config", "alertmanager.yml")


@pytest.mark.parametrize("component", COMPONENTS)
def test_alerts_fire_and_stay_silent_as_they_should(component: str) -> None:
    tool("promtool", "check", "rules", "--lint-fatal", f"rules/{component}")
    tool("promtool", "test", "rules", *map(str, cases(component)))


@pytest.mark.parametrize(("component", "rule"), ALERTS)
def test_each_alert_has_a_case_that_fires_and_one_that_is_silent(component: str, rule: dict[str, Any]) -> None:
    found = [
        case
        for path in cases(component)
        for group in yaml.safe_load(path.read_text())["tests"]
        for case in group["alert_rule_test"]
        if case["alertname"] == rule["alert"]
    ]
    assert [case for case in found if case["exp_alerts"]], "no case in which it fires"
    assert [case for case in found if not case["exp_alerts"]], "no case in which it is silent"


@pytest.mark.parametrize(("component", "rule"), ALERTS)
def test_each_alert_says_what_a_person_needs(component: str, rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
    assert (ROOT / rule["annotations"]["runbook_url"]).is_file()


def test_names_are_unique() -> None:
    names = [rule["alert"] for _, rule in alerts()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("component", COMPONENTS)
def test_rules_name_only_metrics_that_exist(component: str) -> None:
    recorded = {rule["record"] for rule in rules(component) if "record" in rule}
    for rule in rules(component):
        unknown = metrics_of(rule["expr"]) - set(METRICS) - OTHERS - recorded
        assert not unknown, f"{rule.get('alert') or rule['record']}: {unknown}"


def test_airflow_has_the_metrics_that_its_alerts_name() -> None:
    import airflow._shared.observability.metrics as package

    known = yaml.safe_load((Path(next(iter(package.__path__))) / "metrics_template.yaml").read_text())["metrics"]
    names = {"airflow_" + metric["name"].replace(".", "_"): metric["type"] for metric in known}
    assert names["airflow_scheduler_heartbeat"] == "counter"
    assert names["airflow_dag_processing_import_errors"] == "gauge"


def test_the_stated_alert_is_as_stated() -> None:
    content = yaml.safe_load((MONITORING / "rules" / "commodity_pipeline.yaml").read_text())
    (rule,) = [rule for _, rule in alerts() if rule["alert"] == "CommodityPipelineFailure"]
    assert content["groups"][0]["name"] == "production-workflows"
    assert rule in content["groups"][0]["rules"]
    assert rule["expr"] == "increase(batch_jobs_failed_total{job='commodity-price-pipeline'}[1h]) > 0"
    assert rule["for"] == "5m"
    assert rule["annotations"]["summary"] == "Commodity price pipeline failed"
    assert "{{ $labels.job }}" in rule["annotations"]["description"]
    assert "logs" in rule["annotations"]["description"]


def test_pushed_jobs_keep_their_label() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (gateway,) = [scrape for scrape in config["scrape_configs"] if scrape["job_name"] == "pushgateway"]
    assert gateway["honor_labels"] is True


def test_burn_rates_are_those_of_the_workbook() -> None:
    for component in ("batch.yaml", "engines.yaml"):
        burns = {rule["alert"]: rule["expr"] for _, rule in alerts() if "Burn" in rule["alert"] and _ == component}
        rates = re.findall(r"(?:ratio_increase|ratio_avg)(\w+) > ([\d.]+) \*", " ".join(burns.values()))
        assert rates == [
            ("1h", "14.4"), ("5m", "14.4"), ("6h", "6"), ("30m", "6"),
            ("1d", "3"), ("2h", "3"), ("3d", "1"), ("6h", "1"),
        ]  # fmt: skip


def test_secrets_are_files() -> None:
    text = (MONITORING / "alertmanager.yml").read_text()
    assert "slack_api_url_file:" in text
    assert not re.search(r"hooks\.slack\.com|xox[bp]-|(api_url|password|token):", text)


def test_every_runbook_belongs_to_an_alert_and_has_all_parts() -> None:
    names = {rule["alert"] for _, rule in alerts()}
    files = {path.stem for path in RUNBOOKS.glob("*.md") if path.stem[0].isupper()}
    assert files == names
    for name in sorted(names):
        text = (RUNBOOKS / f"{name}.md").read_text()
        parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert parts == ["Symptom", "Impact", "Checks", "Fix", "Escalation", "Verification"], name
        assert "```console" in text, f"{name} names no command"


def test_inhibitions_name_alerts_that_exist() -> None:
    config = yaml.safe_load((MONITORING / "alertmanager.yml").read_text())
    names = {rule["alert"] for _, rule in alerts()}
    for inhibition in config["inhibit_rules"]:
        matchers = inhibition["source_matchers"] + inhibition["target_matchers"]
        named = {
            name for m in matchers if m.startswith("alertname") for name in re.split(r"=~?", m)[1].strip().split("|")
        }
        assert named <= names
