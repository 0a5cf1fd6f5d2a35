"""A publisher that never gives up and a reader that never looks away, while something is done to the brokers."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from marketdata.batches import Batch
from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import TryLaterError, UnavailableError
from marketdata.settings import Settings
from marketdata.streaming import ledger
from marketdata.streaming.brokers import connection
from marketdata.streaming.consume import records_of
from marketdata.streaming.publish import publish
from tests.contract.prices import batch_of, price
from tests.contract.topic import held, identities

ROWS = 300
COMMODITIES = ("Gold", "Silver", "Copper", "Oil", "Natural Gas")
PATIENCE = 90.0
"""Seconds a drill waits for what must happen; recovery is judged by the figure, not by this."""


@dataclass(frozen=True)
class Committed:
    """A batch that `publish` said was published; times are of the monotonic clock."""

    batch: Batch
    rows: list[dict[str, Any]]
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
        deadline = time.monotonic() + PATIENCE
        while not condition(self.committed):
            assert self._thread.is_alive(), self.failure
            assert time.monotonic() < deadline, "nothing was published in time"
            time.sleep(0.01)

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
                self.committed.append(Committed(batch, rows, begun, time.monotonic(), tries))
        except BaseException as error:
            self.failure = error

    def _rows(self, number: int) -> list[dict[str, Any]]:
        first = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=number * ROWS)
        return [
            price(
                first + timedelta(minutes=row), f"{self._chance.randrange(1, 10**12)}E-6", batch=f"b{number}",
                commodity=COMMODITIES[row % 5],
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
        self._thread = threading.Thread(target=self._run, name="reader")
        self._thread.start()

    def end(self, records: int) -> None:
        """Stop when this many records have been seen; more would be seen too, for a moment is waited."""
        deadline = time.monotonic() + PATIENCE
        while self.failure is None and sum(len(one.records) for one in list(self.seen.values())) < records:
            assert time.monotonic() < deadline, "the reader has not seen everything in time"
            time.sleep(0.05)
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
                        one = self.seen.setdefault((number, said["batch_id"]), Seen())
                        one.records.append((said["record_id"], said["content_hash"]))
                        one.total += said["price"]
                        touched[number].add(said["batch_id"])
        except BaseException as error:
            self.failure = error
        finally:
            consumer.close()


def verify(settings: Settings, committed: list[Committed], reader: Reader) -> float:
    """Batches = ledger = topic = what the reader saw, each record once, to the last digit, and nothing in parts.

    Kafka makes a transaction visible partition by partition, so a batch is whole within each partition whenever a
    reader has come to its end, and nothing is ever seen of a batch that is not published.

    Returns:
        the longest time in seconds between the first and the last partition of a batch becoming visible.
    """
    wanted = Counter((row["record_id"], row["content_hash"]) for one in committed for row in one.rows)
    assert set(wanted.values()) == {1}
    total = sum((row["price"] for one in committed for row in one.rows), Decimal(0))

    messages = held(settings)
    assert identities(messages) == wanted
    assert sum((message["price"] for message in messages), Decimal(0)) == total

    assert Counter(record for one in reader.seen.values() for record in one.records) == wanted
    assert sum((one.total for one in reader.seen.values()), Decimal(0)) == total
    for (partition, batch), one in reader.seen.items():
        assert set(one.whole_at) == {len(one.records)}, f"{batch} was seen in parts in partition {partition}"

    batches = {one.batch.manifest.batch_id for one in committed}
    assert set(ledger.read(settings, COMMODITY_PRICES, "default").batches) == batches
    assert {batch for _, batch in reader.seen} == batches
    last = committed[-1]
    in_ledger = records_of(settings, COMMODITY_PRICES, last.batch.manifest.batch_id).to_pylist()
    assert Counter((row["record_id"], row["content_hash"]) for row in in_ledger) == Counter(
        (row["record_id"], row["content_hash"]) for row in last.rows
    )
    became: dict[str, list[float]] = {}
    for (_, batch), one in reader.seen.items():
        became.setdefault(batch, []).extend(one.whole_at.values())
    return max(max(moments) - min(moments) for moments in became.values())
