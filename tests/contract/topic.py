"""A topic and a ledger of their own for a test, and what is in them."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from marketdata.datasets import COMMODITY_PRICES
from marketdata.settings import Settings
from marketdata.streaming import ledger, topics
from marketdata.streaming.brokers import bounds, outcome, reach, read_committed
from marketdata.streaming.consume import ledger_state, read_back, records_of
from tests.waiting import until


def own_topic(engines: Settings, settings_for: Callable[..., Settings], **other: Any) -> Settings:
    """Settings with a topic nobody else uses; it and its ledger are there."""
    settings = settings_for(
        **{
            "kafka_brokers": engines.require("kafka_brokers"),
            "postgres_dsn": engines.require("postgres_dsn"),
            "kafka_topic": f"prices-{uuid.uuid4().hex[:12]}",
            **other,
        }
    )
    topics.apply(settings)
    return settings


def delete(settings: Settings, *names: str) -> None:
    """Delete topics, and wait until every broker knows it."""
    cluster = reach(settings)
    for future in cluster.admin.delete_topics(list(names)).values():
        outcome(future, cluster, "deleting")
    for address in cluster.brokers.split(","):
        at = settings.model_copy(update={"kafka_brokers": address})
        until(f"{names} have gone", lambda at=at: not set(names) & set(reach(at).metadata.topics))


def held(settings: Settings) -> list[dict[str, Any]]:
    """Every committed message of the topic."""
    return [json.loads(value, parse_float=Decimal) for value in read_back(settings, settings.kafka_topic, 1_000_000)]


def identities(messages: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """How often each revision of each record is there."""
    return Counter((message["record_id"], message["content_hash"]) for message in messages)


def held_of(settings: Settings, batch_id: str) -> pa.Table:
    """What the topic holds of a batch, as reconciliation sees it now."""
    fold = ledger.read(settings, COMMODITY_PRICES, settings.tenant)
    found = ledger.find(settings, fold, batch_id)
    return records_of(settings, COMMODITY_PRICES, found[1]) if found else pa.table({})


def state(settings: Settings, rows: list[dict[str, Any]]) -> dict[str, tuple[str, datetime]]:
    """What the ledger knows of these rows' records: content hash and `as_of` by record id."""
    fold = ledger.read(settings, COMMODITY_PRICES, settings.tenant)
    asked = pa.table({"record_id": [row["record_id"] for row in rows]})
    known = ledger_state(settings, COMMODITY_PRICES, fold, asked).to_pylist()
    return {row["record_id"]: (row["content_hash"], row["as_of"]) for row in known}


def ends(settings: Settings) -> list[tuple[int, int]]:
    """First and end offset of each partition of the topic and of its ledger, the markers of what is committed included.

    Brokers write those after they have said that it is committed: a reader of committed messages waits for them.
    """
    cluster, names = reach(settings), (settings.kafka_topic, f"{settings.kafka_topic}-ledger")
    for topic in names:
        for _ in read_committed(settings, topic, bounds(cluster, topic)):
            pass
    return [span for topic in names for span in bounds(cluster, topic).values()]


def known_everywhere(settings: Settings, topic: str, name: str, value: str) -> None:
    """Wait until every broker says this of a topic: brokers hear of a change one after the other."""
    from confluent_kafka.admin import ConfigResource

    cluster, resource = reach(settings), ConfigResource(ConfigResource.Type.TOPIC, topic)

    def said_by(broker: int) -> str:
        return str(cluster.admin.describe_configs([resource], broker=broker)[resource].result(60)[name].value)

    until(f"{name} of {topic} is {value}", lambda: {said_by(broker) for broker in cluster.metadata.brokers} == {value})
