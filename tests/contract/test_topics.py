"""Topics as code, on a real broker."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import UnavailableError, UsageError
from marketdata.settings import Settings
from marketdata.streaming import topics
from marketdata.streaming.brokers import outcome, reach
from marketdata.streaming.publish import producer_settings
from marketdata.tasks import topics as command
from tests.contract.topic import delete, known_everywhere, own_topic
from tests.waiting import until


@pytest.fixture
def settings(kafka: Settings, settings_for: Callable[..., Settings]) -> Settings:
    return own_topic(kafka, settings_for)


def want(monkeypatch: pytest.MonkeyPatch, role: str, partitions: int | None = None, **config: str) -> None:
    """Change what the catalogue wants of the commodity prices' topic of that role."""
    changed = tuple(
        replace(
            topic,
            partitions=partitions or topic.partitions,
            config={**topic.config, **{name.replace("_", "."): value for name, value in config.items()}},
        )
        if (topic.dataset, topic.role) == (COMMODITY_PRICES.name, role)
        else topic
        for topic in topics.catalogue()
    )
    monkeypatch.setattr(topics, "catalogue", lambda: changed)


def test_missing_topics_are_said_created_once_and_then_as_wanted(
    kafka: Settings, settings_for: Callable[..., Settings]
) -> None:
    name = f"prices-{uuid.uuid4().hex[:12]}"
    settings = settings_for(kafka_brokers=kafka.require("kafka_brokers"), kafka_topic=name)
    missing = [one.topic for one in topics.compare(settings) if one.effect == "create"]
    assert {name, f"{name}-ledger"} <= set(missing)
    with pytest.raises(UsageError, match=f"{name}: missing.*marketdata topics apply"):
        topics.check(settings, COMMODITY_PRICES)

    assert [line.split(":")[0] for line in topics.apply(settings)] == missing
    assert topics.apply(settings) == []
    assert topics.compare(settings) == []
    topics.check(settings, COMMODITY_PRICES)
    found = reach(settings).metadata.topics
    assert (len(found[name].partitions), len(found[f"{name}-ledger"].partitions)) == (3, 1)


def test_only_topics_of_a_prefix_are_touched_where_one_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    want(monkeypatch, "ledger", cleanup_policy="compact")
    want(monkeypatch, "records", retention_ms="691200000")
    assert topics.apply(settings, only="drill-") == []
    assert len(topics.compare(settings)) == 2


def test_that_no_registry_has_the_schemas_is_said(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    without = "SCHEMA_REGISTRY_URL is not set: no registry has the schemas"
    assert command.diff(settings) == 0
    assert capsys.readouterr().out.splitlines() == ["the cluster is as the catalogue says", without]
    command.apply(settings)
    assert capsys.readouterr().out.splitlines() == ["no topic to change", without]


def test_what_loses_nothing_is_changed_and_said(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    want(monkeypatch, "records", partitions=5, retention_ms="691200000")
    said = topics.apply(settings)
    assert len(said) == 2
    assert "partitions changed from 3 to 5; keys move" in said[0]
    assert "retention.ms changed from 604800000 to 691200000" in said[1]
    until("it is as wanted", lambda: topics.compare(settings) == [])


@pytest.mark.parametrize(
    ("role", "changes", "says"),
    [
        ("records", {"partitions": 2}, "partitions is 3, not 2"),
        ("records", {"retention_ms": "1000"}, "retention.ms is 604800000, not 1000"),
        ("ledger", {"retention_ms": "1000"}, "retention.ms is -1, not 1000"),
        ("ledger", {"cleanup_policy": "compact"}, "cleanup.policy is delete, not compact"),
    ],
)
def test_what_would_lose_data_is_refused_and_nothing_else_is_changed_either(
    role: str, changes: dict[str, Any], says: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    want(monkeypatch, role, **{"message_timestamp_type": "CreateTime", **changes})
    before = {str(one) for one in topics.compare(settings)}
    assert len(before) == 2
    with pytest.raises(UsageError, match=f"{says}.*no topic was changed"):
        topics.apply(settings)
    assert {str(one) for one in topics.compare(settings)} == before


def write(settings: Settings, topic: str) -> None:
    from confluent_kafka import Producer

    producer = Producer(producer_settings(settings, None, []))
    producer.produce(topic, b"{}", b"Oil")
    assert producer.flush(60) == 0


@pytest.mark.parametrize("lost", [topics.records_topic, topics.ledger_topic])
def test_records_or_ledger_are_not_made_anew_beside_the_other_one_in_use(
    lost: Callable[..., str], settings: Settings
) -> None:
    name = lost(settings, COMMODITY_PRICES)
    (left,) = {settings.kafka_topic, f"{settings.kafka_topic}-ledger"} - {name}
    delete(settings, name)
    assert [line.split(":")[0] for line in topics.apply(settings)] == [name], "the other one was never used"

    write(settings, left)
    delete(settings, name)
    says = rf"{name} is missing and {left} is in use.*no topic was changed.*backup.*delete the other one too"
    with pytest.raises(UsageError, match=says):
        topics.apply(settings)
    assert [str(one) for one in topics.compare(settings)] == [f"{name}: missing"]
    delete(settings, left)
    topics.apply(settings)
    assert topics.compare(settings) == []


def test_a_topic_with_other_partitions_fails_the_check(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    want(monkeypatch, "records", partitions=4)
    with pytest.raises(UsageError, match=f"{settings.kafka_topic}: partitions is 3, not 4"):
        topics.check(settings, COMMODITY_PRICES)


def test_a_ledger_that_could_forget_fails_the_check(settings: Settings) -> None:
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

    cluster = reach(settings)
    entry = ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)
    name = f"{settings.kafka_topic}-ledger"
    ledger = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry])
    outcome(cluster.admin.incremental_alter_configs([ledger])[ledger], cluster, "forgetting")
    known_everywhere(settings, name, "retention.ms", "1000")
    with pytest.raises(UsageError, match=r"ledger: retention.ms is 1000, not -1"):
        topics.check(settings, COMMODITY_PRICES)
    topics.apply(settings)
    known_everywhere(settings, name, "retention.ms", "-1")
    topics.check(settings, COMMODITY_PRICES)


@pytest.mark.parametrize(
    ("brokers", "cause"),
    [("127.0.0.1:1", "refused"), ("no-such-host.invalid:9092", "resolve"), ("127.0.0.1:1,127.0.0.1:2", "refused")],
)
def test_brokers_out_of_reach_are_named_within_ten_seconds_with_the_cause(
    brokers: str, cause: str, settings_for: Callable[..., Settings]
) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=brokers) as failure:
        topics.check(settings_for(kafka_brokers=brokers), COMMODITY_PRICES)
    assert time.monotonic() - began < 20
    assert cause in str(failure.value)
    assert "\n" not in str(failure.value)


def test_without_an_address_the_variable_is_named(settings_for: Callable[..., Settings]) -> None:
    with pytest.raises(UsageError, match="KAFKA_BROKERS"):
        topics.check(settings_for(), COMMODITY_PRICES)


def test_a_node_left_alone_of_a_larger_cluster_gets_no_single_replicas(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "_configs", lambda *_: {"1": {"transaction.state.log.replication.factor": "3"}})
    with pytest.raises(UnavailableError, match="only broker 1 is up"):
        topics.apply(settings)
