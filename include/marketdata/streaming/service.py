"""What a long-running service shows of itself: metrics and health over HTTP, and work done beside its main loop."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np

from marketdata.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)

E2E_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0)
"""Seconds; beyond ten minutes, or the alert at ten minutes could not fire."""

BATCH_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

ALIVE_SECONDS = 60.0
"""A main loop that has not come round for so long has lost its partitions to others anyway."""

STALLED_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 30.0
MOMENT_SECONDS = 1.0


class Measures:
    """The metrics of a consumer, by the names and labels of the catalogue."""

    def __init__(self, job_name: str, layer: str, group: str, topic: str) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry: CollectorRegistry = CollectorRegistry()
        flow = {"job_name": job_name, "exchange": "none", "layer": layer}
        self.records = Counter(
            "records_processed_total", "Records read and put into windows.", list(flow), registry=self.registry
        ).labels(**flow)
        self.letters = Counter(
            "dlq_records_total", "Messages that could not be read.", list(flow), registry=self.registry
        ).labels(**flow)
        self.batch_seconds = Histogram(
            "batch_processing_duration_seconds", "From the last message of a batch to its checkpoint.",
            ["job_name", "layer"], buckets=BATCH_BUCKETS, registry=self.registry,
        ).labels(job_name=job_name, layer=layer)  # fmt: skip
        self.failed_batches = Counter(
            "failed_batches_total", "Deliveries to a sink that failed and are tried again.", ["job_name"],
            registry=self.registry,
        ).labels(job_name=job_name)  # fmt: skip
        self._lag_records = Gauge(
            "kafka_consumer_lag_records", "Offsets between this member and the end.", ["group", "topic", "partition"],
            registry=self.registry,
        )  # fmt: skip
        self._lag_seconds = Gauge(
            "kafka_consumer_lag_seconds", "Age of the last record read, 0 at the end.", ["group", "topic", "partition"],
            registry=self.registry,
        )  # fmt: skip
        self._of = group, topic
        self._e2e = _Latencies(job_name, layer)
        self.registry.register(self._e2e)

    def lag(self, partition: int, records: int, seconds: float) -> None:
        self._lag_records.labels(*self._of, str(partition)).set(records)
        self._lag_seconds.labels(*self._of, str(partition)).set(seconds)

    def forget(self, partition: int) -> None:
        """A partition another member has now must not keep this one's last lag."""
        for gauge in (self._lag_records, self._lag_seconds):
            gauge.labels(*self._of, str(partition))
            gauge.remove(*self._of, str(partition))

    def latencies(self, seconds: NDArray[np.float64]) -> None:
        """How long each record of a batch took from its extraction."""
        self._e2e.add(seconds)


class _Latencies:
    """`e2e_latency_seconds`: a histogram that takes a batch at a time."""

    def __init__(self, job_name: str, layer: str) -> None:
        self._labels = job_name, layer
        self._counts = np.zeros(len(E2E_BUCKETS) + 1, np.int64)
        self._sum = 0.0

    def add(self, seconds: NDArray[np.float64]) -> None:
        found = np.bincount(np.searchsorted(E2E_BUCKETS, seconds), minlength=len(self._counts))
        self._counts = self._counts + found
        self._sum += float(seconds.sum())

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(
            "e2e_latency_seconds", "From a record's extraction to its window.", labels=["job_name", "layer"]
        )
        running = np.cumsum(self._counts).tolist()
        bounds = [*(str(bound) for bound in E2E_BUCKETS), "+Inf"]
        family.add_metric(self._labels, list(zip(bounds, running, strict=True)), self._sum)
        yield family


@dataclass
class Progress:
    """What the health of a consumer is judged by; times are monotonic."""

    turned: float = 0.0
    advanced: float = 0.0
    assigned: bool = False
    caught_up: bool = False
    stopping: bool = False

    def alive(self) -> tuple[bool, str]:
        """Whether the main loop turns."""
        seconds = time.monotonic() - self.turned
        return seconds < ALIVE_SECONDS, f"the loop turned {seconds:.1f} s ago"

    def ready(self) -> tuple[bool, str]:
        """Whether it belongs to the group, and has read everything or reads on."""
        if self.stopping:
            return False, "stopping"
        if not self.assigned:
            return False, "no partitions were assigned yet"
        if self.caught_up:
            return True, "caught up"
        seconds = time.monotonic() - self.advanced
        return seconds < STALLED_SECONDS, f"behind; the last record was read {seconds:.1f} s ago"


@contextmanager
def serve(port: int, registry: CollectorRegistry, progress: Progress) -> Iterator[int]:
    """Answer ``/metrics``, ``/health/live`` and ``/health/ready`` from a thread of its own; yields the port.

    Raises:
        UsageError: the port is taken.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                return
            judged = {"/health/live": progress.alive, "/health/ready": progress.ready}.get(self.path)
            if judged is None:
                self._answer(404, "text/plain", b"")
                return
            well, says = judged()
            self._answer(200 if well else 503, "application/json", json.dumps({"ok": well, "says": says}).encode())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            log.debug(format, *arguments)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    try:
        server = Server(("", port), Handler)
    except OSError as error:
        raise UsageError(f"port {port} cannot be listened on: {error}", "set ANALYTICS_PORT to a free one") from error
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class Courier:
    """Carries what is stored to a sink, in a thread of its own: a sink that is down holds nothing up."""

    def __init__(self, name: str, every: float, work: Callable[[], int], measures: Measures) -> None:
        self._name = name
        self._every = every
        self._work = work
        self._measures = measures
        self._wake = threading.Event()
        self._stopping = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """Carry what is there a last time, for so long at most; what is left is carried after the next start.

        Where there is no time at all, nothing more is begun, and what is under way gets a moment.
        """
        self._stopping, self._abandoned = True, seconds <= 0
        self._wake.set()
        self._thread.join(max(seconds, MOMENT_SECONDS))
        if self._thread.is_alive():
            log.warning("a sink is left behind; it goes on after the next start", extra={"sink": self._name})

    def _run(self) -> None:
        failures = 0
        while not self._abandoned:
            last = self._stopping
            try:
                if carried := self._work():
                    log.debug("carried", extra={"sink": self._name, "records": carried})
                failures = 0
            except Exception as error:
                failures += 1
                self._measures.failed_batches.inc()
                reason = (str(error) or type(error).__name__).splitlines()[0]
                log.warning("a sink failed; it is tried again", extra={"sink": self._name, "reason": reason})
                log.debug("why the sink failed", exc_info=True)
            if last:
                return
            wait = self._every if not failures else min(2.0 ** (failures - 1), LONGEST_WAIT_SECONDS)
            self._wake.wait(wait)
            self._wake.clear()
            if failures and not self._stopping:
                time.sleep(0.5)  # whoever wakes it does not know that the sink is down
