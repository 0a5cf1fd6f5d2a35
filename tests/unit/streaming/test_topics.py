"""The catalogue, and what differs from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import fastavro
import jsonschema
import pytest

from marketdata import datasets
from marketdata.errors import UsageError
from marketdata.streaming import topics
from marketdata.streaming.topics import Topic

PRICES, LEDGER = "commodity-prices", "commodity-prices-ledger"
RECORDS = {
    PRICES, "commodity-aggregates", "commodity-features", "ml-predictions", "price-alerts", "pipeline-events",
    "data-quality-results", "platform-metrics", "model-events", "crypto-binance-trades-raw", "crypto-kraken-trades-raw",
}  # fmt: skip
DEAD_LETTERS = {"commodity-prices-dlq", "ml-predictions-dlq", "crypto-trades-dlq"}
DATASETS = datasets.DATASETS | datasets.DERIVED | datasets.EVENTS


@pytest.fixture
def prices() -> Topic:
    return next(topic for topic in topics.catalogue() if topic.name == PRICES)


def test_the_catalogue_keeps_the_promises_of_the_contract(settings_for: Callable[..., Any]) -> None:
    by_name = {topic.name: topic for topic in topics.catalogue()}
    assert by_name.keys() == RECORDS | {LEDGER} | DEAD_LETTERS
    assert len(by_name) == len(topics.catalogue()) == 15
    assert (by_name[LEDGER].partitions, by_name[LEDGER].config["retention.ms"]) == (1, "-1")
    for name in RECORDS | DEAD_LETTERS:
        days = 30 if name in DEAD_LETTERS else 7
        assert (by_name[name].partitions, by_name[name].config["retention.ms"]) == (3, str(days * 24 * 3600 * 1000))
    for topic in by_name.values():
        assert topic.replication_factor == 3
        assert topic.config["min.insync.replicas"] == "2"
        assert topic.config["message.timestamp.type"] == "LogAppendTime"
    assert topics.named(settings_for()) == list(topics.catalogue())


def test_every_dataset_with_a_topic_is_in_the_catalogue_and_the_trades_share_their_dead_letters(
    settings_for: Callable[..., Any],
) -> None:
    assert {topics.records_topic(settings_for(), dataset) for dataset in DATASETS.values()} == RECORDS
    for name in ("commodity_prices", "ml_predictions", "binance_raw_trade", "kraken_raw_trade"):
        assert topics.letters_topic(settings_for(), DATASETS[name]) in DEAD_LETTERS
    assert {topic.name for topic in topics.catalogue() if topic.format == "avro"} == {
        topics.records_topic(settings_for(), DATASETS[name]) for name in ("binance_raw_trade", "kraken_raw_trade")
    }


def test_every_record_has_a_schema_of_its_format_and_nothing_else_has_one() -> None:
    assert {topic.name for topic in topics.catalogue() if topic.value_schema()} == RECORDS
    for topic in topics.catalogue():
        schema = topic.value_schema() or {}
        dataset = DATASETS.get(topic.dataset or "")
        if topic.format == "avro":
            fastavro.parse_schema(schema)
            assert dataset is not None
            assert [field["name"] for field in schema["fields"]] == [column.name for column in dataset.columns]
        else:
            jsonschema.Draft202012Validator.check_schema(schema)
        if dataset is not None:
            names = {column.name for column in dataset.columns}
            assert {*dataset.key, dataset.event_time, dataset.message_key} <= names


def test_kafka_topic_renames_the_records_and_their_ledger(settings_for: Callable[..., Any]) -> None:
    settings = settings_for(kafka_topic="prices-of-tomorrow")
    dataset = datasets.get("commodity_prices")
    assert topics.records_topic(settings, dataset) == "prices-of-tomorrow"
    assert topics.ledger_topic(settings, dataset) == "prices-of-tomorrow-ledger"
    assert topics.letters_topic(settings, dataset) == "prices-of-tomorrow-dlq"
    renamed = {topic.name for topic in topics.named(settings)} - {topic.name for topic in topics.catalogue()}
    assert renamed == {"prices-of-tomorrow", "prices-of-tomorrow-ledger", "prices-of-tomorrow-dlq"}


def test_the_value_schema_is_the_dataset_s(prices: Topic) -> None:
    schema = prices.value_schema()
    assert schema is not None
    assert schema["properties"]["price"]["type"] == "number"
    assert schema["properties"]["timestamp"]["format"] == "date-time"


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (("partitions: 3", "partitions: 0"), "partitions"),
        (("retention.ms: -1", "retention.ms: 1000"), "retention.ms"),
        (("role: ledger", "role: legder"), "role"),
        (("replication_factor: 3", "replication_factor: 1"), "replication_factor"),
        (("doc:", "dok:"), "'doc' is a required"),
        (("format: bytes", "format: json"), "format"),
        (("format: avro", "format: bytes"), "format"),
        (("    dataset: price_alerts\n", ""), "'dataset' is a required"),
    ],
)
def test_a_wrong_catalogue_is_refused_by_name(
    break_it: tuple[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(topics.__file__).with_name("topics.yaml")
    (tmp_path / "topics.yaml").write_text(file.read_text().replace(*break_it))

    def package(_name: str) -> Traversable:
        return tmp_path

    monkeypatch.setattr(topics, "files", package)
    topics.catalogue.cache_clear()
    try:
        with pytest.raises(UsageError, match=says):
            topics.catalogue()
    finally:
        topics.catalogue.cache_clear()


def test_a_topic_that_is_as_wanted_has_no_difference(prices: Topic) -> None:
    assert list(topics.differences(prices, 3, 3, {**prices.config, "segment.ms": "1"})) == []


@pytest.mark.parametrize(
    ("partitions", "replicas", "actual", "effect"),
    [
        (2, 3, {}, "safe"),
        (4, 3, {}, "destructive"),
        (3, 1, {}, "destructive"),
        (3, 3, {"retention.ms": "1000"}, "safe"),
        (3, 3, {"retention.ms": "604800001"}, "destructive"),
        (3, 3, {"retention.ms": "-1"}, "destructive"),
        (3, 3, {"cleanup.policy": "compact"}, "destructive"),
        (3, 3, {"min.insync.replicas": "1"}, "safe"),
        (3, 3, {"min.insync.replicas": "3"}, "destructive"),
        (3, 3, {"message.timestamp.type": "CreateTime"}, "safe"),
    ],
)
def test_what_would_lose_data_or_durability_is_destructive(
    partitions: int, replicas: int, actual: dict[str, str], effect: str, prices: Topic
) -> None:
    (difference,) = topics.differences(prices, partitions, replicas, {**prices.config, **actual})
    assert difference.effect == effect
    assert prices.name in str(difference)
    assert ("would lose" in str(difference)) == (effect == "destructive")


def test_unlimited_retention_is_never_shorter(prices: Topic) -> None:
    for_ever = replace(prices, config={**prices.config, "retention.ms": "-1"})
    (difference,) = topics.differences(for_ever, 3, 3, {**for_ever.config, "retention.ms": "604800000"})
    assert difference.effect == "safe"
