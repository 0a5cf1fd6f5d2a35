"""Commodity aggregates: the contract of topic ``commodity-aggregates`` and table ``commodity_aggregates``."""

from __future__ import annotations

from marketdata.datasets.dataset import INTEGER, TEXT, TIMESTAMP, Column, Dataset

COMMODITY_AGGREGATES = Dataset(
    name="commodity_aggregates",
    version=1,
    doc="What the prices of each series did in each minute of event time; a later revision replaces an earlier one.",
    columns=(
        Column("record_id", TEXT, "SHA-256 of tenant, dataset, source, series, frequency and window start."),
        Column("tenant", TEXT, "Tenant the record belongs to."),
        Column("commodity", TEXT, "Gold, Silver, Copper, Oil or Natural Gas.", business=True),
        Column("series", TEXT, "What exactly is priced.", business=True),
        Column("frequency", TEXT, "daily or monthly.", business=True),
        Column("source", TEXT, "Provider of the prices.", business=True),
        Column("window_start", TIMESTAMP, "First moment of the minute, UTC.", business=True),
        Column("currency", TEXT, "Of the last price.", business=True),
        Column("unit", TEXT, "Of the last price.", business=True),
        Column("count", INTEGER, "Prices in that currency and unit; the figures are of these.", business=True),
        Column("others", INTEGER, "Prices in another currency or unit; in none of the figures.", business=True),
        Column("first", "decimal(18,6)", "Earliest price by event time.", business=True),
        Column("last", "decimal(18,6)", "Latest price by event time.", business=True),
        Column("min", "decimal(18,6)", "Lowest price.", business=True),
        Column("max", "decimal(18,6)", "Highest price.", business=True),
        Column("total", "decimal(38,6)", "Sum of the prices.", business=True),
        Column("average", "decimal(18,6)", "Arithmetic mean, rounded half to even.", business=True),
        Column(
            "volatility",
            "decimal(18,12)",
            "Realised volatility: root of the sum of squared log returns from price to price; of two prices or more.",
            required=False,
            business=True,
        ),
        Column("as_of", TIMESTAMP, "When this revision was computed, UTC; later than the revision before."),
        Column("batch_id", TEXT, "The revision's place in the consumer's sequence: partition-number."),
        Column("content_hash", TEXT, "SHA-256 of the business columns in canonical text."),
        Column("schema_version", INTEGER, "Version of this contract."),
    ),
    key=("source", "series", "frequency", "window_start"),
    event_time="window_start",
    topic="commodity-aggregates",
    message_key="commodity",
)
