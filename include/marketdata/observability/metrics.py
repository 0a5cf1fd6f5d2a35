"""The metric catalogue: every metric this project pushes, said once, and its text for a Pushgateway.

Prometheus keeps the label ``job`` for itself: here it is the grouping key of the Pushgateway, the DAG's id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from marketdata.errors import UsageError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

NAMESPACE = "production"
"""The Kubernetes namespace of every task, and so the value of label ``namespace``."""

DATASETS_OF_DAGS: Mapping[str, str] = MappingProxyType({"commodity-price-pipeline": "commodity_prices"})
"""DAG → the dataset its run record is about. These DAGs are known before they have run once."""

PHASES = ("extracted", "quarantined", "published", "loaded")
"""Values of label ``phase``, in the order of the pipeline."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        labels: all of them, the grouping key ``job`` included.
        doc: one line for people; it is the metric's HELP.
    """

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    doc: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric("batch_jobs_total", "counter", ("namespace", "job"), "Runs that ended; a cleared run counts again."),
        Metric("batch_jobs_success_total", "counter", ("namespace", "job"), "Runs that ended well."),
        Metric("batch_jobs_failed_total", "counter", ("namespace", "job"), "Runs that failed."),
        Metric("batch_job_duration_seconds", "gauge", ("namespace", "job"), "How long the last run took."),
        Metric(
            "batch_job_last_success_timestamp_seconds",
            "gauge",
            ("namespace", "job"),
            "When the last successful run ended, Unix time; absent before the first one.",
        ),
        Metric("batch_job_last_run_success", "gauge", ("namespace", "job"), "1 if the last run ended well, else 0."),
        Metric(
            "batch_job_records",
            "gauge",
            ("namespace", "job", "commodity", "phase"),
            "Rows of the last run that got so far: extracted, quarantined, published, loaded.",
        ),
        Metric(
            "gx_expectations_total",
            "counter",
            ("job", "suite", "result"),
            "Expectations judged; result success or failure.",
        ),
        Metric(
            "slack_notifications_total",
            "counter",
            ("job", "outcome"),
            "Messages to Slack: sent, abandoned after 24 h, and failed tries.",
        ),
        Metric(
            "kafka_producer_records_total", "counter", ("job", "topic"), "Records published, each batch counted once."
        ),
    )
}


@dataclass(frozen=True)
class Sample:
    """One value of a metric; `labels` are those beside the grouping key."""

    metric: str
    value: float
    labels: Mapping[str, str]


def catalogue() -> list[Metric]:
    """Every metric, in the order of the reference page."""
    return list(METRICS.values())


def registry(samples: Iterable[Sample]) -> CollectorRegistry:
    """The samples as a registry that the Prometheus client can push.

    Raises:
        UsageError: a sample is not as the catalogue says.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    families: dict[str, Any] = {}
    for sample in samples:
        metric = METRICS.get(sample.metric)
        if metric is None or {*sample.labels, "job"} != set(metric.labels):
            raise UsageError(f"{sample.metric} with labels {sorted(sample.labels)} is not in the metric catalogue")
        labels = [name for name in metric.labels if name != "job"]
        family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        families.setdefault(metric.name, family(metric.name, metric.doc, labels=labels)).add_metric(
            [sample.labels[name] for name in labels], sample.value
        )

    class _Collected:
        def collect(self) -> Iterable[Any]:
            return families.values()

    found = CollectorRegistry()
    found.register(_Collected())
    return found
