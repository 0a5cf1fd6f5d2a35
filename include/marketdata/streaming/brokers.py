"""The way to the brokers, shared by everything here: addresses, errors in plain words, reading what is committed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from marketdata.errors import TryLaterError, UnavailableError, UsageError
from marketdata.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message
    from confluent_kafka.admin import AdminClient, ClusterMetadata, OffsetSpec  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

REACH_SECONDS = 10.0
"""How long a broker may take to answer the first question."""

ANSWER_SECONDS = 3.0
"""How long one may take to answer another: milliseconds if it lives."""

PATIENCE_SECONDS = 30.0
"""How long a question is asked again: brokers take 9 s to miss one of them, longer where it was the controller."""

STALL_SECONDS = 30.0
"""How long reading may make no progress before the brokers count as gone."""

OPEN_TRANSACTION_SECONDS = 120.0
"""How long to wait for somebody else's open transaction that hides what comes after it."""

T = TypeVar("T")


def connection(settings: Settings) -> dict[str, Any]:
    """librdkafka's settings that every client has in common.

    Raises:
        UsageError: ``KAFKA_BROKERS`` is not set, or ``KAFKA_PASSWORD`` where ``KAFKA_USER`` is.
    """
    return {
        "bootstrap.servers": settings.require("kafka_brokers"),
        "client.id": "marketdata",
        "allow.auto.create.topics": False,
        "socket.connection.setup.timeout.ms": 5000,
        # Who has not answered for so long may be cut off: the brokers themselves take 9 s to say that it is.
        "socket.timeout.ms": 10_000,
        "reconnect.backoff.max.ms": 1000,
        **_identity(settings),
    }


def _identity(settings: Settings) -> dict[str, Any]:
    if settings.kafka_user is None:
        return {}
    return {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": settings.kafka_user,
        "sasl.password": settings.require("kafka_password"),
        **({"ssl.ca.pem": settings.kafka_ca} if settings.kafka_ca else {}),
    }


@dataclass(frozen=True)
class Cluster:
    """A cluster that has answered."""

    admin: AdminClient
    metadata: ClusterMetadata
    brokers: str


def reach(settings: Settings) -> Cluster:
    """Connect for administration.

    Raises:
        UsageError: ``KAFKA_BROKERS`` is not set.
        UnavailableError: no broker answered within `REACH_SECONDS`; the message names them and the cause.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    said: list[str] = []
    options = {**connection(settings), "error_cb": lambda error: said.append(error.str())}
    brokers = settings.require("kafka_brokers")
    try:
        admin = AdminClient(options, logger=log)
    except KafkaException as error:
        raise UsageError(f"KAFKA_BROKERS {brokers!r} is not valid: {error.args[0].str()}") from None
    try:
        return Cluster(admin, admin.list_topics(timeout=REACH_SECONDS), brokers)
    except KafkaException as error:
        admin.poll(0)
        # Later complaints only count the brokers that are down; the first one says why.
        raise unavailable(brokers, "no broker answered", said[0] if said else error.args[0].str()) from None


def unavailable(brokers: str, what: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"Kafka at {brokers}: {what}: {why}", "check KAFKA_BROKERS, name resolution and that the brokers are up"
    )


def outcome(future: Future[T], cluster: Cluster, doing: str) -> T:
    """The result of an administrative request.

    Raises:
        UnavailableError: it failed.
    """
    from confluent_kafka import KafkaException

    try:
        return future.result(timeout=REACH_SECONDS + 5)
    except KafkaException as error:
        raise unavailable(cluster.brokers, f"{doing} failed", error.args[0].str()) from error
    except TimeoutError:
        raise unavailable(cluster.brokers, f"{doing} failed", "no answer in time") from None


def bounds(cluster: Cluster, topic: str) -> dict[int, tuple[int, int]]:
    """First offset and end (exclusive) of every partition of a topic, open transactions included.

    Raises:
        UsageError: there is no such topic.
    """
    from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

    if topic not in cluster.metadata.topics:
        raise UsageError(f"topic {topic} does not exist on {cluster.brokers}", "create it: marketdata topics apply")
    first, end = (
        _offsets(cluster, topic, spec)
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
    )
    return {number: (first[number], end[number]) for number in sorted(first)}


def _offsets(cluster: Cluster, topic: str, spec: OffsetSpec) -> dict[int, int]:
    """An offset of every partition."""
    from confluent_kafka import IsolationLevel, TopicPartition

    wanted = {TopicPartition(topic, number): spec for number in cluster.metadata.topics[topic].partitions}

    def ask() -> dict[int, int]:
        futures = cluster.admin.list_offsets(
            wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=ANSWER_SECONDS
        )
        doing = f"asking {topic} for its offsets"
        return {at.partition: outcome(future, cluster, doing).offset for at, future in futures.items()}

    return answered(cluster, ask)


def answered(cluster: Cluster, ask: Callable[[], T]) -> T:
    """The answer to a question that may be asked again; while a broker is replaced it is, until `PATIENCE_SECONDS`.

    Until the others miss a dead broker they go on naming it, as leader and as the one to ask for configurations.

    Raises:
        UnavailableError: what the last answer was.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

    again = Retrying(
        stop=stop_after_delay(PATIENCE_SECONDS),
        wait=wait_fixed(0.1),
        retry=retry_if_exception(lambda error: caused_by(error, *_PASSING)),
        before_sleep=lambda _: _look_again(cluster),
        reraise=True,
    )
    return again(ask)


def _look_again(cluster: Cluster) -> None:
    """Let the client hear who leads now."""
    from confluent_kafka import KafkaException

    with suppress(KafkaException):
        cluster.admin.list_topics(timeout=ANSWER_SECONDS)


_PASSING = (
    "_TIMED_OUT",  # also while it waits for a broker that is gone
    "_TRANSPORT",
    "BROKER_NOT_AVAILABLE",
    "FENCED_LEADER_EPOCH",  # the client has yet to hear of a new leader
    "KAFKA_STORAGE_ERROR",  # its disk has failed: another one leads in a moment
    "LEADER_NOT_AVAILABLE",
    "NOT_LEADER_FOR_PARTITION",
    "OFFSET_NOT_AVAILABLE",  # a new leader does not know yet how much is committed
    "REQUEST_TIMED_OUT",
    "UNKNOWN_LEADER_EPOCH",  # the broker has come back, and has yet to learn that it leads again
)


def caused_by(error: BaseException, *names: str) -> bool:
    """Whether a broker's error of one of these names is behind it."""
    from confluent_kafka import KafkaError, KafkaException

    cause = error.__cause__
    return isinstance(cause, KafkaException) and cause.args[0].code() in {getattr(KafkaError, name) for name in names}


def read_committed(
    settings: Settings, topic: str, spans: Mapping[int, tuple[int, int]], patience: float | None = None
) -> Iterator[list[Message]]:
    """Committed messages of offsets [first, end) of each partition, as they come.

    Args:
        patience: seconds to wait for a transaction that is open; default: `OPEN_TRANSACTION_SECONDS`. A transaction
            counts as open for some milliseconds after its producer has been told that it is committed.

    Raises:
        TryLaterError: an open transaction hides part of them for longer.
        UnavailableError: the brokers are gone, or the messages are (retention).
    """
    from confluent_kafka import KafkaError, TopicPartition

    pending = {number: (first, end) for number, (first, end) in spans.items() if first < end}
    if not pending:
        return
    brokers = settings.require("kafka_brokers")
    said: list[str] = []
    consumer = _consumer(settings, said)
    try:
        consumer.assign([TopicPartition(topic, number, first) for number, (first, _) in pending.items()])
        waiting: set[int] = set()
        progress = time.monotonic()
        while pending:
            wanted = []
            for message in consumer.consume(num_messages=5000, timeout=0.05):
                number, offset, error = message.partition(), message.offset(), message.error()
                if number is None or offset is None or (error and error.code() != KafkaError._PARTITION_EOF):
                    raise _unreadable(brokers, topic, message, error)
                progress = time.monotonic()
                if number not in pending:
                    continue
                if error is None:
                    waiting.discard(number)
                    first, end = pending[number]
                    if first <= offset < end:
                        wanted.append(message)
                    done = offset >= end - 1
                else:
                    # The end seen by a reader of committed messages: an open transaction may hide what follows.
                    done = offset >= pending[number][1]
                    waiting.add(number)
                if done:
                    del pending[number]
                    consumer.incremental_unassign([TopicPartition(topic, number)])
            if wanted:
                yield wanted
                progress = time.monotonic()
            seconds = time.monotonic() - progress
            if not waiting & pending.keys() and seconds > STALL_SECONDS:
                why = said[-1] if said else "no answer"
                raise unavailable(brokers, f"reading {topic} made no progress for {seconds:.0f} s", why)
            if seconds > (OPEN_TRANSACTION_SECONDS if patience is None else patience) and waiting & pending.keys():
                raise TryLaterError(
                    f"an open transaction on {topic} at {brokers} has hidden its end for {seconds:.0f} s; nothing was "
                    "changed",
                    "try again when that transaction has been committed, or has timed out",
                )
    finally:
        consumer.close()


def _unreadable(brokers: str, topic: str, message: Message, error: KafkaError | None) -> UnavailableError:
    from confluent_kafka import KafkaError

    if error is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
        return UnavailableError(
            f"{topic} at {brokers} no longer has offset {message.offset()} of partition {message.partition()}",
            "its retention has passed; what is older cannot be read back",
        )
    return unavailable(brokers, f"reading {topic} failed", error.str() if error else "a message without an offset")


def _consumer(settings: Settings, said: list[str]) -> Consumer:
    from confluent_kafka import Consumer

    return Consumer(
        {
            **connection(settings),
            "group.id": "marketdata-reader",  # required; partitions are assigned by hand and nothing is committed
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
            "queued.max.messages.kbytes": 32768,
            "error_cb": lambda error: said.append(error.str()),
        },
        logger=log,
    )
