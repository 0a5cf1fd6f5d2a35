"""Carries run outcomes into PostgreSQL and their metrics to the Pushgateway, without ever holding up its caller.

The caller is a scheduler or an API server. It waits for at most `BUDGET_SECONDS` in any `REFILL_SECONDS`, whatever
hangs and however many runs end at once: after that the thread goes on by itself. What a dead process, database or
gateway kept from being delivered is found again by the next delivery: outcomes through `Seen.finished`, metrics because
all of them are computed from the table.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from marketdata import postgres
from marketdata.observability import outcomes
from marketdata.observability.metrics import DATASETS_OF_DAGS, registry
from marketdata.observability.outcomes import Outcome
from marketdata.settings import Settings

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

BUDGET_SECONDS = 1.9
"""The longest a caller waits: the promise is 2 s, and something has to be left for the caller's own work."""

REFILL_SECONDS = 30.0
"""A caller that has waited its budget gets it back over this time: twenty runs that end in one loop share it."""

PUSH_SECONDS = 1.0
"""Time-out of one push."""

STATEMENT = "1500ms"
"""Limit of one statement and of waiting for a lock."""

FIRST_LOOK = timedelta(days=30)
"""How far back a process looks for outcomes when it starts."""

OVERLAP = timedelta(minutes=10)
"""How far before its last look it looks again: longer than any run's state waits for its commit."""


class Seen(Protocol):
    """What the scheduler's own records say."""

    def finished(self, since: datetime) -> Iterable[Outcome]:
        """Outcomes of runs that ended after `since`."""
        ...

    def dags(self) -> Iterable[str]:
        """The DAGs that can run."""
        ...


@dataclass(frozen=True)
class _Event:
    dag_id: str | None
    outcome: Outcome | None


class Courier:
    """Delivers in a thread that lives only while there is something to deliver: a fork hardly ever finds one alive."""

    def __init__(self, settings: Settings, seen: Seen) -> None:
        # Imported here and not in the thread: a fork in the middle of an import would lock that module in the child.
        import prometheus_client
        import psycopg  # noqa: F401

        self._push = prometheus_client.push_to_gateway
        self._gateway = settings.require("pushgateway_url")
        self._dsn = settings.require("postgres_dsn")
        self._settings = settings
        self._seen = seen
        self._lock = threading.Lock()
        self._waiting: list[_Event] = []
        self._thread: threading.Thread | None = None
        self._idle = threading.Event()
        self._announced: set[str] = set()
        self._all_announced = False
        self._looked: datetime | None = None
        self._allowance = BUDGET_SECONDS
        self._waited_at = time.monotonic()

    def started(self) -> None:
        """The process has started: find lost outcomes, give every known DAG its counters before its first failure."""
        self._hand_over(_Event(None, None))

    def running(self, dag_id: str) -> None:
        """A run has begun: counters of a DAG new to this process are pushed, so that its first failure is a rise."""
        if dag_id not in self._announced:
            self._hand_over(_Event(dag_id, None))

    def ended(self, outcome: Outcome) -> None:
        """A run has ended."""
        self._hand_over(_Event(outcome.dag_id, outcome))

    def _hand_over(self, event: _Event) -> None:
        with self._lock:
            self._waiting.append(event)
            if self._thread is None:
                self._idle.clear()
                self._thread = threading.Thread(target=self._work, name="run-metrics", daemon=True)
                self._thread.start()
        began = time.monotonic()
        refill = (began - self._waited_at) * BUDGET_SECONDS / REFILL_SECONDS
        self._allowance = min(BUDGET_SECONDS, self._allowance + refill)
        if not self._idle.wait(self._allowance) and self._allowance > BUDGET_SECONDS / 2:
            log.warning("run metrics take long; they are carried on in the background")
        self._waited_at = time.monotonic()
        self._allowance = max(0.0, self._allowance - (self._waited_at - began))

    def _work(self) -> None:
        while True:
            with self._lock:
                events, self._waiting = self._waiting, []
                if not events:
                    self._rest()
                    return
            try:
                self._deliver(events)
            except Exception as error:
                log.warning("run metrics were not recorded: %s; they are with the next run", _first_line(error))
                with self._lock:
                    # Kept because marking a run by hand leaves no other trace of the state before.
                    self._waiting = [event for event in events if event.outcome] + self._waiting
                    self._rest()
                return

    def _rest(self) -> None:
        self._thread = None
        self._idle.set()

    def _deliver(self, events: list[_Event]) -> None:
        began = datetime.now(UTC)
        told = [event.outcome for event in events if event.outcome]
        tenant = self._settings.tenant
        with self._open() as connection:
            if self._looked is None:
                outcomes.create_table(connection)
            # First what was told: nobody else may know it.
            outcomes.record(connection, self._settings, told)
            lost = outcomes.unknown(connection, tenant, self._seen.finished(self._since()))
            outcomes.record(connection, self._settings, lost)
            self._looked = began
            due = {event.dag_id for event in events if event.dag_id} | outcomes.unpushed(connection, tenant)
            if not self._all_announced:
                due |= {*DATASETS_OF_DAGS, *self._seen.dags()}
            self._push_all(connection, sorted(due))

    def _push_all(self, connection: psycopg.Connection[Any], dag_ids: list[str]) -> None:
        try:
            for dag_id in dag_ids:
                self._push_one(connection, dag_id)
            self._all_announced = True
        except OSError as error:  # what urllib raises, time-outs included; the next gateway call would fail alike
            log.warning("run metrics were not pushed: %s; they go with the next run", error)

    def _since(self) -> datetime:
        return self._looked - OVERLAP if self._looked else datetime.now(UTC) - FIRST_LOOK

    def _push_one(self, connection: psycopg.Connection[Any], dag_id: str) -> None:
        # One at a time over all processes: an older set of counters pushed after a newer one would look like a restart.
        with connection.transaction():
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (STATEMENT,))
            connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"push {self._settings.tenant} {dag_id}",)
            )
            found = registry(outcomes.samples(connection, self._settings, dag_id))
            self._push(self._gateway, job=dag_id, registry=found, timeout=PUSH_SECONDS)
            outcomes.mark_pushed(connection, self._settings.tenant, dag_id)
        self._announced.add(dag_id)

    def _open(self) -> psycopg.Connection[Any]:
        return postgres.connect(self._dsn, "run-metrics")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
