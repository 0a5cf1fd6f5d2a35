"""Predictions: the contract of topic ``ml-predictions``, what a model said of a price when it arrived."""

from __future__ import annotations

from marketdata.datasets.dataset import DATE, DOUBLE, INTEGER, TEXT, TIMESTAMP, Column, Dataset

ML_PREDICTIONS = Dataset(
    name="ml_predictions",
    version=1,
    doc="Predictions of each commodity's next price, by the record they were made from and the model that made them.",
    columns=(
        Column("prediction_id", TEXT, "UUID of the prediction."),
        Column("tenant", TEXT, "Tenant the record belongs to."),
        Column("commodity", TEXT, "Gold, Silver, Copper, Oil or Natural Gas."),
        Column("source_record_id", TEXT, "record_id of the price it was made from."),
        Column("event_time", TIMESTAMP, "When that price was valid, UTC."),
        Column("predicted_at", TIMESTAMP, "When the model said it, UTC."),
        Column("target_date", DATE, "Day it is said of."),
        Column("predicted_price", "decimal(18,6)", "Price it says."),
        Column("predicted_direction", INTEGER, "-1, 0 or 1."),
        Column("confidence", DOUBLE, "From 0 to 1."),
        Column("model_name", TEXT, "Model in the registry of models."),
        Column("model_version", TEXT, "Its version there."),
        Column("latency_ms", DOUBLE, "How long the model took, milliseconds."),
        Column("actual_price", "decimal(18,6)", "What it came to, once that is known.", required=False),
        Column("input_hash", TEXT, "SHA-256 of the features the model was given."),
        Column("schema_version", INTEGER, "Version of this contract."),
    ),
    key=("prediction_id",),
    event_time="event_time",
    topic="ml-predictions",
    message_key="commodity",
)
