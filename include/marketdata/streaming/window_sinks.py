"""What has changed in the store, told to the topics: every revision at most once, the last one always.

The marker of how far a partition's changes have been told is a Kafka offset, committed in the very transaction that
carries them (group ``<group>.told``): read back after `init_transactions` has ended what an earlier producer left open,
it says what is in the topics, whatever moment that producer died at. PostgreSQL keeps a copy that may lag behind.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from marketdata.datasets import Dataset
from marketdata.datasets.commodity_aggregates import COMMODITY_AGGREGATES
from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.datasets.conform import canonical, connect, digest
from marketdata.errors import TryLaterError, UnavailableError
from marketdata.settings import Settings
from marketdata.streaming.brokers import connection, unavailable
from marketdata.streaming.encode import messages
from marketdata.streaming.publish import ANSWER_SECONDS, producer_settings
from marketdata.streaming.topics import letters_topic, records_topic
from marketdata.streaming.window_store import Feed, one

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa
    from confluent_kafka import KafkaError, TopicPartition

log = logging.getLogger(__name__)

AT_ONCE = 10_000
"""Changes in one transaction."""

LETTERS_AT_ONCE = 32 * 1024 * 1024
"""Bytes of letters in one transaction: they are in memory, and a second time in the client's queue."""

LARGEST_MESSAGE = 1_114_112
"""Bytes, as the topic of dead letters takes (`topics.yaml`)."""

LARGEST_LETTER = LARGEST_MESSAGE - 64 * 1024
"""Bytes of key and value; the rest is for headers. A poison message may be larger: brokers measure it compressed."""

TRANSACTION_SECONDS = 60
MARKER_SECONDS = 15.0
"""Longer than a change of the group's coordinator takes."""

ABORT_SECONDS = 2


def changes(postgres: psycopg.Connection[Any], feed_id: int, after: int, upto: int) -> pa.Table:
    """Windows changed by numbers (after, upto] of a feed, as rows of `COMMODITY_AGGREGATES`, in that order."""
    import pyarrow as pa

    rows = postgres.execute(_CHANGES, (feed_id, after, upto), binary=True).fetchall()
    schema = COMMODITY_AGGREGATES.arrow_schema()
    computed = ("record_id", "content_hash")
    given = pa.schema([field for field in schema if field.name not in computed])
    columns = list(zip(*rows, strict=True)) or [()] * len(given)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, given, strict=True)]
    with connect() as duckdb:
        duckdb.register("given", pa.Table.from_arrays(arrays, schema=given))
        found: pa.Table = duckdb.sql(_IDENTIFIED).to_arrow_table()
    return found.select(schema.names).cast(schema)


class TopicSink:
    """Tells one partition's changes to the topics of aggregates and dead letters; used by one thread."""

    def __init__(self, settings: Settings, topic: str, feed: Feed) -> None:
        self._settings = settings
        self._topic = topic
        self._feed = feed
        self._line: _Line | None = None

    def deliver(self, postgres: psycopg.Connection[Any]) -> int:
        """Tell all that has changed; how many messages that took.

        Raises:
            TryLaterError: another member has this partition now.
            UnavailableError: the brokers failed; the next call finds out what they have.
        """
        from confluent_kafka import KafkaException

        sent = 0
        try:
            if self._line is None:
                last, told = self._numbers(postgres)
                if last == told:
                    return 0
                self._line = _Line(self._settings, self._topic, self._feed.partition)
                self._line.told = self._agree(postgres, self._line.take_over())
            while (upto := self._upto(postgres, self._line.told)) > self._line.told:
                rows = changes(postgres, self._feed.feed_id, self._line.told, upto)
                letters = postgres.execute(
                    _LETTERS, (LARGEST_LETTER, self._feed.feed_id, self._line.told, upto), binary=True
                ).fetchall()
                self._line.tell(rows, letters, upto)
                self._agree(postgres, upto)
                sent += len(rows) + len(letters)
        except (KafkaException, SystemError) as error:
            self.close()
            raise self._meaning(error) from error
        except Exception:
            self.close()
            raise
        return sent

    def close(self) -> None:
        """End what is open; a later call begins anew."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _numbers(self, postgres: psycopg.Connection[Any]) -> tuple[int, int]:
        """Of the last change, and of the last one PostgreSQL knows to be told."""
        last, told = one(
            postgres.execute(
                "SELECT sequence, told FROM marketdata.analytics_feeds WHERE feed_id = %s", (self._feed.feed_id,)
            )
        )
        return last, told

    def _upto(self, postgres: psycopg.Connection[Any], after: int) -> int:
        """Number of the last change that goes into a transaction after this one."""
        span = {"feed": self._feed.feed_id, "after": after, "upto": after + AT_ONCE}
        (upto,) = one(postgres.execute(_UPTO, {**span, "largest": LARGEST_LETTER, "bytes": LETTERS_AT_ONCE}))
        return int(upto)

    def _agree(self, postgres: psycopg.Connection[Any], told: int) -> int:
        """Let PostgreSQL know what is told.

        A database from a backup may be about to number changes as the topic has had them: it goes on behind those.
        """
        values = {"told": told, "feed": self._feed.feed_id}
        (agreed,) = one(postgres.execute(_AGREE, values))
        return int(agreed)

    def _meaning(self, error: BaseException) -> TryLaterError | UnavailableError:
        from confluent_kafka import KafkaError, KafkaException

        real: BaseException | None = error
        while isinstance(real, SystemError):
            real = real.__cause__
        if not isinstance(real, KafkaException):
            raise error
        said = real.args[0]
        if said.code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH):
            return TryLaterError(
                f"another member tells the aggregates of partition {self._feed.partition}; nothing was told by this one"
            )
        return unavailable(self._settings.require("kafka_brokers"), "telling aggregates failed", said.str())


class _Line:
    """A transactional producer, and the consumer that reads its marker back."""

    def __init__(self, settings: Settings, topic: str, partition: int) -> None:
        from confluent_kafka import Consumer, Producer

        self.told = 0
        self._settings = settings
        self._topic = topic
        self._partition = partition
        self._aggregates = records_topic(settings, COMMODITY_AGGREGATES)
        self._letters = letters_topic(settings, COMMODITY_PRICES)
        self._failed: list[KafkaError] = []
        name = f"{settings.analytics_group}.{topic}.{partition}"
        options = producer_settings(settings, name, []) | {
            "transaction.timeout.ms": TRANSACTION_SECONDS * 1000,
            "message.max.bytes": LARGEST_MESSAGE,
        }
        self._producer = Producer(options, logger=log)
        group = {"group.id": f"{settings.analytics_group}.told", "isolation.level": "read_committed"}
        self._marker = Consumer({**connection(settings), **group}, logger=log)

    def take_over(self) -> int:
        """Fence whoever told these changes before; how far that one came.

        A coordinator that was cut off and replaced answers for seconds after it is back with the markers it had, but it
        can write none (docs/adr/0023). So something is written first, under another name: who takes it knows the rest.
        """
        from confluent_kafka import TopicPartition

        self._producer.init_transactions(ANSWER_SECONDS)
        written = TopicPartition(self._aggregates, 0, 0)
        self._within(ANSWER_SECONDS, "barrier", lambda: self._marker.commit(offsets=[written], asynchronous=False))
        (at,) = self._marker.committed([TopicPartition(self._topic, self._partition)], ANSWER_SECONDS)
        return max(at.offset, 0)

    def tell(self, rows: pa.Table, letters: Sequence[tuple[Any, ...]], upto: int) -> None:
        """Windows, letters and the marker in one transaction."""
        from confluent_kafka import TopicPartition

        self._producer.begin_transaction()
        with connect() as duckdb:
            for keys, values in messages(duckdb, COMMODITY_AGGREGATES, rows):
                for key, value in zip(keys, values, strict=True):
                    self._produce(self._aggregates, key, value, [])
        for key, value, reason, offset, failed_at, kept in letters:
            headers = {
                "error": reason, "topic": self._topic, "partition": self._partition, "offset": offset,
                "group": self._settings.analytics_group, "failed_at": failed_at.isoformat(),
            }  # fmt: skip
            if kept is not None:
                headers["kept"] = f"too large for this topic; in marketdata.dead_letters: marketdata dlq show {kept}"
            self._produce(self._letters, key, value, [(name, str(says).encode()) for name, says in headers.items()])
        self._producer.flush(ANSWER_SECONDS)
        if self._failed:
            brokers = self._settings.require("kafka_brokers")
            raise unavailable(brokers, "delivering aggregates failed", self._failed[0].str())
        marker = TopicPartition(self._topic, self._partition, upto)
        self._send(marker)
        self._commit()
        self.told = upto

    def _send(self, marker: TopicPartition) -> None:
        """Add the marker to the transaction."""

        def send() -> None:
            group = self._marker.consumer_group_metadata()
            self._producer.send_offsets_to_transaction([marker], group, MARKER_SECONDS)

        self._within(MARKER_SECONDS + ABORT_SECONDS, "marker", send)

    def _within(self, seconds: float, what: str, call: Callable[[], object]) -> None:
        """Call the client.

        Its call may never return when the group's coordinator goes away in the middle of it, whatever its own time-out
        says. It is left to itself then: the next producer of this name fences the one that waits.

        Raises:
            UnavailableError: it has not returned in time.
        """
        done: Future[None] = Future()

        def run() -> None:
            try:
                call()
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name=what, daemon=True).start()
        try:
            done.result(seconds)
        except TimeoutError:
            brokers = self._settings.require("kafka_brokers")
            raise unavailable(brokers, "telling aggregates failed", f"the {what} was not acknowledged") from None

    def _commit(self) -> None:
        self._producer.commit_transaction(ANSWER_SECONDS)

    def close(self) -> None:
        from confluent_kafka import KafkaException

        self._producer.purge()
        try:
            self._producer.abort_transaction(ABORT_SECONDS)
        except (KafkaException, SystemError) as error:
            log.debug("there was nothing to abort, or whoever comes next does", extra={"reason": str(error)})
        self._marker.close()

    def _produce(self, topic: str, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=self._delivered, headers=headers)  # type: ignore[arg-type]
                return
            except BufferError:
                self._producer.poll(0.05)

    def _delivered(self, error: KafkaError | None, _message: Any) -> None:
        if error:
            self._failed.append(error)


def _identified(dataset: Dataset) -> str:
    values = {
        "record_id": digest("tenant", f"'{dataset.name}'", *(canonical(dataset.column(name)) for name in dataset.key)),
        "content_hash": digest(*(canonical(column) for column in dataset.business_columns)),
    }
    columns = ", ".join(f"{values.get(column.name, column.name)} AS {column.name}" for column in dataset.columns)
    return f"SELECT {columns} FROM given"  # noqa: S608


_IDENTIFIED = _identified(COMMODITY_AGGREGATES)
_AGREE = """
UPDATE marketdata.analytics_feeds SET told = greatest(told, %(told)s), sequence = greatest(sequence, %(told)s)
WHERE feed_id = %(feed)s RETURNING told
"""
_CHANGES = """
SELECT tenant, commodity, series, frequency, source, window_start, currency, unit, count, others, first, last, min, max,
    total, average, volatility, computed_at, f.partition || '-' || w.sequence, 1
FROM marketdata.price_window_features w JOIN marketdata.analytics_feeds f USING (feed_id)
WHERE feed_id = %s AND w.sequence > %s AND w.sequence <= %s ORDER BY w.sequence
"""
_BYTES = "octet_length(coalesce(key, '')) + octet_length(coalesce(value, ''))"
# Whatever its size, the first letter goes; one that is told without its value weighs nothing.
_UPTO = f"""
SELECT least(f.sequence, %(upto)s, (
    SELECT min(sequence) - 1 FROM (
        SELECT sequence, sum(CASE WHEN {_BYTES} <= %(largest)s THEN {_BYTES} END)
            OVER (ORDER BY sequence ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
        FROM marketdata.dead_letters
        WHERE feed_id = %(feed)s AND sequence > %(after)s AND sequence <= %(upto)s
    ) letters WHERE before >= %(bytes)s
)) FROM marketdata.analytics_feeds f WHERE feed_id = %(feed)s
"""  # noqa: S608
_LETTERS = f"""
SELECT CASE WHEN fits THEN key END, CASE WHEN fits THEN value END, reason, message_offset, failed_at,
    CASE WHEN NOT fits THEN letter_id END
FROM (SELECT *, {_BYTES} <= %s AS fits FROM marketdata.dead_letters) letters
WHERE feed_id = %s AND sequence > %s AND sequence <= %s ORDER BY sequence
"""  # noqa: S608
