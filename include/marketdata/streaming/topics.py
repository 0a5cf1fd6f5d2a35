"""Topics as code: `topics.yaml` says what there should be, the cluster is compared with it and made so."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from marketdata import datasets
from marketdata.datasets import Dataset
from marketdata.datasets.commodity_aggregates import COMMODITY_AGGREGATES
from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.errors import UnavailableError, UsageError
from marketdata.settings import Settings
from marketdata.streaming.brokers import (
    ANSWER_SECONDS,
    REACH_SECONDS,
    Cluster,
    answered,
    bounds,
    caused_by,
    outcome,
    reach,
)

log = logging.getLogger(__name__)

Role = Literal["records", "ledger", "letters"]
Format = Literal["json", "avro", "bytes"]
Effect = Literal["create", "safe", "destructive"]

_SCHEMA = {
    "type": "object",
    "required": ["topics"],
    "additionalProperties": False,
    "properties": {
        "topics": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "doc", "role", "format", "partitions", "replication_factor", "config"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,248}$"},
                    "doc": {"type": "string", "minLength": 1},
                    "dataset": {"type": "string"},
                    "role": {"enum": ["records", "ledger", "letters"]},
                    "format": {"enum": ["json", "avro", "bytes"]},
                    "tenants": {"type": "boolean"},
                    "partitions": {"type": "integer", "minimum": 1},
                    "replication_factor": {"type": "integer", "minimum": 3},
                    "config": {
                        "type": "object",
                        "required": ["cleanup.policy", "retention.ms", "message.timestamp.type", "min.insync.replicas"],
                        "propertyNames": {"pattern": "^[a-z.]+$"},
                        "additionalProperties": {"type": ["string", "integer"]},
                        "properties": {
                            "cleanup.policy": {"enum": ["delete", "compact"]},
                            "retention.ms": {"type": "integer", "minimum": -1},
                            "message.timestamp.type": {"enum": ["LogAppendTime", "CreateTime"]},
                            "min.insync.replicas": {"type": "integer", "minimum": 2},
                        },
                    },
                },
                "allOf": [
                    {
                        "if": {"properties": {"role": {"const": "ledger"}}},
                        "then": {
                            "properties": {
                                "format": {"const": "json"},
                                "partitions": {"const": 1},
                                "config": {
                                    "required": ["retention.bytes"],
                                    "properties": {
                                        "cleanup.policy": {"const": "delete"},
                                        "retention.ms": {"const": -1},
                                        "retention.bytes": {"const": -1},
                                    },
                                },
                            }
                        },
                    },
                    {
                        "if": {"properties": {"role": {"const": "letters"}}},
                        "then": {"properties": {"format": {"const": "bytes"}}},
                        "else": {"properties": {"format": {"enum": ["json", "avro"]}}, "required": ["dataset"]},
                    },
                ],
            },
        }
    },
}


@dataclass(frozen=True)
class Topic:
    """A topic as the catalogue wants it.

    Args:
        dataset: dataset whose records, ledger or dead letters it holds; None where several share their dead letters.
        tenants: on a cluster, each tenant has one of its own.
        config: Kafka's topic settings; those not named are the broker's business.
    """

    name: str
    doc: str
    role: Role
    format: Format
    partitions: int
    replication_factor: int
    config: Mapping[str, str] = field(default_factory=dict)
    dataset: str | None = None
    tenants: bool = False

    def value_schema(self) -> dict[str, Any] | None:
        """JSON or Avro schema of the messages; None for a ledger, whose form is `ledger.Marker`, and dead letters."""
        if self.role != "records" or self.dataset is None:
            return None
        dataset = _dataset(self.dataset)
        return dataset.avro_schema() if self.format == "avro" else dataset.message_schema()


@dataclass(frozen=True)
class Difference:
    """One thing about a topic that is not as the catalogue says, and what changing it would do."""

    topic: str
    what: str
    wanted: str
    actual: str
    effect: Effect

    def __str__(self) -> str:
        if self.effect == "create":
            return f"{self.topic}: missing"
        refused = ", and to change it would lose data or durability" if self.effect == "destructive" else ""
        return f"{self.topic}: {self.what} is {self.actual}, not {self.wanted}{refused}"


@cache
def catalogue() -> tuple[Topic, ...]:
    """The topics of `topics.yaml`, by their default names.

    Raises:
        UsageError: the file is not as its schema says; the message names the place.
    """
    import jsonschema
    import yaml

    content = yaml.safe_load(files(__package__).joinpath("topics.yaml").read_text("utf-8"))
    try:
        jsonschema.Draft202012Validator(_SCHEMA).validate(content)
    except jsonschema.ValidationError as error:
        raise UsageError(f"topics.yaml: {error.json_path}: {error.message}") from None
    return tuple(
        Topic(**{**entry, "config": {name: str(value) for name, value in entry["config"].items()}})
        for entry in content["topics"]
    )


def records_topic(settings: Settings, dataset: Dataset) -> str:
    """Topic of a dataset's records; ``KAFKA_TOPIC`` and ``ANALYTICS_TOPIC`` rename two."""
    renamed = {COMMODITY_PRICES.name: settings.kafka_topic, COMMODITY_AGGREGATES.name: settings.analytics_topic}
    return renamed.get(dataset.name, dataset.topic)


def ledger_topic(settings: Settings, dataset: Dataset) -> str:
    """Topic of a dataset's ledger."""
    return f"{records_topic(settings, dataset)}-ledger"


def letters_topic(settings: Settings, dataset: Dataset) -> str:
    """Topic of the messages of a dataset that could not be read."""
    return dataset.dead_letters or f"{records_topic(settings, dataset)}-dlq"


def named(settings: Settings) -> list[Topic]:
    """The catalogue under the names of this installation."""
    return [
        replace(topic, name=_NAMES[topic.role](settings, _dataset(topic.dataset))) if topic.dataset else topic
        for topic in catalogue()
    ]


def compare(settings: Settings) -> list[Difference]:
    """What the cluster's topics have that the catalogue has not, or the other way round. Foreign topics don't count.

    Raises:
        UnavailableError: no broker answered within 10 s, or a cluster of several nodes has but one alive.
    """
    cluster = reach(settings)
    return list(_compare(cluster, _wanted(settings, cluster)))


def apply(settings: Settings, only: str = "") -> list[str]:
    """Create what is missing and make changes that lose nothing; returns a line for each.

    Args:
        only: topics whose names begin otherwise are left alone.

    Raises:
        UsageError: a change would lose data or durability (it names all such changes), or what is missing is one of
            records and ledger while the other one is in use; nothing was changed.
        UnavailableError: no broker answered within 10 s.
    """
    cluster = reach(settings)
    wanted = [topic for topic in _wanted(settings, cluster) if topic.name.startswith(only)]
    differences = list(_compare(cluster, wanted))
    if refused := [str(difference) for difference in differences if difference.effect == "destructive"]:
        raise UsageError(
            f"{'; '.join(refused)}; no topic was changed", "change topics.yaml, or the topic by hand once you are sure"
        )
    missing = {difference.topic for difference in differences if difference.effect == "create"}
    _refuse_halves(settings, cluster, missing)
    done = _create(cluster, [topic for topic in wanted if topic.name in missing])
    done += [_change(cluster, difference) for difference in differences if difference.effect == "safe"]
    if done:
        changed = {difference.topic for difference in differences}
        _await(cluster, [topic for topic in wanted if topic.name in changed])
    return done


def check(settings: Settings, dataset: Dataset) -> None:
    """Can this dataset be published: do the brokers answer, and are its two topics as they must be?

    Raises:
        UnavailableError: no broker answered within 10 s (the message names them and the cause), or a partition has no
            leader.
        UsageError: a topic is missing, has other partitions or replicas, or the ledger could forget.
    """
    cluster = reach(settings)
    topics = [
        topic for topic in _wanted(settings, cluster) if topic.dataset == dataset.name and topic.role != "letters"
    ]
    matters = [
        str(difference)
        for topic in topics
        for difference in _compare(cluster, [topic])
        if topic.role == "ledger" or difference.what in ("topic", "partitions", "replication factor")
    ]
    if matters:
        raise UsageError(f"Kafka at {cluster.brokers}: {'; '.join(matters)}", "run: marketdata topics apply")
    for topic in topics:
        if headless := _headless(cluster.metadata, topic.name):
            raise UnavailableError(f"{topic.name} at {cluster.brokers}: partitions {headless} have no leader now")


def _wanted(settings: Settings, cluster: Cluster) -> list[Topic]:
    """The catalogue under the names and on the number of nodes of this installation."""
    if not _is_single_node(cluster):
        return named(settings)
    return [
        replace(topic, replication_factor=1, config={**topic.config, "min.insync.replicas": "1"})
        for topic in named(settings)
    ]


_NAMES = {"records": records_topic, "ledger": ledger_topic, "letters": letters_topic}


def _dataset(name: str) -> Dataset:
    return (datasets.DERIVED | datasets.EVENTS).get(name) or datasets.get(name)


def _is_single_node(cluster: Cluster) -> bool:
    """One broker, and meant to be: a node of a larger cluster that is alone just now keeps its transaction log thrice.

    Raises:
        UnavailableError: it is such a node.
    """
    if len(cluster.metadata.brokers) > 1:
        return False
    (broker,) = cluster.metadata.brokers
    copies = _configs(cluster, "broker", [str(broker)])[str(broker)]["transaction.state.log.replication.factor"]
    if copies != "1":
        raise UnavailableError(
            f"Kafka at {cluster.brokers}: only broker {broker} is up of a cluster that keeps {copies} replicas",
            "start the other brokers; topics were left as they are",
        )
    return True


def _configs(cluster: Cluster, kind: Literal["broker", "topic"], names: list[str]) -> dict[str, dict[str, str]]:
    """The configuration of each, in one request."""
    from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]

    resources = [ConfigResource(ConfigResource.Type[kind.upper()], name) for name in names]

    def ask() -> dict[str, dict[str, str]]:
        futures = cluster.admin.describe_configs(resources, request_timeout=ANSWER_SECONDS) if resources else {}
        found = {}
        for resource in resources:
            entries = outcome(futures[resource], cluster, f"asking {kind} {resource.name} for its configuration")
            found[resource.name] = {entry.name: entry.value for entry in entries.values()}
        return found

    return answered(cluster, ask)


def _compare(cluster: Cluster, wanted: list[Topic]) -> Iterator[Difference]:
    there = cluster.metadata.topics
    configs = _configs(cluster, "topic", [topic.name for topic in wanted if topic.name in there])
    for topic in wanted:
        if topic.name not in there:
            yield Difference(topic.name, "topic", "there", "missing", "create")
            continue
        partitions = there[topic.name].partitions
        replicas = min(len(partition.replicas) for partition in partitions.values())
        yield from differences(topic, len(partitions), replicas, configs[topic.name])


def differences(topic: Topic, partitions: int, replicas: int, config: Mapping[str, str]) -> Iterator[Difference]:
    """How an existing topic differs from the wanted one."""
    if partitions != topic.partitions:
        effect: Effect = "safe" if partitions < topic.partitions else "destructive"
        yield Difference(topic.name, "partitions", str(topic.partitions), str(partitions), effect)
    if replicas != topic.replication_factor:
        yield Difference(topic.name, "replication factor", str(topic.replication_factor), str(replicas), "destructive")
    for name, value in topic.config.items():
        actual = config.get(name, "unset")
        if actual != value:
            yield Difference(topic.name, name, value, actual, "destructive" if _loses(name, value, actual) else "safe")


def _loses(name: str, wanted: str, actual: str) -> bool:
    if name in ("retention.ms", "retention.bytes"):
        return wanted != "-1" and (actual == "-1" or int(wanted) < int(actual))
    if name == "min.insync.replicas":
        return int(wanted) < int(actual)
    return name == "cleanup.policy"


def _refuse_halves(settings: Settings, cluster: Cluster, missing: set[str]) -> None:
    """Refuse to create records or ledger of a dataset where the other one has ever held anything."""
    topics = named(settings)
    for dataset in {topic.dataset for topic in topics if topic.role == "ledger"}:
        pair = {topic.name for topic in topics if topic.dataset == dataset and topic.role != "letters"}
        lost, left = pair & missing, pair & cluster.metadata.topics.keys()
        if lost and any(end for name in left for _, end in bounds(cluster, name).values()):
            raise UsageError(
                f"Kafka at {cluster.brokers}: {', '.join(lost)} is missing and {', '.join(left)} is in use; beside an "
                "empty ledger everything would be published twice, beside empty records nothing again; no topic was "
                "changed",
                "bring the lost one back from a backup or, once you are sure, delete the other one too",
            )


def _create(cluster: Cluster, topics: list[Topic]) -> list[str]:
    """Create them in one request."""
    from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

    new = [NewTopic(one.name, one.partitions, one.replication_factor, config=dict(one.config)) for one in topics]
    futures = cluster.admin.create_topics(new, request_timeout=REACH_SECONDS) if new else {}
    done = []
    for topic in topics:
        try:
            outcome(futures[topic.name], cluster, f"creating topic {topic.name}")
        except UnavailableError as error:
            if not caused_by(error, "TOPIC_ALREADY_EXISTS"):
                raise
            continue  # another `apply` was faster
        done.append(f"{topic.name}: created, {topic.partitions} partitions, {topic.replication_factor} replicas")
    return done


def _change(cluster: Cluster, difference: Difference) -> str:
    from confluent_kafka.admin import (  # type: ignore[attr-defined]
        AlterConfigOpType,
        ConfigEntry,
        ConfigResource,
        NewPartitions,
    )

    says = f"{difference.topic}: {difference.what} changed from {difference.actual} to {difference.wanted}"
    if difference.what == "partitions":
        log.warning("raising the partitions of a topic: keys move", extra={"topic": difference.topic})
        request = [NewPartitions(difference.topic, int(difference.wanted))]
        future = cluster.admin.create_partitions(request, request_timeout=REACH_SECONDS)[difference.topic]
        says += "; keys move to other partitions, so the order of one key's records begins anew"
    else:
        entry = ConfigEntry(difference.what, difference.wanted, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, difference.topic, incremental_configs=[entry])
        future = cluster.admin.incremental_alter_configs([resource], request_timeout=REACH_SECONDS)[resource]
    outcome(future, cluster, f"changing {difference.what} of {difference.topic}")
    return says


def _await(cluster: Cluster, changed: list[Topic]) -> None:
    """Brokers answer before every one of them knows of a change: until each partition's leader knows that it leads."""
    deadline = time.monotonic() + REACH_SECONDS
    while True:
        now = replace(cluster, metadata=cluster.admin.list_topics(timeout=REACH_SECONDS))
        late = [f"{topic.name} has no leaders" for topic in changed if _headless(now.metadata, topic.name)]
        try:
            late += [str(difference) for difference in _compare(now, changed)]
            for topic in changed if not late else []:
                bounds(now, topic.name)
        except UnavailableError as error:
            if not caused_by(error, "UNKNOWN_TOPIC_OR_PART"):
                raise
            late.append(error.message)
        if not late:
            return
        if time.monotonic() > deadline:
            raise UnavailableError(f"Kafka at {cluster.brokers} accepted the changes, but still: {'; '.join(late)}")
        time.sleep(0.05)


def _headless(metadata: Any, topic: str) -> list[int]:
    """Partitions without a leader."""
    partitions = metadata.topics[topic].partitions if topic in metadata.topics else {}
    return [number for number, partition in partitions.items() if partition.leader < 0]
