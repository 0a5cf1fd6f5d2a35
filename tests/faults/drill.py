"""A publisher that never gives up, a reader that never looks away, and a consumer group, while things break."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any, TypeVar

from marketdata.batches import Batch
from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import TryLaterError, UnavailableError
from marketdata.settings import Settings
from marketdata.streaming import ledger
from marketdata.streaming.brokers import connection
from marketdata.streaming.fold import Offsets
from marketdata.streaming.publish import publish
from tests.contract.prices import batch_of, price
from tests.contract.test_analytics import ask, dead_letters, feeds, told, windows
from tests.contract.topic import held, held_of, identities
from tests.faults.children import environment
from tests.faults.test_analytics import owners
from tests.waiting import until

SEEDS = range(int(os.environ.get("FAULT_SEEDS", "1")))
ROWS = 300
COMMODITIES = ("Gold", "Silver", "Copper", "Oil", "Natural Gas")
PATIENCE = 90.0
"""Seconds a drill waits for what must happen; recovery is judged by the figure, not by this."""


T = TypeVar("T")


@dataclass(frozen=True)
class Committed:
    """A batch that `publish` said was published; times are of the monotonic clock."""

    batch: Batch
    rows: list[dict[str, Any]]
    offsets: tuple[Offsets, ...]
    begun: float
    done: float
    tries: int


class Publisher:
    """Publishes batch after batch, each as often as it takes, as a scheduler's retries would."""

    def __init__(self, settings: Settings, chance: random.Random) -> None:
        self.committed: list[Committed] = []
        self.failure: BaseException | None = None
        self._settings = settings
        self._chance = chance
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher")
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.failure:
            raise self.failure

    def wait_for(self, condition: Callable[[list[Committed]], bool]) -> None:
        until("enough is published", lambda: condition(self.committed) or not self._thread.is_alive(), PATIENCE)
        assert self._thread.is_alive(), self.failure

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                rows = self._rows(len(self.committed))
                batch = batch_of(self._settings, rows, parts=2)
                begun, tries = time.monotonic(), 0
                published = None
                while published is None:
                    tries += 1
                    try:
                        published = publish(COMMODITY_PRICES, batch, self._settings)
                    except (UnavailableError, TryLaterError):
                        if time.monotonic() - begun > PATIENCE:
                            raise
                assert published.published == ROWS
                self.committed.append(Committed(batch, rows, published.offsets, begun, time.monotonic(), tries))
        except BaseException as error:
            self.failure = error

    def _rows(self, number: int) -> list[dict[str, Any]]:
        first = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=number * ROWS)
        return [
            price(
                first + timedelta(seconds=row), f"{self._chance.randrange(1, 10**12)}E-6", batch=f"b{number}",
                commodity=COMMODITIES[row % 5], series=COMMODITIES[row % 5],
            )
            for row in range(ROWS)
        ]  # fmt: skip


@dataclass
class Seen:
    """What a reader has seen of one batch in one partition."""

    records: list[tuple[str, str]] = field(default_factory=list)
    total: Decimal = Decimal(0)
    whole_at: dict[int, float] = field(default_factory=dict)
    """How many records there were each time the reader had come to the end of what was committed, and when first."""


class Reader:
    """Reads what is committed as it comes, and at each end notes how much of each batch it has seen by then."""

    def __init__(self, settings: Settings) -> None:
        self.seen: dict[tuple[int, str], Seen] = {}
        self.failure: BaseException | None = None
        self._settings = settings
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def end(self, records: int) -> None:
        """Stop when this many records have been seen; more would be seen too, for a moment is waited."""

        def read() -> int:
            return sum(len(one.records) for one in list(self.seen.values()))

        until("the reader has seen everything", lambda: self.failure or read() >= records, PATIENCE, but=read)
        self._ended.set()
        self._thread.join(PATIENCE)
        if self.failure:
            raise self.failure

    def _run(self) -> None:
        from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

        consumer = Consumer(
            {
                **connection(self._settings),
                "group.id": "drill",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
                "error_cb": lambda error: None,
            }
        )
        try:
            consumer.assign([TopicPartition(self._settings.kafka_topic, number, 0) for number in range(3)])
            touched: dict[int, set[str]] = {number: set() for number in range(3)}
            at_end: set[int] = set()
            while not (self._ended.is_set() and len(at_end) == 3):
                for message in consumer.consume(1000, timeout=0.1):
                    number, error = message.partition() or 0, message.error()
                    if error and error.code() == KafkaError._PARTITION_EOF:
                        for batch in touched[number]:
                            one = self.seen[number, batch]
                            one.whole_at.setdefault(len(one.records), time.monotonic())
                        touched[number] = set()
                        at_end.add(number)
                    elif error:
                        raise KafkaException(error)
                    else:
                        at_end.discard(number)
                        said = json.loads(message.value() or b"", parse_float=Decimal)
                        if "poison" in said:
                            continue
                        one = self.seen.setdefault((number, said["batch_id"]), Seen())
                        one.records.append((said["record_id"], said["content_hash"]))
                        one.total += said["price"]
                        touched[number].add(said["batch_id"])
        except BaseException as error:
            self.failure = error
        finally:
            consumer.close()


class Members:
    """A consumer group of three: real processes, each started again under its name when it ends, as pods are.

    Args:
        variables: environment of each, by its name, beside the settings.
    """

    NAMES = ("one", "two", "three")

    def __init__(self, settings: Settings, variables: Mapping[str, Mapping[str, str]] = MappingProxyType({})) -> None:
        self.exits: list[int] = []
        """Of those that ended by themselves."""
        self._settings = settings
        self._variables = variables
        self._processes = {name: self._start(name) for name in self.NAMES}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="members")
        self._thread.start()

    def kill(self, name: str, *, for_good: bool = False) -> None:
        """SIGKILL one; another process takes its place and name at once, or nobody does."""
        with self._lock:
            process = self._processes.pop(name)
            process.kill()
            process.wait()
            if not for_good:
                self._processes[name] = self._start(name)

    def said(self, pattern: str) -> bool:
        """Whether any of them has logged this."""
        logs = [self._settings.marketdata_home / f"{name}.log" for name in self.NAMES]
        return any(re.search(pattern, log.read_text(errors="replace")) for log in logs)

    def end(self) -> None:
        self._ended.set()
        self._thread.join(PATIENCE)
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _keep(self) -> None:
        while not self._ended.wait(0.05):
            with self._lock:
                for name, process in self._processes.items():
                    if process.poll() is not None:
                        self.exits.append(process.returncode)
                        self._processes[name] = self._start(name)

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        with (self._settings.marketdata_home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", CONSUME],
                env=environment(self._settings, ANALYTICS_MEMBER=name, **self._variables.get(name, {})),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip


CONSUME = """
import os, sys, time
ahead, now, now_ns = int(os.environ.get("AHEAD_SECONDS", "0")), time.time, time.time_ns
time.time, time.time_ns = lambda: now() + ahead, lambda: now_ns() + ahead * 10**9
from marketdata.streaming import window_store, windows
from marketdata.tasks import analytics
from marketdata.tasks.cli import main
windows.QUIET = windows.SECOND // 2
window_store.PATIENCE_SECONDS = 3
analytics.TOPIC_SECONDS = 0.5
sys.argv[1:] = ["analytics"]
main()
"""


def all_consume(settings: Settings) -> bool:
    """Whether every member has a partition."""
    return sorted(owners(settings).values()) == sorted(Members.NAMES)


def counted(settings: Settings, offsets: tuple[Offsets, ...]) -> bool:
    """Whether the consumer has read these, and stored that it has."""
    try:
        rows = ask(
            settings,
            "SELECT partition, next_offset FROM marketdata.analytics_feeds WHERE consumer_group = %(group)s",
        )
    except UnavailableError:
        return False
    upto = dict(rows)
    return all(upto.get(span.partition, 0) > span.last for span in offsets)


def verify(settings: Settings, committed: list[Committed], reader: Reader, poison: list[bytes]) -> float:
    """Batches = ledger = topic = reader = windows = aggregates, poison = dead letters; each once, to the last digit.

    Returns:
        the longest time in seconds between the first and the last partition of a batch becoming visible.
    """
    reader.end(sum(len(one.rows) for one in committed))
    apart = _verify_topic(settings, committed, reader)
    _verify_windows(settings, [row for one in committed for row in one.rows], poison)
    return apart


def read_again(
    what: str,
    read: Callable[[], list[T]],
    right: Callable[[list[T]], bool],
    but: Callable[[list[T]], str] = lambda _: "",
) -> list[T]:
    """What is in a topic, once it is right.

    One that is read just after a fault may seem to end too early (docs/adr/0023); what is lost or twice stays so.

    Args:
        but: what is wrong with what was read last.
    """
    found: list[T] = []

    def is_right() -> bool:
        with suppress(TryLaterError, UnavailableError):
            found[:] = read()
            return right(found)
        return False

    until(what, is_right, PATIENCE, but=lambda: but(found))
    return found


def _verify_windows(settings: Settings, rows: list[dict[str, Any]], poison: list[bytes]) -> None:
    """Rows = windows = topic of aggregates, poison = table = topic of dead letters; each once, to the last digit."""
    expected: dict[tuple[str, datetime], tuple[int, Decimal]] = {}
    for row in rows:
        key = row["series"], row["event_time"].replace(second=0)
        count, total = expected.get(key, (0, Decimal(0)))
        expected[key] = count + 1, total + row["price"]

    def stored() -> dict[tuple[str, datetime], tuple[int, Decimal]]:
        return {key: figures[:2] for key, figures in windows(settings).items()}

    def untold() -> int:
        ((behind,),) = ask(
            settings,
            "SELECT coalesce(sum(sequence - told), -1)::int FROM marketdata.analytics_feeds "
            "WHERE consumer_group = %(group)s",
        )
        return int(behind)

    def behind() -> tuple[int, int]:
        records, letters, _ = feeds(settings)
        return len(rows) - records, len(poison) - letters

    until("each message is counted once", lambda: behind() == (0, 0), PATIENCE, but=behind)
    until("all windows are stored", lambda: stored() == expected, PATIENCE)
    until("all changes are told", lambda: untold() == 0, PATIENCE, but=untold)

    def last(messages: list[dict[str, Any]]) -> dict[tuple[str, datetime], tuple[int, Decimal]]:
        return {
            (message["series"], datetime.fromisoformat(message["window_start"])): (message["count"], message["total"])
            for message in messages
        }

    messages = read_again("the last of each window", lambda: told(settings), lambda found: last(found) == expected)
    assert set(Counter((message["record_id"], message["batch_id"]) for message in messages).values()) == {1}
    letters = ask(
        settings,
        "SELECT value FROM marketdata.dead_letters JOIN marketdata.analytics_feeds USING (feed_id) "
        "WHERE consumer_group = %(group)s",
    )
    assert Counter(bytes(value) for (value,) in letters) == Counter(poison)
    read_again(
        "each dead letter once", lambda: [letter.value() for _, letter in dead_letters(settings)],
        lambda found: Counter(found) == Counter(poison),
    )  # fmt: skip


def _differences(committed: list[Committed], found: Counter[tuple[str, str]], reader: Reader) -> str:
    """What the topic lacks of each batch and has too much, beside what the reader saw."""
    lines = []
    for number, one in enumerate(committed):
        wanted = Counter((row["record_id"], row["content_hash"]) for row in one.rows)
        if lacks := (wanted - found).total():
            seen = sum(
                len(of.records) for (_, batch), of in reader.seen.items() if batch == one.batch.manifest.batch_id
            )
            lines.append(f"batch {number} of {len(committed)} lacks {lacks}, the reader saw {seen}; {one.offsets}")
        found = found - wanted
    return "\n".join([*lines, f"{found.total()} are too many"])


def _verify_topic(settings: Settings, committed: list[Committed], reader: Reader) -> float:
    """Batches = ledger = topic = what the reader saw, each record once, to the last digit, and nothing in parts.

    Kafka makes a transaction visible partition by partition, so a batch is whole within each partition whenever a
    reader has come to its end, and nothing is ever seen of a batch that is not published.

    Returns:
        the longest time in seconds between the first and the last partition of a batch becoming visible.
    """
    wanted = Counter((row["record_id"], row["content_hash"]) for one in committed for row in one.rows)
    assert set(wanted.values()) == {1}
    total = sum((row["price"] for one in committed for row in one.rows), Decimal(0))

    messages = read_again(
        "each record once", lambda: [message for message in held(settings) if "poison" not in message],
        lambda found: identities(found) == wanted, lambda found: _differences(committed, identities(found), reader),
    )  # fmt: skip
    assert sum((message["price"] for message in messages), Decimal(0)) == total

    assert Counter(record for one in reader.seen.values() for record in one.records) == wanted
    assert sum((one.total for one in reader.seen.values()), Decimal(0)) == total
    for (partition, batch), one in reader.seen.items():
        assert set(one.whole_at) == {len(one.records)}, f"{batch} was seen in parts in partition {partition}"

    batches = {one.batch.manifest.batch_id for one in committed}
    read_again(
        "each batch in the ledger", lambda: [*ledger.read(settings, COMMODITY_PRICES, "default").batches],
        lambda found: set(found) == batches,
    )  # fmt: skip
    assert {batch for _, batch in reader.seen} == batches
    last = committed[-1]
    read_again(
        "what the ledger says of a batch", lambda: held_of(settings, last.batch.manifest.batch_id).to_pylist(),
        lambda found: identities(found) == identities(last.rows),
    )  # fmt: skip
    became: dict[str, list[float]] = {}
    for (_, batch), one in reader.seen.items():
        became.setdefault(batch, []).extend(one.whole_at.values())
    return max(max(moments) - min(moments) for moments in became.values())
