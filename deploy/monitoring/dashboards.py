"""The dashboards as code: ``python deploy/monitoring/dashboards.py [--check]`` writes `dashboards/*.json` beside it.

Every query names metrics of the catalogue or recording rules; the tests run each of them against a real Prometheus.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, ThresholdsConfig
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).with_name("dashboards")
DATA = DataSourceRef(type_val="prometheus", uid="${datasource}")
PIPELINE = "job='commodity-price-pipeline'"


def _query(expression: str, legend: str, *, instant: bool = False) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).legend_format(legend).datasource(DATA)
    return query.instant() if instant else query.range()


def _thresholds(*steps: tuple[float | None, str]) -> ThresholdsConfig:
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(value, color) for value, color in steps])


def _number(
    title: str,
    says: str,
    expression: str,
    unit: str,
    *steps: tuple[float | None, str],
    words: tuple[str, str] = ("", ""),
) -> Any:
    """One value, coloured by threshold; `words` are what 0 and 1 mean."""
    meanings = {str(value): ValueMappingResult(text=text) for value, text in enumerate(words) if text}
    panel = (
        stat.Panel().title(title).description(says).unit(unit).datasource(DATA).height(5).span(6)
        .with_target(_query(expression, "", instant=True).ref_id("A"))
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(*steps))
    )  # fmt: skip
    return panel.mappings([ValueMap(options=meanings)]) if meanings else panel


def _graph(title: str, says: str, unit: str, *queries: tuple[str, str], span: int = 12) -> Any:
    """Values over time."""
    panel = timeseries.Panel().title(title).description(says).unit(unit).datasource(DATA).height(8).span(span)
    for letter, (expression, legend) in zip("ABCDEF", queries, strict=False):
        panel = panel.with_target(_query(expression, legend).ref_id(letter))
    return panel


def _table(title: str, says: str, expression: str) -> Any:
    return (
        table.Panel().title(title).description(says).datasource(DATA).height(8).span(12)
        .with_target(_query(expression, "", instant=True).ref_id("A").format(PromQueryFormat.TABLE))
    )  # fmt: skip


def _board(title: str, uid: str, says: str, period: str) -> Dashboard:
    return (
        Dashboard(title).uid(uid).description(says).tags(["marketdata"]).timezone("utc").refresh("1m")
        .time(period, "now").readonly()
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )  # fmt: skip


def pipeline() -> Dashboard:
    """Every run, every record count, every age of the commodity price pipeline."""
    since = f"time() - batch_job_last_success_timestamp_seconds{{{PIPELINE}}}"
    quarantined = f"sum(batch_job_records{{{PIPELINE},phase='quarantined'}})"
    extracted = f"sum(batch_job_records{{{PIPELINE},phase='extracted'}})"
    return (
        _board("Commodity Price Pipeline", "commodity-price-pipeline", "Runs, records and freshness.", "now-7d")
        .with_panel(_number("Last run", "1 is a success.", f"batch_job_last_run_success{{{PIPELINE}}}", "short",
                            (None, "red"), (1, "green"), words=("failed", "success")))
        .with_panel(_number("Time since last success", "PipelineMissed fires at 26 h.", since, "s",
                            (None, "green"), (25 * 3600, "orange"), (26 * 3600, "red")))
        .with_panel(_number("Quarantined in the last run", "QuarantineRatioHigh fires at 1 %; the gate stops at 5 %.",
                            f"{quarantined} / clamp_min({extracted}, 1)", "percentunit",
                            (None, "green"), (0.01, "orange"), (0.05, "red")))
        .with_panel(_number("Duration of the last run", "5 to 15 minutes are usual, an hour is the limit.",
                            f"batch_job_duration_seconds{{{PIPELINE}}}", "s",
                            (None, "green"), (900, "orange"), (3600, "red")))
        .with_panel(_graph("Pipeline Execution Status", "Runs that ended within 24 h.", "short",
                           (f"increase(batch_jobs_total{{namespace='production',{PIPELINE}}}[24h])", "ended"),
                           (f"increase(batch_jobs_failed_total{{{PIPELINE}}}[24h])", "failed")))
        .with_panel(_graph("Success Rate", "Successes per second, as stated; the share is beside it.", "cps",
                           (f"rate(batch_jobs_success_total{{{PIPELINE}}}[1h])", "successes/s"), span=6))
        .with_panel(_graph("Success Ratio", "Successes of all runs; 99 % is promised.", "percentunit",
                           (f"sum(batch_jobs_success_total{{{PIPELINE}}}) / (sum(batch_jobs_total{{{PIPELINE}}}) > 0)",
                            "since the beginning"), span=6))
        .with_panel(_graph("Kafka Messages Produced", "Records published per second.", "cps",
                           ("rate(kafka_producer_records_total{topic='commodity-prices'}[5m])", "{{topic}}")))
        .with_panel(_graph("Records of the last run", "By phase, all commodities.", "short",
                           (f"sum by (phase) (batch_job_records{{{PIPELINE}}})", "{{phase}}")))
        .with_panel(_table("Records by commodity", "Of the last run that got so far.",
                           f"sum by (commodity, phase) (batch_job_records{{{PIPELINE}}})"))
        .with_panel(_graph("Expectations judged", "Great Expectations by result, within 24 h.", "short",
                           (f"sum by (suite, result) (increase(gx_expectations_total{{{PIPELINE}}}[24h]))",
                            "{{suite}} {{result}}")))
    )  # fmt: skip


def overview() -> Dashboard:
    """What the platform stands on, what is promised, and what is wrong."""
    return (
        _board("Overview", "overview", "Engines, promises, alerts and the monitoring itself.", "now-24h")
        .with_panel(_number("Alerts firing", "Of any severity.", "sum(ALERTS{alertstate='firing'}) or vector(0)",
                            "short", (None, "green"), (1, "red")))
        .with_panel(_number("Error budget of runs left", "Of the 1 % of runs that may fail in 30 days.",
                            "namespace:batch_jobs_error_budget:remaining30d", "percentunit",
                            (None, "red"), (0, "orange"), (0.25, "green")))
        .with_panel(_number("Error budget of engines left", "Of the 43.2 minutes in 30 days; the worst engine.",
                            "min(engine:error_budget:remaining30d)", "percentunit",
                            (None, "red"), (0, "orange"), (0.25, "green")))
        .with_panel(_number("Monitoring up", "The least of Prometheus, Pushgateway and Alertmanager.", "min(up)",
                            "short", (None, "red"), (1, "green"), words=("down", "up")))
        .with_panel(_graph("Engines reachable", "Probed by TCP.", "bool_on_off", ("probe_success", "{{engine}}")))
        .with_panel(_graph("Runs per day", "All DAGs.", "short",
                           ("sum by (job) (increase(batch_jobs_total[24h]))", "{{job}}")))
        .with_panel(_graph("Failed runs, share", "The windows of the burn-rate alerts; 1 % is promised.", "percentunit",
                           ("namespace:batch_jobs_failed:ratio_increase1h", "1 h"),
                           ("namespace:batch_jobs_failed:ratio_increase1d", "1 d"),
                           ("namespace:batch_jobs_failed:ratio_increase30d", "30 d")))
        .with_panel(_graph("Slack messages about runs", "Sent, failed tries, given up.", "short",
                           ("sum by (outcome) (slack_notifications_total)", "{{outcome}}")))
        .with_panel(_table("Last run of each DAG", "1 is a success.", "batch_job_last_run_success"))
        .with_panel(_graph("Age of the pushed metrics", "Since the last push of each DAG.", "s",
                           ("time() - push_time_seconds", "{{job}}")))
    )  # fmt: skip


def documents() -> dict[str, str]:
    """File name and JSON of each dashboard."""
    boards = {"commodity-price-pipeline.json": pipeline(), "overview.json": overview()}
    return {name: JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n" for name, board in boards.items()}


def main() -> int:
    """Write the files, or with ``--check`` fail where one is stale."""
    stale = [name for name, text in documents().items() if _differs(FOLDER / name, text)]
    if "--check" in sys.argv:
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text)
    return 0


def _differs(path: Path, text: str) -> bool:
    return not path.exists() or path.read_text() != text


if __name__ == "__main__":
    sys.exit(main())
