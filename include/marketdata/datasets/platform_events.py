"""What the platform says of itself: the contracts of five topics that are no tables."""

from __future__ import annotations

from marketdata.datasets.dataset import DOUBLE, INTEGER, LONG, TEXT, TIMESTAMP, Column, Dataset

_EVENT_TIME = Column("event_time", TIMESTAMP, "When it happened, UTC.")
_TENANT = Column("tenant", TEXT, "Tenant it is about.")
_VERSION = Column("schema_version", INTEGER, "Version of this contract.")

PRICE_ALERTS = Dataset(
    name="price_alerts",
    version=1,
    doc="Recent prices that moved far, each once.",
    columns=(
        _TENANT,
        Column("commodity", TEXT, "Gold, Silver, Copper, Oil or Natural Gas."),
        Column("source", TEXT, "Provider of the prices."),
        Column("series", TEXT, "What exactly is priced."),
        Column("frequency", TEXT, "daily or monthly."),
        Column("window_start", TIMESTAMP, "First moment of the minute the price is of, UTC."),
        Column("price", "decimal(18,6)", "Last price of that minute."),
        Column("currency", TEXT, "ISO 4217 code."),
        Column("unit", TEXT, "Unit of the price."),
        Column("move_percent", DOUBLE, "How far it moved, per cent."),
        Column("since", TEXT, "From where it moved: within one minute, or since the price before."),
        _EVENT_TIME,
        _VERSION,
    ),
    key=("tenant", "source", "series", "frequency", "window_start"),
    event_time="event_time",
    topic="price-alerts",
    message_key="commodity",
)

PIPELINE_EVENTS = Dataset(
    name="pipeline_events",
    version=1,
    doc="Tries of a run's steps, as each starts and ends.",
    columns=(
        _TENANT,
        Column("dataset", TEXT, "Dataset the run is about."),
        Column("run_id", TEXT, "Airflow run."),
        Column("step", TEXT, "Step of the pipeline."),
        Column("try_number", INTEGER, "Try of the step, from 1."),
        Column("state", TEXT, "running, done or failed."),
        Column("exit_code", INTEGER, "How the try ended.", required=False),
        Column("error", TEXT, "Why it failed, one line.", required=False),
        _EVENT_TIME,
        _VERSION,
    ),
    key=("tenant", "dataset", "run_id", "step", "try_number", "state"),
    event_time="event_time",
    topic="pipeline-events",
    message_key="run_id",
)

DATA_QUALITY_RESULTS = Dataset(
    name="data_quality_results",
    version=1,
    doc="What the quality gate said of a batch, rule by rule.",
    columns=(
        _TENANT,
        Column("dataset", TEXT, "Dataset of the batch."),
        Column("batch_id", TEXT, "Batch that was judged."),
        Column("run_id", TEXT, "Airflow run that had it judged."),
        Column("rule", TEXT, "Rule, as docs/reference/rules.md names it."),
        Column("level", TEXT, "row: it quarantines rows; dataset: it stops the run."),
        Column("checked", LONG, "Rows the rule was asked about."),
        Column("failed", LONG, "Rows that broke it."),
        Column("observed", TEXT, "What it saw, where the rule is of the dataset.", required=False),
        _EVENT_TIME,
        _VERSION,
    ),
    key=("tenant", "dataset", "batch_id", "rule"),
    event_time="event_time",
    topic="data-quality-results",
    message_key="dataset",
)

PLATFORM_METRICS = Dataset(
    name="platform_metrics",
    version=1,
    doc="Samples of the metric catalogue.",
    columns=(
        Column("metric", TEXT, "Metric, as Prometheus knows it."),
        Column("labels", TEXT, "Its labels, a JSON object as text."),
        Column("value", DOUBLE, "The sample."),
        _EVENT_TIME,
        _VERSION,
    ),
    key=("metric", "labels", "event_time"),
    event_time="event_time",
    topic="platform-metrics",
    message_key="metric",
)

MODEL_EVENTS = Dataset(
    name="model_events",
    version=1,
    doc="What became of a model: trained, promoted, rejected, drifted.",
    columns=(
        _TENANT,
        Column("model_name", TEXT, "Model in the registry of models."),
        Column("model_version", TEXT, "Its version there."),
        Column("event", TEXT, "trained, promoted, rejected or drifted."),
        Column("run_id", TEXT, "Airflow run that did it.", required=False),
        Column("reason", TEXT, "Why, one line.", required=False),
        _EVENT_TIME,
        _VERSION,
    ),
    key=("tenant", "model_name", "model_version", "event", "event_time"),
    event_time="event_time",
    topic="model-events",
    message_key="model_name",
)
