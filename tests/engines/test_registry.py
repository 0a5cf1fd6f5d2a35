"""The topics' schemas in a real registry: derived from the datasets, guarded, and what Avro messages are read by."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pyarrow as pa
import pytest
import requests

from marketdata.datasets import COMMODITY_PRICES
from marketdata.datasets.raw_trades import BINANCE_RAW_TRADE, KRAKEN_RAW_TRADE
from marketdata.errors import UnavailableError, UsageError
from marketdata.settings import Settings
from marketdata.streaming import avro, schemas, topics
from marketdata.streaming.decode import Raw
from marketdata.streaming.schemas import register
from marketdata.streaming.topics import Topic
from marketdata.tasks import topics as command
from tests.unit.streaming.test_avro import BINANCE, KRAKEN
from tests.unit.streaming.test_schemas import CHANGES, RELEASED, added, put, topic_of, without


def own(topic: Topic) -> Topic:
    """The topic, under a name that the registry has not seen."""
    return replace(topic, name=f"{topic.name}-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def topic() -> Topic:
    return own(topic_of(COMMODITY_PRICES))


def versions(registry: str, topic: Topic) -> list[dict[str, Any]]:
    subject = f"{registry}/subjects/{topic.name}-value/versions"
    answer = requests.get(subject, timeout=60)
    numbers = answer.json() if answer.ok else []
    return [json.loads(requests.get(f"{subject}/{number}", timeout=60).json()["schema"]) for number in numbers]


def test_the_schema_is_the_dataset_s_and_is_registered_once(registry: str, topic: Topic) -> None:
    assert schemas.compare(registry, [topic]) == [f"{topic.name}-value: missing"]
    assert [line.split(":")[0] for line in register(registry, [topic])] == [f"{topic.name}-value"]
    assert register(registry, [topic]) == []
    assert schemas.compare(registry, [topic]) == []
    (schema,) = versions(registry, topic)
    assert [schema] == [subject.schema for subject in schemas.subjects([topic])]
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["properties"].keys() == {column.message_name for column in COMMODITY_PRICES.columns}


@pytest.mark.parametrize("released", sorted(path.name for path in RELEASED.iterdir()))
def test_today_s_schema_is_compatible_with_the_released_one(released: str, registry: str) -> None:
    name, _, ending = released.rpartition(".")
    topic = own(next(topic for topic in topics.catalogue() if topic.name == name))
    kind = {"json": "JSON", "avsc": "AVRO"}[ending]
    body = {"schemaType": kind, "schema": (RELEASED / released).read_text()}
    answer = requests.post(f"{registry}/subjects/{topic.name}-value/versions", json=body, timeout=60)
    assert answer.ok, answer.text
    register(registry, [topic])
    assert schemas.compare(registry, [topic]) == []


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_parts_readers_and_messages_is_refused(
    name: str, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = CHANGES[name]
    topic, innocent = own(topic_of(change.after)), own(topic_of(KRAKEN_RAW_TRADE))
    register(registry, [topic])
    put(monkeypatch, change.after)
    if change.says:
        assert schemas.compare(registry, [topic]) == [f"{topic.name}-value: the registry has another schema"]
        with pytest.raises(UsageError, match=f"{topic.name}-value: {change.says}; no schema was registered") as refusal:
            register(registry, [innocent, topic])
        assert "\n" not in str(refusal.value)
        assert refusal.value.exit_code == 64
        assert (len(versions(registry, topic)), versions(registry, innocent)) == (1, [])
    else:
        register(registry, [innocent, topic])
        assert schemas.compare(registry, [innocent, topic]) == []
        newest = versions(registry, topic)[-1]
        assert schemas.breaks(newest, schemas.subjects([topic])[0].schema) == []
        assert ("venue" in json.dumps(newest)) == ("venue" in json.dumps(topic.value_schema()))


def test_a_registry_out_of_reach_is_named(topic: Topic) -> None:
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1.*did not answer"):
        register("http://127.0.0.1:1", [topic])


def test_the_command_makes_topics_then_schemas_and_refuses_what_would_break_readers(
    embedded: Settings,
    registry: str,
    settings_for: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"prices-{uuid.uuid4().hex[:12]}"
    settings = settings_for(
        kafka_brokers=embedded.require("kafka_brokers"), kafka_topic=name, schema_registry_url=f"{registry}/"
    )
    assert command.diff(settings) == 1
    said = capsys.readouterr().out.splitlines()
    assert {f"{name}: missing", f"{name}-value: missing"} <= set(said)

    command.apply(settings)
    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert said.index(name) < said.index(f"{name}-value")
    assert command.diff(settings) == 0
    command.apply(settings)
    assert capsys.readouterr().out.splitlines() == [
        "the cluster is as the catalogue says", "no topic to change", "no schema to register"
    ]  # fmt: skip

    put(monkeypatch, without(COMMODITY_PRICES, "volume"))
    assert command.diff(settings) == 1
    with pytest.raises(UsageError, match=f"{name}-value: volume is gone; no schema was registered"):
        command.apply(settings)


# --- Avro -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(registry: str, settings_for: Callable[..., Settings]) -> Settings:
    """Settings of a registry that has the schemas of the trades."""
    register(registry, [topic_of(BINANCE_RAW_TRADE), topic_of(KRAKEN_RAW_TRADE)])
    return settings_for(schema_registry_url=registry)


def written(settings: Settings) -> bytes:
    begins = avro.header(settings, topic_of(BINANCE_RAW_TRADE))
    rows = pa.Table.from_pylist([BINANCE], BINANCE_RAW_TRADE.arrow_schema())
    ((_, (value,)),) = avro.messages(BINANCE_RAW_TRADE, rows, begins)
    return value


def read(settings: Settings, *values: bytes) -> avro.Read:
    return avro.Reader(settings, BINANCE_RAW_TRADE).read(Raw(at, 0, b"", value) for at, value in enumerate(values))


def test_a_message_names_its_schema_in_the_registry_and_is_read_by_it(settings: Settings) -> None:
    value = written(settings)
    url = settings.require("schema_registry_url")
    assert value[:1] == b"\x00"
    assert schemas.by_id(url, int.from_bytes(value[1:5], "big")) == BINANCE_RAW_TRADE.avro_schema()
    assert read(settings, value).rows.to_pylist() == [BINANCE]


def test_a_newer_reader_reads_what_the_older_schema_wrote(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    older = written(settings)
    newer = added(BINANCE_RAW_TRADE, required=False)
    found = avro.Reader(settings, newer).read([Raw(0, 0, b"", older)])
    assert found.rows.to_pylist() == [{**BINANCE, "venue": None}]
    assert found.rows.schema == newer.arrow_schema()


def test_an_older_reader_reads_what_the_newer_schema_wrote(
    settings: Settings, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = added(BINANCE_RAW_TRADE, required=False)
    put(monkeypatch, newer)
    topic = own(topic_of(newer))
    register(registry, [topic])
    rows = pa.Table.from_pylist([{**BINANCE, "venue": "spot"}], newer.arrow_schema())
    ((_, (value,)),) = avro.messages(newer, rows, avro.header(settings, topic))
    assert read(settings, value).rows.to_pylist() == [BINANCE]


def test_an_unknown_or_foreign_schema_is_a_letter_with_its_reason(settings: Settings, registry: str) -> None:
    value = written(settings)
    kraken = avro.header(settings, topic_of(KRAKEN_RAW_TRADE))
    register(registry, [topic_of(COMMODITY_PRICES)])
    prices = schemas.id_of(registry, topic_of(COMMODITY_PRICES))
    json_s = b"\x00" + prices.to_bytes(4, "big")
    letters = read(settings, b"\x00\xff\xff\xff\xff" + value[5:], kraken + value[5:], json_s, value, value[:30]).letters
    assert [letter.offset for letter in letters] == [0, 1, 2, 4]
    assert letters[0].reason == "the registry has no schema 4294967295"
    assert letters[1].reason.endswith("of the registry is not of marketdata.BinanceRawTrade")
    assert letters[2].reason == f"schema {prices} of the registry is not of marketdata.BinanceRawTrade"
    assert letters[3].reason.startswith("truncated")


def test_where_the_registry_does_not_answer_no_message_is_called_dead(
    settings: Settings, settings_for: Callable[..., Settings]
) -> None:
    value = written(settings)
    with pytest.raises(UnavailableError, match="did not answer"):
        read(settings_for(schema_registry_url="http://127.0.0.1:1"), value)


def test_a_topic_whose_schema_is_not_registered_is_not_written(settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"has not the schema of today.*marketdata topics apply"):
        avro.header(settings, own(topic_of(BINANCE_RAW_TRADE)))


def test_kraken_s_trades_too(settings: Settings) -> None:
    rows = pa.Table.from_pylist([KRAKEN], KRAKEN_RAW_TRADE.arrow_schema())
    ((_, values),) = avro.messages(KRAKEN_RAW_TRADE, rows, avro.header(settings, topic_of(KRAKEN_RAW_TRADE)))
    found = avro.Reader(settings, KRAKEN_RAW_TRADE).read([Raw(0, 0, b"", values[0])])
    assert found.rows.to_pylist() == [KRAKEN]
