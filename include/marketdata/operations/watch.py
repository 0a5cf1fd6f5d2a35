"""Lag and rate over time: what was sent and acknowledged against what the consumers have stored.

A consumer's position is the one it stores with its results, in PostgreSQL: from there it would read on after a restart.
The offsets it commits to Kafka are for lag tools, and may be missing after a broker was away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marketdata.operations.traffic import Traffic
from marketdata.postgres import connect

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.2


@dataclass(frozen=True)
class Sample:
    """A moment of a drill.

    Args:
        seconds: since the first message was sent.
        sent: messages given to the client.
        acknowledged: messages the brokers have.
        stored: messages that are in windows, by the consumers' own account.
        lag_records: acknowledged and not stored.
        lag_seconds: how long the oldest of these has waited; at most `INTERVAL_SECONDS` too long.
    """

    seconds: float
    sent: int
    acknowledged: int
    stored: int
    lag_records: int
    lag_seconds: float


class Watch:
    """Takes samples in a thread of its own while the traffic runs, until `end`."""

    def __init__(self, traffic: Traffic) -> None:
        self.samples: list[Sample] = []
        self.stored: dict[int, int] = {}
        """Offset up to which the consumers have stored, by partition."""
        self._traffic = traffic
        self._dsn = traffic.own.require("postgres_dsn")
        self._postgres: psycopg.Connection[Any] | None = None
        self._waiting: dict[int, deque[tuple[float, int]]] = {}
        self._before = 0.0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    @property
    def last(self) -> Sample:
        """The newest sample."""
        return self.samples[-1] if self.samples else Sample(0.0, 0, 0, 0, 0, 0.0)

    @property
    def caught_up(self) -> bool:
        """Whether everything acknowledged is stored."""
        return self.last.acknowledged == self._traffic.acknowledged and not self.last.lag_records

    def busiest_owner(self) -> str:
        """Name of the consumer that owns the partition most messages go to."""
        ends = dict(self._traffic.ends)
        with connect(self._dsn, "drill") as postgres:
            rows = postgres.execute(
                "SELECT partition, owner FROM marketdata.analytics_feeds WHERE consumer_group = %s",
                (self._traffic.own.analytics_group,),
            ).fetchall()
        return str(max(rows, key=lambda row: ends.get(row[0], 0))[1])

    def end(self) -> None:
        """Take no more samples."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(INTERVAL_SECONDS):
            if self._traffic.first_sent:
                self.samples.append(self._sample())
        if self._postgres is not None:
            self._postgres.close()

    def _sample(self) -> Sample:
        traffic = self._traffic
        self.stored |= self._positions()
        acknowledged, ends, now = traffic.acknowledged, dict(traffic.ends), time.monotonic()
        lag = 0
        oldest = now
        for partition, end in ends.items():
            stored = self.stored.get(partition, 0)
            lag += max(end - stored, 0)
            waiting = self._waiting.setdefault(partition, deque())
            if not waiting or waiting[-1][1] < end:
                waiting.append((self._before or now, end))
            while waiting and waiting[0][1] <= stored:
                waiting.popleft()
            if waiting:
                oldest = min(oldest, waiting[0][0])
        self._before = now
        return Sample(
            round(now - traffic.first_sent, 3), traffic.sent, acknowledged, sum(self.stored.values()), lag,
            round(now - oldest, 3),
        )  # fmt: skip

    def _positions(self) -> dict[int, int]:
        """What the consumers have stored; nothing new while PostgreSQL does not answer."""
        import psycopg

        try:
            if self._postgres is None:
                self._postgres = connect(self._dsn, "drill")
            rows = self._postgres.execute(
                "SELECT partition, next_offset FROM marketdata.analytics_feeds WHERE consumer_group = %s",
                (self._traffic.own.analytics_group,),
            )
            return dict(rows.fetchall())
        except psycopg.Error as error:
            log.debug("no sample of what is stored", extra={"reason": str(error)})
            self._postgres = None
            return {}
