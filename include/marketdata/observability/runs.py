"""The record of runs: one row per try of a step in PostgreSQL, written as the step starts and when it ends.

It is what `marketdata run` shows live and `marketdata runs` lists. Nothing is decided by it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from marketdata import postgres
from marketdata.errors import MarketdataError, UnavailableError
from marketdata.settings import Settings

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

_TABLE = """
CREATE SCHEMA IF NOT EXISTS marketdata;
CREATE TABLE IF NOT EXISTS marketdata.run_steps (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    dataset text NOT NULL,
    run_id text NOT NULL,
    step text NOT NULL,
    state text NOT NULL CHECK (state IN ('running', 'done', 'failed')),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    result jsonb NOT NULL DEFAULT '{}',
    error text,
    exit_code int
);
CREATE INDEX IF NOT EXISTS run_steps_run ON marketdata.run_steps (tenant, dataset, run_id);
"""


@dataclass(frozen=True)
class Step:
    """One try of one step. A killed try stays `running` until its successor's row says otherwise."""

    run_id: str
    step: str
    state: str
    started_at: datetime
    finished_at: datetime | None
    result: dict[str, Any]
    error: str | None
    exit_code: int | None

    @property
    def seconds(self) -> float | None:
        return (self.finished_at - self.started_at).total_seconds() if self.finished_at else None


class StepRecord:
    """The row of the try that runs now."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}


@contextmanager
def recorded(settings: Settings, dataset: str, run_id: str, step: str) -> Iterator[StepRecord]:
    """Record a step around its work. A record that cannot be written is logged and never fails the step."""
    record = StepRecord()
    row = _attempt(
        settings,
        "INSERT INTO marketdata.run_steps (tenant, dataset, run_id, step, state) "
        "VALUES (%s, %s, %s, %s, 'running') RETURNING id",
        (settings.tenant, dataset, run_id, step),
    )
    finish = (
        "UPDATE marketdata.run_steps SET state = %s, finished_at = clock_timestamp(), result = %s, error = %s, "
        "exit_code = %s WHERE id = %s RETURNING id"
    )
    try:
        yield record
    except BaseException as error:
        if row:
            code = error.exit_code if isinstance(error, MarketdataError) else MarketdataError.exit_code
            _attempt(
                settings,
                finish,
                ("failed", json.dumps(record.result, default=str), str(error) or type(error).__name__, code, row[0]),
            )
        raise
    if row:
        _attempt(settings, finish, ("done", json.dumps(record.result, default=str), None, 0, row[0]))


def steps(settings: Settings, dataset: str, run_id: str) -> list[Step]:
    """The latest try of each step of a run, in order of start."""
    with _connect(settings) as connection:
        return steps_of(connection, settings.tenant, dataset, run_id)


def steps_of(connection: psycopg.Connection[Any], tenant: str, dataset: str, run_id: str) -> list[Step]:
    """The same over a connection that is open; the table has to exist."""
    rows = connection.execute(
        "SELECT DISTINCT ON (step) run_id, step, state, started_at, finished_at, result, error, exit_code "
        "FROM marketdata.run_steps WHERE tenant = %s AND dataset = %s AND run_id = %s ORDER BY step, id DESC",
        (tenant, dataset, run_id),
    ).fetchall()
    return sorted((Step(*row) for row in rows), key=lambda step: step.started_at)


def latest(settings: Settings, dataset: str, limit: int) -> list[list[Step]]:
    """The last runs, newest first, each as its steps."""
    with _connect(settings) as connection:
        rows = connection.execute(
            "SELECT run_id FROM marketdata.run_steps WHERE tenant = %s AND dataset = %s "
            "GROUP BY run_id ORDER BY max(id) DESC LIMIT %s",
            (settings.tenant, dataset, limit),
        ).fetchall()
    return [steps(settings, dataset, run_id) for (run_id,) in rows]


def forget(settings: Settings, dataset: str, after: timedelta) -> int:
    """Remove what runs did that began longer ago; how many tries of steps those were."""
    with _connect(settings) as connection:
        return connection.execute(
            "DELETE FROM marketdata.run_steps WHERE tenant = %s AND dataset = %s "
            "AND started_at < clock_timestamp() - %s",
            (settings.tenant, dataset, after),
        ).rowcount


def _connect(settings: Settings) -> psycopg.Connection[Any]:
    import psycopg

    try:
        connection = postgres.connect(settings.require("postgres_dsn"), "runs")
        try:
            with postgres.transaction(connection):
                connection.execute(_TABLE)
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable):
            with postgres.transaction(connection):
                connection.execute(_TABLE)
        return connection
    except psycopg.OperationalError as error:
        raise UnavailableError(
            f"PostgreSQL does not answer: {str(error).strip().splitlines()[0]}",
            "check POSTGRES_DSN, or: marketdata engines up",
        ) from error


def _attempt(settings: Settings, statement: str, values: tuple[Any, ...]) -> Any:
    try:
        with _connect(settings) as connection, postgres.transaction(connection):
            return connection.execute(statement, values).fetchone()
    except Exception as error:
        log.warning("the run record was not written: %s", error)
        return None
