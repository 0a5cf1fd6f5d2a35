"""The consumer: topic ``commodity-prices`` into one-minute windows, each record counted once, whatever is killed.

A round reads what has come, folds it into the open windows, and stores the windows that are due together with the
offset to read on from. Where a restart reads on is the first record of the oldest *open* window: Kafka has those
records, so open windows are stored nowhere. Reading a record again changes nothing (`windows`), and it is not counted
again (`analytics_feeds.next_offset`). Offsets committed to Kafka are for lag tools alone.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.errors import TryLaterError, UnavailableError, UsageError
from marketdata.settings import Settings
from marketdata.streaming import ledger
from marketdata.streaming.brokers import bounds, reach
from marketdata.streaming.decode import Letter, Raw, Reader
from marketdata.streaming.group import membership
from marketdata.streaming.service import Measures, Progress
from marketdata.streaming.topics import records_topic
from marketdata.streaming.window_sinks import TopicSink
from marketdata.streaming.window_store import Change, Checkpoint, Feed, WindowStore, connected
from marketdata.streaming.windows import Book, Windows

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

log = logging.getLogger(__name__)

BATCH = 10_000
"""Most messages of a round: with 600 bytes each, some 30 MB while they are columns and objects."""

POLL_SECONDS = 0.05
FIRST_SECONDS = 3.0
"""How long a leader may take to say where its partition begins, while nothing else is read."""

CHECKPOINT_SECONDS = 1.0
"""Without a window that is due, a restart counts on from at most so long ago."""


@dataclass
class Partition:
    """A partition this member owns."""

    feed: Feed
    windows: Windows
    position: int
    appended: int = 0
    read_at: float = 0.0
    at_end: bool = False
    letters: list[Letter] = field(default_factory=list)
    records: int = 0
    late: int = 0

    def clock(self) -> int:
        """The log's time in microseconds: of the last record, or now where there is none after it.

        A machine whose clock is behind the brokers' goes by how long ago it read that record.
        """
        if not self.at_end:
            return self.appended
        since = self.appended + int((time.monotonic() - self.read_at) * 1e6)
        return max(since, time.time_ns() // 1000)

    def checkpoint(self) -> Checkpoint:
        closing = self.windows.due(self.clock())
        gone = {id(window) for window in closing}
        resume = min((window.first_offset for window in self.windows if id(window) not in gone), default=self.position)
        # After a restart the position is behind what has been counted, until all of that has been read again.
        counted = max(self.position, self.feed.next_offset)
        return Checkpoint(self.feed, counted, resume, closing, self.letters, records=self.records, late=self.late)

    def stored(self, checkpoint: Checkpoint) -> None:
        self.windows.close(checkpoint.closing)
        self.letters, self.records, self.late = [], 0, 0


class Analytics:
    """One member of the consumer group; `run` is its life.

    Args:
        tell: what to do with recent windows that have changed, before they are stored; must bear repetition.
        wake: called when something was stored that sinks may want.
    """

    def __init__(
        self,
        settings: Settings,
        measures: Measures,
        progress: Progress,
        tell: Callable[[list[Change]], None],
        wake: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._topic = records_topic(settings, COMMODITY_PRICES)
        self.member = settings.analytics_member or socket.gethostname()
        self._measures = measures
        self._progress = progress
        self._tell = tell
        self._wake = wake
        self._book = Book()
        self._reader = Reader(COMMODITY_PRICES, self._book)
        self._store = WindowStore(settings, self._topic, self._book)
        self._partitions: dict[int, Partition] = {}
        self._topic_id = ""
        self._stored_at = 0.0
        self._last_said: str | None = None

    @property
    def feeds(self) -> list[Feed]:
        """Partitions of this moment; may be asked from any thread."""
        return [partition.feed for partition in list(self._partitions.values())]

    def run(self, stop: threading.Event) -> None:
        """Consume until `stop` is set, then store what is due and leave.

        Raises:
            TryLaterError: another member took over while this one slept.
            UnavailableError: PostgreSQL was away for too long.
            UsageError: there is no such topic.
        """
        self._store.stop = stop
        cluster = reach(self._settings)
        bounds(cluster, self._topic)
        self._topic_id = ledger.topic_id(cluster, self._topic)
        consumer = self._consumer()
        try:
            consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
            self._progress.advanced = time.monotonic()
            while not stop.is_set():
                self._progress.turned = time.monotonic()
                self._round(consumer, consumer.consume(BATCH, POLL_SECONDS))
            self._progress.stopping = True
            self._checkpoint(consumer, list(self._partitions.values()))
        except BaseException:
            self._partitions.clear()  # or closing would try to store them
            raise
        finally:
            consumer.close()
            self._store.close()

    def _consumer(self) -> Consumer:
        from confluent_kafka import Consumer

        return Consumer(
            {
                **membership(self._settings),
                "client.id": f"marketdata-{self.member}",
                "group.instance.id": self.member,
                "max.poll.interval.ms": 60_000,
                "isolation.level": "read_committed",
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",  # where retention was faster; `_assigned` says so
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
                "queued.max.messages.kbytes": 32_768,
                "error_cb": self._said,
            },
            logger=log,
        )

    def _round(self, consumer: Consumer, messages: list[Message]) -> None:
        began = time.perf_counter()
        arrived: dict[int, list[Message]] = {}
        told: list[tuple[KafkaError, int, int]] = []
        for message in messages:
            if error := message.error():
                told.append((error, message.partition() or 0, message.offset() or 0))
            else:
                arrived.setdefault(message.partition() or 0, []).append(message)
        for number, some in arrived.items():
            # A message of a partition that was taken away in this very call is its new owner's.
            if partition := self._partitions.get(number):
                self._take(partition, some)
        for error, number, end in told:
            self._understand(error, number, end)
        owned = list(self._partitions.values())
        elapsed = time.monotonic() - self._stored_at >= CHECKPOINT_SECONDS
        ready = [
            p for p in owned if p.letters or p.windows.due(p.clock()) or (elapsed and p.position > p.feed.next_offset)
        ]
        if ready:
            self._checkpoint(consumer, ready)
        if elapsed:
            self._stored_at = time.monotonic()
            self._replay(owned)
            self._watch(consumer, owned)
        if arrived:
            self._measures.batch_seconds.observe(time.perf_counter() - began)

    def _take(self, partition: Partition, messages: list[Message]) -> None:
        found = self._reader.read(Raw.of(message) for message in messages)
        counted = partition.feed.next_offset
        if len(found.records.offsets):
            partition.late += partition.windows.add(found.records, counted)
            fresh = found.records.offsets >= counted
            partition.records += int(fresh.sum())
            self._measures.records.inc(int(fresh.sum()))
            self._measures.latencies(np.maximum(time.time() - found.ingested[fresh] / 1e6, 0.0))
        letters = [letter for letter in found.letters if letter.offset >= counted]
        if letters:
            log.warning(
                "messages could not be read; they go to the dead letters",
                extra={"partition": partition.feed.partition, "records": len(letters), "reason": letters[0].reason},
            )
            partition.letters += letters
            self._measures.letters.inc(len(letters))
        last = messages[-1]
        partition.position = (last.offset() or 0) + 1
        partition.appended = max(partition.appended, last.timestamp()[1] * 1000)
        partition.read_at = time.monotonic()
        partition.at_end = False
        self._progress.advanced = time.monotonic()

    def _checkpoint(self, consumer: Consumer, partitions: list[Partition]) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        if not partitions:
            return
        checkpoints = [partition.checkpoint() for partition in partitions]
        self._store.commit(checkpoints, self._tell)
        for partition, checkpoint in zip(partitions, checkpoints, strict=True):
            partition.stored(checkpoint)
        if any(checkpoint.closing or checkpoint.letters for checkpoint in checkpoints):
            self._wake()
        offsets = [TopicPartition(self._topic, p.feed.partition, p.position) for p in partitions]
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.debug("offsets for lag tools were not committed", extra={"reason": str(error)})

    def _replay(self, partitions: list[Partition]) -> None:
        """Read dead letters again that somebody wants read again; what they come to is stored with the mark of it."""
        by_number = {partition.feed.partition: partition for partition in partitions}
        asked = self._store.asked([partition.feed for partition in partitions]) if partitions else {}
        for number, letters in asked.items():
            feed = by_number[number].feed
            now = time.time_ns() // 1000
            raw = [Raw(one.letter_id, now, one.letter.key, one.letter.value) for one in letters]
            found = self._reader.read(raw)
            windows = Windows(self._book)
            if len(found.records.offsets):
                windows.add(found.records)
            replayed = found.records.offsets.tolist()
            failed = [(letter.offset, letter.reason) for letter in found.letters]
            self._store.commit(
                [
                    Checkpoint(
                        feed, feed.next_offset, feed.resume_offset, list(windows), replayed=replayed, failed=failed
                    )
                ],
                self._tell,
            )
            log.info("replayed dead letters", extra={"records": len(replayed), "failed": len(failed)})
            self._wake()

    def _watch(self, consumer: Consumer, partitions: list[Partition]) -> None:
        from confluent_kafka import TopicPartition

        caught_up = True
        for partition in partitions:
            number = partition.feed.partition
            _, end = consumer.get_watermark_offsets(TopicPartition(self._topic, number), cached=True)
            behind = 0 if partition.at_end else max(end - partition.position, 0)
            age = time.time() - partition.appended / 1e6 if behind and partition.appended else 0.0
            self._measures.lag(number, behind, max(age, 0.0))
            caught_up &= partition.at_end
        self._progress.caught_up = caught_up

    def _assigned(self, consumer: Consumer, given: list[TopicPartition]) -> None:
        for at in given:
            feed = self._store.claim(at.partition, self._topic_id, self.member)
            first = self._first(consumer, at)
            if feed.resume_offset < first and feed.next_offset > 0:
                log.error(
                    "records were lost: the topic's retention was faster than this consumer",
                    extra={"partition": at.partition, "records": first - feed.resume_offset},
                )
            at.offset = max(feed.resume_offset, first)
            self._partitions[at.partition] = Partition(feed, Windows(self._book), at.offset)
        consumer.incremental_assign(given)
        self._progress.assigned, self._progress.caught_up = True, False
        log.info("partitions assigned", extra={"partitions": [at.partition for at in given]})

    def _first(self, consumer: Consumer, at: TopicPartition) -> int:
        """First offset the topic still has; 0 where its leader does not say so: the client finds it by itself."""
        from confluent_kafka import KafkaException

        try:
            return int(consumer.get_watermark_offsets(at, timeout=FIRST_SECONDS)[0])
        except KafkaException as error:
            log.warning("a partition's first offset is not known", extra={"reason": error.args[0].str()})
            return 0

    def _revoked(self, consumer: Consumer, taken: list[TopicPartition]) -> None:
        mine = [self._partitions[at.partition] for at in taken if at.partition in self._partitions]
        try:
            self._checkpoint(consumer, mine)
        except UnavailableError as error:
            # Who ended here would never hand them on: started again under its name, it is given what is left to it,
            # and the coordinator sees no reason to deal out the rest. What was not stored is read again.
            log.warning("taken partitions are handed on without a checkpoint", extra={"reason": error.message})
        self._drop(taken)

    def _lost(self, _consumer: Consumer, taken: list[TopicPartition]) -> None:
        self._drop(taken)

    def _drop(self, taken: list[TopicPartition]) -> None:
        for at in taken:
            self._partitions.pop(at.partition, None)
            self._measures.forget(at.partition)
        log.info("partitions taken away", extra={"partitions": [at.partition for at in taken]})

    def _understand(self, error: KafkaError, number: int, end: int) -> None:
        from confluent_kafka import KafkaError

        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            partition = self._partitions.get(number)
            if partition and end >= partition.position:
                partition.at_end = True
                partition.position = end  # transactions' markers lie between the last record and the end
        elif error.fatal() or code in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID):
            raise TryLaterError(
                f"this member of {self._settings.analytics_group} has been replaced: {error.str()}; what it had not "
                "stored is its successor's",
                f"give each member a name of its own (ANALYTICS_MEMBER, here {self.member})",
            )
        elif code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            raise UsageError(f"topic {self._topic} does not exist any more", "create it: marketdata topics apply")
        else:
            log.warning("Kafka says", extra={"reason": error.str()})

    def _said(self, error: KafkaError) -> None:
        # The client itself goes on trying; the same complaint is not repeated.
        if error.str() != self._last_said:
            self._last_said = error.str()
            log.warning("Kafka says", extra={"reason": error.str()})


class TopicSinks:
    """The topic sinks of the partitions a member owns now; used by one thread."""

    def __init__(self, settings: Settings, feeds: Callable[[], list[Feed]]) -> None:
        self._settings = settings
        self._topic = records_topic(settings, COMMODITY_PRICES)
        self._feeds = feeds
        self._sinks: dict[tuple[int, int], TopicSink] = {}

    def deliver(self) -> int:
        """Tell what has changed; one partition's failure does not keep the others waiting."""
        feeds = {(feed.feed_id, feed.epoch): feed for feed in self._feeds()}
        for gone in self._sinks.keys() - feeds.keys():
            self._sinks.pop(gone).close()
        sent = 0
        failures: list[Exception] = []
        with connected(self._settings) as postgres:
            for key, feed in feeds.items():
                sink = self._sinks.setdefault(key, TopicSink(self._settings, self._topic, feed))
                try:
                    sent += sink.deliver(postgres)
                except Exception as error:
                    failures.append(error)
            if failures:
                raise failures[0]
        return sent

    def close(self) -> None:
        for sink in self._sinks.values():
            sink.close()
