"""A task of the pipeline at work on the proving ground, tried again as a scheduler would where it is interrupted."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from marketdata import settings as configuration
from marketdata.batches import Batch, Interval, Lake, Manifest, content_id, now
from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.datasets.conform import connect
from marketdata.errors import NO_RETRY, MarketdataError, UnavailableError
from marketdata.lakehouse import open_lakehouse
from marketdata.observability import logs
from marketdata.operations import children
from marketdata.operations.drill import Event, noted
from marketdata.operations.ground import ground, own_settings
from marketdata.operations.traffic import a_week_ago, records
from marketdata.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

Step = Literal["publish", "load"]

ROWS = 300_000
"""Of the batch: some seconds of work, so that there is a middle to strike in."""

AGAIN_SECONDS = 1.0
"""Between two tries; a scheduler's are minutes apart, and not what a drill measures."""

GRACE_SECONDS = 30.0
"""Between SIGTERM and SIGKILL of a pod that is evicted."""


class Task:
    """`publish` or `load` of a batch, as a process, started again until it succeeds.

    Args:
        own: settings of the proving ground, as the task has them.
        log: where it writes what it says.
    """

    def __init__(self, own: Settings, step: Step, batch: Batch, log: Path) -> None:
        self.tries = 0
        self._own = own
        self._words = [step, batch.uri]
        self._log = log
        self._start()

    def done(self) -> bool:
        """Whether a try has succeeded; one that has failed is followed by another.

        Raises:
            UnavailableError: it has failed in a way that no other try would mend.
        """
        code = self._process.poll()
        if code is None or code == 0:
            return code == 0
        if code in NO_RETRY or code == MarketdataError.exit_code:
            raise UnavailableError(f"the task ended with {code}{self.said()}")
        time.sleep(AGAIN_SECONDS)
        self._start()
        return False

    def running(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        """The last error it told, after a colon."""
        return children.last_words(self._log)

    def evict(self) -> None:
        """SIGTERM, and SIGKILL where that does not end it in time."""
        self._process.terminate()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self.tries += 1
        self._process = children.start(self._own, __name__, self._words, self._log)


@dataclass
class Work:
    """A drill while a task works.

    Args:
        own: settings of the proving ground.
        sent: numbers, record ids and prices of the batch.
    """

    own: Settings
    batch: Batch
    sent: pa.Table
    log: Path
    events: list[Event] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    def note(self, says: str) -> float:
        """Record that something happened now; returns when, on the monotonic clock."""
        return noted(self.events, self._began, says)

    @contextmanager
    def task(self, step: Step, own: Settings | None = None) -> Iterator[Task]:
        """The task, started; it is gone after the block."""
        task = Task(own or self.own, step, self.batch, self.log)
        self.note(f"the task began to {step} {self.batch.manifest.rows:,} records")
        try:
            yield task
        finally:
            task.kill()


@contextmanager
def work(settings: Settings, run_id: str, drill: str) -> Iterator[Work]:
    """A proving ground with a batch on it, and nothing of them after the block.

    Raises:
        UnavailableError: an engine is gone; what is left of the drill is named.
    """
    import pyarrow as pa

    own = own_settings(settings, run_id, drill)
    with ground(own), tempfile.TemporaryDirectory(prefix="marketdata-drill-") as folder, connect() as duck:
        rows = records(duck, own.kafka_topic, own.tenant, a_week_ago(), 0, ROWS)
        sent = rows.select(["record_id", "price"]).append_column("number", pa.array(range(ROWS), pa.int64()))
        yield Work(own, _batch(own, rows, run_id), sent, Path(folder) / "task.log")


def _batch(own: Settings, rows: pa.Table, run_id: str) -> Batch:
    began = now()
    interval = Interval(began.date(), began.date() + timedelta(days=1))
    batch_id = content_id(own.kafka_topic)
    writer = Lake(own).writer(COMMODITY_PRICES.name, interval, batch_id)
    writer.add(rows)
    return writer.commit(
        Manifest(
            dataset=COMMODITY_PRICES.name,
            tenant=own.tenant,
            batch_id=batch_id,
            step="transform",
            step_version=1,
            run_id=run_id,
            interval_start=interval.start,
            interval_end=interval.end,
            created_at=began,
        )
    )


class Looking:
    """Counts a table's rows again and again in a thread of its own, as its readers might.

    Args:
        own: settings of the proving ground.
    """

    def __init__(self, own: Settings) -> None:
        self.counts: set[int] = set()
        self._own = own
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="looking", daemon=True)

    def __enter__(self) -> Looking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        lakehouse = open_lakehouse(self._own)
        while not self._ended.wait(0.2):
            try:
                if lakehouse.snapshot(COMMODITY_PRICES) is not None:
                    found = lakehouse.query(f"SELECT count(*) AS n FROM {COMMODITY_PRICES.name}")  # noqa: S608
                    self.counts.add(found["n"][0].as_py())
            except MarketdataError as error:
                log.warning("could not look", extra={"reason": error.message})


def main(step: str, uri: str) -> None:
    """What the process does: the step's work without its entry in the run record, which is for runs."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as the command line does
    own = configuration.load()
    logs.configure(own, step)
    batch = Lake(own).open(uri)
    try:
        if step == "publish":
            from marketdata.streaming.publish import publish

            publish(COMMODITY_PRICES, batch, own)
        else:
            open_lakehouse(own).load(COMMODITY_PRICES, batch)
    except MarketdataError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
