"""Commodity prices: the contract of topic ``commodity-prices`` and table ``commodity_prices``."""

from __future__ import annotations

from datetime import date

from marketdata.datasets.dataset import DATE, INTEGER, TEXT, TIMESTAMP, Column, Dataset, KnownEvent

_MAGNITUDES = (
    "CASE WHEN regexp_matches({0}, '^[0-9.]+[KMB]$') THEN CAST(TRY_CAST(left({0}, length({0}) - 1) AS DECIMAL(14,4)) * "
    "CASE right({0}, 1) WHEN 'K' THEN 1000 WHEN 'M' THEN 1000000 ELSE 1000000000 END AS VARCHAR) ELSE number({0}) END"
)
"""Volumes as data vendors write them: 160.03K, 1.2M."""

COMMODITY_PRICES = Dataset(
    name="commodity_prices",
    version=1,
    doc="Prices of five commodities, by provider, series and frequency.",
    columns=(
        Column("record_id", TEXT, "SHA-256 of tenant, dataset, source, series, frequency and event time."),
        Column("tenant", TEXT, "Tenant the record belongs to."),
        Column("commodity", TEXT, "Gold, Silver, Copper, Oil or Natural Gas.", raw=True, business=True),
        Column("series", TEXT, "What exactly is priced: WTI and Brent are two series of Oil.", raw=True, business=True),
        Column("frequency", TEXT, "daily or monthly.", raw=True, business=True),
        Column("price", "decimal(18,6)", "Price of one unit in the currency.", raw=True, business=True),
        Column("currency", TEXT, "ISO 4217 code.", raw=True, business=True),
        Column("unit", TEXT, "troy_oz, lb, bbl, mmbtu or tonne.", raw=True, business=True),
        Column(
            "volume",
            "decimal(18,4)",
            "Traded volume, where the source says one.",
            required=False,
            raw=True,
            business=True,
            parse=_MAGNITUDES,
        ),
        Column("source", TEXT, "Provider of the price.", raw=True, business=True),
        Column("event_time", TIMESTAMP, "When the price was valid, UTC.", raw=True, business=True, message="timestamp"),
        Column("price_date", DATE, "Day of the event time, UTC."),
        Column(
            "as_of", TIMESTAMP, "When the source said it: vintage or response date, else the extraction, UTC.", raw=True
        ),
        Column("ingested_at", TIMESTAMP, "When the batch was extracted, UTC."),
        Column("run_id", TEXT, "Airflow run that brought this revision."),
        Column("batch_id", TEXT, "Batch that brought this revision."),
        Column("content_hash", TEXT, "SHA-256 of the business columns in canonical text."),
        Column("schema_version", INTEGER, "Version of this contract."),
    ),
    key=("source", "series", "frequency", "event_time"),
    event_time="event_time",
    topic="commodity-prices",
    message_key="commodity",
    aliases={
        "commodity": {
            "gold": "Gold",
            "silver": "Silver",
            "copper": "Copper",
            "oil": "Oil",
            "crude oil": "Oil",
            "crude": "Oil",
            "natural gas": "Natural Gas",
            "natural_gas": "Natural Gas",
            "natgas": "Natural Gas",
        },
        "unit": {
            "troy_oz": "troy_oz",
            "troy oz": "troy_oz",
            "oz t": "troy_oz",
            "lb": "lb",
            "lbs": "lb",
            "pound": "lb",
            "bbl": "bbl",
            "barrel": "bbl",
            "mmbtu": "mmbtu",
            "tonne": "tonne",
            "mt": "tonne",
            "metric ton": "tonne",
        },
        "currency": {"usd": "USD", "us dollar": "USD", "$": "USD"},
        "frequency": {"daily": "daily", "d": "daily", "monthly": "monthly", "m": "monthly"},
    },
    ranges={
        ("Gold", "troy_oz"): ("10", "20000"),
        ("Silver", "troy_oz"): ("0.1", "1000"),
        ("Copper", "lb"): ("0.1", "50"),
        ("Copper", "tonne"): ("100", "100000"),
        ("Oil", "bbl"): ("0.5", "500"),
        ("Natural Gas", "mmbtu"): ("0.05", "100"),
    },
    events=(
        KnownEvent(
            "WTI", date(2020, 4, 20), "WTI settled below zero when the May 2020 contract expired with storage full"
        ),
        KnownEvent("CL=F", date(2020, 4, 20), "the May 2020 WTI future settled below zero with storage full"),
    ),
)
