from __future__ import annotations

import jsonschema
import pyarrow as pa
import pytest

from marketdata import datasets
from marketdata.datasets import COMMODITY_PRICES, quarantine
from marketdata.errors import UsageError


def test_the_message_has_the_stated_fields():
    schema = COMMODITY_PRICES.message_schema()
    assert {"commodity", "price", "timestamp", "record_id", "currency", "unit", "volume", "source", "run_id",
            "ingested_at", "schema_version", "tenant"} <= set(schema["properties"])  # fmt: skip
    message = dict.fromkeys(schema["required"], "x") | {"price": 2000.5, "schema_version": 1, "volume": None}
    jsonschema.validate(message, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(message | {"price": "2000.5"}, schema)


def test_arrow_schemas_follow_the_columns():
    schema = COMMODITY_PRICES.arrow_schema()
    assert schema.field("price").type == pa.decimal128(18, 6)
    assert schema.field("event_time").type == pa.timestamp("us", "UTC")
    assert schema.field("volume").nullable
    assert not schema.field("price").nullable
    assert set(COMMODITY_PRICES.raw_schema().names) >= {"price", "event_time", "origin", "origin_row"}


def test_no_clock_and_no_run_enters_the_content_hash():
    names = {column.name for column in COMMODITY_PRICES.business_columns}
    assert names.isdisjoint({"as_of", "ingested_at", "run_id", "batch_id", "content_hash", "record_id"})
    assert set(COMMODITY_PRICES.key) <= names


def test_the_quarantine_table_is_derived():
    refused = quarantine(COMMODITY_PRICES)
    assert refused.name == "commodity_prices_quarantine"
    assert {"quarantine_id", "reason", "value", "origin"} <= {column.name for column in refused.columns}


def test_an_unknown_dataset_is_a_usage_error_that_lists_the_known_ones():
    with pytest.raises(UsageError, match="no dataset is named 'gold'") as caught:
        datasets.get("gold")
    assert "commodity_prices" in caught.value.remedy
