"""Commodity features: the contract of topic ``commodity-features``, what a model may know of a commodity on a day."""

from __future__ import annotations

from marketdata.datasets.dataset import DATE, DOUBLE, INTEGER, TEXT, TIMESTAMP, Column, Dataset

COMMODITY_FEATURES = Dataset(
    name="commodity_features",
    version=1,
    doc="Features of each commodity and day, from prices up to that day; a later revision replaces an earlier one.",
    columns=(
        Column("tenant", TEXT, "Tenant the record belongs to."),
        Column("commodity", TEXT, "Gold, Silver, Copper, Oil or Natural Gas."),
        Column("price_date", DATE, "Day the features are of, UTC."),
        Column("close_price", "decimal(18,6)", "Last price of the day."),
        Column("ma_7d", "decimal(18,6)", "Mean of the closes of 7 days.", required=False),
        Column("ma_30d", "decimal(18,6)", "Mean of the closes of 30 days.", required=False),
        Column("volatility_7d", DOUBLE, "Standard deviation of the daily log returns of 7 days.", required=False),
        Column("volatility_30d", DOUBLE, "Standard deviation of the daily log returns of 30 days.", required=False),
        Column("trend_slope_7d", DOUBLE, "Slope of a line through the closes of 7 days, per day.", required=False),
        Column("trend_direction", INTEGER, "-1, 0 or 1.", required=False),
        Column("performance_1d", DOUBLE, "Change since the day before, per cent.", required=False),
        Column("performance_7d", DOUBLE, "Change over 7 days, per cent.", required=False),
        Column("performance_30d", DOUBLE, "Change over 30 days, per cent.", required=False),
        Column("feature_version", INTEGER, "Version of the computation."),
        Column("updated_at", TIMESTAMP, "When this revision was computed, UTC."),
        Column("schema_version", INTEGER, "Version of this contract."),
    ),
    key=("tenant", "commodity", "price_date"),
    event_time="price_date",
    topic="commodity-features",
    message_key="commodity",
)
