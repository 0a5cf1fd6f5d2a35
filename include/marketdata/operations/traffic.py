"""Messages at a steady pace: the platform's own encoding, and an account of each one that was acknowledged.

The sender is a plain idempotent producer, not `publish`. A publisher's batch is one transaction and becomes visible at
once, so it has no pace; and its ledger would be compared with nothing. Encoding is the publisher's, byte for byte.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.datasets.conform import connect
from marketdata.settings import Settings
from marketdata.streaming.encode import messages
from marketdata.streaming.publish import producer_settings
from marketdata.streaming.topics import ledger_topic

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from confluent_kafka import KafkaError, Message, Producer

log = logging.getLogger(__name__)

CHUNK = 20_000
"""Messages encoded at once: some 50 ms."""

PIECE_SECONDS = 0.01
DELIVERY_SECONDS = 120
"""A broker may be away for so long before a message counts as undelivered."""

AGE = 7 * 86_400_000_000
"""Microseconds from the first event time to now: such windows close as their messages come, and alert nobody."""

STEP = 86_400
"""Microseconds between two event times: a day holds 1,000,000 messages (R5.2), however fast they are sent."""


class Traffic:
    """Sends in a thread of its own, until all is sent or `stop`.

    Args:
        own: settings of a proving ground: the topic is nobody else's.
        count: messages to send; None for as many as there is time for.
        rate: messages a second.
    """

    def __init__(self, own: Settings, count: int | None, rate: int) -> None:
        self.own = own
        self.rate = rate
        self.sent = 0
        self.acknowledged = 0
        self.undelivered: list[int] = []
        self.ends: dict[int, int] = {}
        """Offset after the last acknowledged message, by partition."""
        self.first_sent = 0.0
        self.last_acknowledged = 0.0
        self.longest_silence = 0.0
        """Seconds between two acknowledgements."""
        self._start = a_week_ago()
        self._count = count
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether every message has been sent and answered for.

        Raises:
            Exception: what ended the thread before.
        """
        if self._failure:
            raise self._failure
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Send no more; what was sent is still answered for."""
        self._stopping.set()

    def create_table(self, duck: duckdb.DuckDBPyConnection) -> None:
        """Give a connection of `conform.connect` table ``sent``: what each message said that was sent so far."""
        duck.execute(f"CREATE TABLE sent AS {_SAID}", self._parameters(0, self.sent))

    def _run(self) -> None:
        try:
            self._send()
        except BaseException as error:
            self._failure = error

    def _send(self) -> None:
        from confluent_kafka import Producer

        options = producer_settings(self.own, None, []) | {
            "linger.ms": 5,
            "queue.buffering.max.kbytes": 256 * 1024,
            "message.timeout.ms": DELIVERY_SECONDS * 1000,
        }
        producer = Producer(options, logger=log)
        # Connected and numbered as a producer before the clock starts; no drill reads its ground's ledger.
        producer.produce(ledger_topic(self.own, COMMODITY_PRICES), b"ready")
        producer.flush()
        piece = max(1, int(self.rate * PIECE_SECONDS))
        for key, value, number in self._messages():
            if not number:
                self.first_sent = self.last_acknowledged = time.monotonic()
            if number % piece == 0:
                while (ahead := self.first_sent + number / self.rate - time.monotonic()) > 0:
                    producer.poll(min(ahead, PIECE_SECONDS))
                producer.poll(0)
                if self._stopping.is_set():
                    break
            self._produce(producer, number, key, value)
        producer.flush()

    def _produce(self, producer: Producer, number: int, key: bytes, value: bytes) -> None:
        def answered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self.undelivered.append(number)
                return
            now = time.monotonic()
            self.longest_silence = max(self.longest_silence, now - self.last_acknowledged)
            self.last_acknowledged = now
            self.acknowledged += 1
            self.ends[message.partition() or 0] = (message.offset() or 0) + 1

        while True:
            try:
                producer.produce(self.own.kafka_topic, value, key, on_delivery=answered)
                break
            except BufferError:
                producer.poll(0.1)
        self.sent = number + 1

    def _messages(self) -> Iterator[tuple[bytes, bytes, int]]:
        numbers = itertools.count()
        with connect() as duck:
            for first in itertools.count(0, CHUNK):
                last = first + CHUNK if self._count is None else min(first + CHUNK, self._count)
                if first >= last:
                    return
                table = records(duck, *self._parameters(first, last))
                for keys, values in messages(duck, COMMODITY_PRICES, table):
                    # The numbers last: they have no end, and the one after the last message is the next chunk's first.
                    yield from zip(keys, values, numbers)  # noqa: B905

    def _parameters(self, first: int, last: int) -> tuple[str, str, int, int, int]:
        return self.own.kafka_topic, self.own.tenant, self._start, first, last


def a_week_ago() -> int:
    """Event time of a drill's first record, in microseconds since 1970."""
    return time.time_ns() // 1000 - AGE


def records(duck: duckdb.DuckDBPyConnection, name: str, tenant: str, start: int, first: int, last: int) -> pa.Table:
    """Made-up prices, numbered from first to last, exclusive; the same name and start make the same ones.

    Args:
        duck: a connection of `conform.connect`.
        start: event time of number 0, in microseconds since 1970.
    """
    rows: pa.Table = duck.sql(_MESSAGES, params=[name, tenant, start, first, last]).to_arrow_table()
    return rows.cast(COMMODITY_PRICES.arrow_schema())


_ROWS = f"""
SELECT i AS number, sha256($1 || '/' || i) AS record_id, $2 AS tenant,
    ['Gold', 'Silver', 'Copper', 'Oil', 'Natural Gas'][1 + i % 5] AS commodity,
    ['LBMA gold', 'LBMA silver', 'LME copper', 'WTI', 'Henry Hub'][1 + i % 5] AS series, 'tick' AS frequency,
    CAST([2000, 25, 8000, 70, 3][1 + i % 5] + i * 7919 % 1000003 / 1000000 AS DECIMAL(18,6)) AS price,
    'USD' AS currency, ['troy_oz', 'troy_oz', 'tonne', 'bbl', 'mmbtu'][1 + i % 5] AS unit,
    CAST(NULL AS DECIMAL(18,4)) AS volume, 'drill' AS source,
    make_timestamp(CAST($3 + i * {STEP} AS BIGINT)) AT TIME ZONE 'UTC' AS event_time,
    CAST(event_time AS DATE) AS price_date, event_time AS as_of, event_time AS ingested_at, $1 AS run_id,
    $1 AS batch_id, sha256('content/' || i) AS content_hash, CAST(1 AS INTEGER) AS schema_version
FROM range(CAST($4 AS BIGINT), CAST($5 AS BIGINT)) AS numbers(i) ORDER BY i
"""  # noqa: S608
_MESSAGES = f"SELECT {', '.join(column.name for column in COMMODITY_PRICES.columns)} FROM ({_ROWS})"  # noqa: S608
_SAID = f"SELECT number, record_id, series, event_time, price FROM ({_ROWS})"  # noqa: S608
