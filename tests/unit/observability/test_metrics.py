"""The catalogue is what is stated, and nothing else can be pushed."""

from __future__ import annotations

import pytest

from marketdata.errors import UsageError
from marketdata.observability.metrics import (
    DATASETS_OF_DAGS,
    METRICS,
    NAMESPACE,
    Sample,
    catalogue,
    registry,
)

STATED = {
    "batch_jobs_total": ("counter", {"namespace", "job"}),
    "batch_jobs_success_total": ("counter", {"namespace", "job"}),
    "batch_jobs_failed_total": ("counter", {"namespace", "job"}),
    "batch_job_duration_seconds": ("gauge", {"namespace", "job"}),
    "batch_job_last_success_timestamp_seconds": ("gauge", {"namespace", "job"}),
    "batch_job_last_run_success": ("gauge", {"namespace", "job"}),
    # By commodity as well, and by place in the namespace: an alert has to name the commodity that fell silent.
    "batch_job_records": ("gauge", {"namespace", "job", "commodity", "phase"}),
    # The grouping key of the Pushgateway is on everything that is pushed.
    "gx_expectations_total": ("counter", {"job", "suite", "result"}),
    "kafka_producer_records_total": ("counter", {"job", "topic"}),
    "slack_notifications_total": ("counter", {"job", "outcome"}),
}


def test_the_catalogue_is_what_is_stated() -> None:
    assert {metric.name: (metric.kind, set(metric.labels)) for metric in catalogue()} == STATED


def test_counters_end_in_total_and_gauges_do_not() -> None:
    for metric in catalogue():
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name


def test_the_namespace_is_that_of_the_pods() -> None:
    from marketdata.orchestration import policy

    assert policy.NAMESPACE == NAMESPACE


def test_every_dag_that_brings_a_dataset_is_known_before_its_first_run() -> None:
    import re
    from pathlib import Path

    for path in (Path(__file__).resolve().parents[3] / "dags").glob("*.py"):
        text = path.read_text()
        dataset = re.search(r'"--dataset", "(\w+)"', text)
        dag = re.search(r'dag_id="([\w-]+)"', text)
        if dataset and dag and '"extract"' in text:
            assert DATASETS_OF_DAGS[dag[1]] == dataset[1], path


@pytest.mark.parametrize(
    "sample",
    [
        Sample("made_up_total", 1, {}),
        Sample("batch_jobs_total", 1, {}),
        Sample("batch_jobs_total", 1, {"commodity": "Oil"}),
    ],
)
def test_what_the_catalogue_does_not_have_cannot_be_pushed(sample: Sample) -> None:
    with pytest.raises(UsageError, match="not in the metric catalogue"):
        registry([sample])


def test_the_text_has_help_type_and_value() -> None:
    from prometheus_client import generate_latest

    text = generate_latest(registry([Sample("batch_jobs_failed_total", 3, {"namespace": NAMESPACE})])).decode()
    assert text.splitlines() == [
        f"# HELP batch_jobs_failed_total {METRICS['batch_jobs_failed_total'].doc}",
        "# TYPE batch_jobs_failed_total counter",
        'batch_jobs_failed_total{namespace="production"} 3.0',
    ]
