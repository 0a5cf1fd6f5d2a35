from __future__ import annotations

import jsonschema
import pyarrow as pa
import pytest

from marketdata import datasets
from marketdata.datasets import COMMODITY_PRICES, quarantine
from marketdata.datasets.ml_predictions import ML_PREDICTIONS
from marketdata.datasets.raw_trades import BINANCE_RAW_TRADE, KRAKEN_RAW_TRADE
from marketdata.errors import UsageError


def test_the_message_has_the_stated_fields():
    schema = COMMODITY_PRICES.message_schema()
    assert {"commodity", "price", "timestamp", "record_id", "currency", "unit", "volume", "source", "run_id",
            "ingested_at", "schema_version", "tenant"} <= set(schema["properties"])  # fmt: skip
    message = dict.fromkeys(schema["required"], "x") | {"price": 2000.5, "schema_version": 1, "volume": None}
    jsonschema.validate(message, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(message | {"price": "2000.5"}, schema)


def test_a_prediction_has_the_stated_fields():
    assert [column.name for column in ML_PREDICTIONS.columns if not column.required] == ["actual_price"]
    assert {column.name for column in ML_PREDICTIONS.columns} == {
        *("prediction_id", "tenant", "commodity", "predicted_at", "target_date", "predicted_price", "actual_price"),
        *("predicted_direction", "confidence", "model_name", "model_version", "latency_ms", "input_hash"),
        *("source_record_id", "event_time", "schema_version"),
    }
    assert ML_PREDICTIONS.message_key == "commodity"


@pytest.mark.parametrize(
    ("dataset", "name", "types"),
    [
        (BINANCE_RAW_TRADE, "BinanceRawTrade", {
            "event_type": "string", "event_time_ms": "long", "symbol": "string", "trade_id": "long", "price": "string",
            "quantity": "string", "trade_time_ms": "long", "is_buyer_maker": "boolean", "ingestion_timestamp": "long"}),
        (KRAKEN_RAW_TRADE, "KrakenRawTrade", {
            "symbol": "string", "price": "string", "quantity": "string", "trade_time_seconds": "double",
            "side": "string", "order_type": "string", "misc": "string", "ingestion_timestamp": "long"}),
    ],
)  # fmt: skip
def test_a_raw_trade_has_the_stated_fields_in_avro(dataset, name, types):
    schema = dataset.avro_schema()
    assert schema["name"] == name
    plain = {field["name"]: field["type"] for field in schema["fields"]}
    assert plain.pop("ingestion_timestamp") == {"type": "long", "logicalType": "timestamp-micros"}
    assert plain | {"ingestion_timestamp": "long"} == types


def test_what_may_be_missing_is_null_by_default_in_avro():
    fields = {field["name"]: field for field in COMMODITY_PRICES.avro_schema()["fields"]}
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 4}
    assert fields["volume"]["type"] == ["null", decimal]
    assert fields["volume"]["default"] is None
    assert "default" not in fields["price"]
    assert fields["timestamp"]["type"]["logicalType"] == "timestamp-micros"


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
