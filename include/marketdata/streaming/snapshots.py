"""Snapshots: a folded state of the ledger that spares the next publisher most of the reading.

A snapshot is an immutable object of the lake that says itself which ledger, tenant, dataset and offset it is about; a
row in PostgreSQL only points at it. So a row that is lost, stale or wrong costs time and never correctness, and nothing
here fails a publish: what goes wrong is logged, and the ledger topic is read instead.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from marketdata import postgres
from marketdata.batches import ROWS_PER_PART, Lake
from marketdata.settings import Settings
from marketdata.streaming.fold import FORMAT, NEWEST, Delta, Fold, delta_schema, deltas_in, workspace, write_delta

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

MARKERS = 64
"""Markers beyond the last snapshot that make a new one worth its while."""

SMALL_DELTA = 50_000
"""Rows; deltas of fewer are merged by a new snapshot, larger ones are kept as they are."""

_TABLE = """
CREATE SCHEMA IF NOT EXISTS marketdata;
CREATE TABLE IF NOT EXISTS marketdata.ledger_snapshot (
    topic text NOT NULL,
    tenant text NOT NULL,
    dataset text NOT NULL,
    topic_id text NOT NULL,
    ledger_offset bigint NOT NULL,
    markers bigint NOT NULL,
    path text NOT NULL,
    sha256 text NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, tenant, dataset)
)
"""
# A slow publisher must not put back an older snapshot of the same topic.
_POINT = """
INSERT INTO marketdata.ledger_snapshot AS old (topic, tenant, dataset, topic_id, ledger_offset, markers, path, sha256)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (topic, tenant, dataset) DO UPDATE SET topic_id = excluded.topic_id, ledger_offset = excluded.ledger_offset,
    markers = excluded.markers, path = excluded.path, sha256 = excluded.sha256, written_at = now()
WHERE old.topic_id <> excluded.topic_id OR old.ledger_offset < excluded.ledger_offset
"""
_LOOK_UP = "SELECT path, sha256 FROM marketdata.ledger_snapshot WHERE topic = %s AND tenant = %s AND dataset = %s"
_LOCK = 0x6C656467  # "ledg": CREATE IF NOT EXISTS of two sessions at once would fail in one of them


def recall(settings: Settings, empty: Fold, end: int) -> Fold | None:
    """The newest snapshot of this ledger, or None where there is none that can be believed.

    Args:
        empty: names the ledger, its topic id, tenant and dataset.
        end: end of the ledger topic; a snapshot that claims to know more is of another topic.
    """
    if settings.postgres_dsn is None:
        return None
    row = None
    with _forgiving("cannot look up the ledger snapshot"), _transaction(settings) as connection:
        if connection.execute("SELECT to_regclass('marketdata.ledger_snapshot')").fetchone() == (None,):
            return None
        row = connection.execute(_LOOK_UP, (empty.topic, empty.tenant, empty.dataset)).fetchone()
    if row is None:
        return None
    path, sha256 = row
    with _forgiving("cannot use the ledger snapshot", path=path):
        content = Lake(settings).get(path)
        if content is None or hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("it is missing or is not what its row says")
        values = json.loads(bytes(content))
        identity = {name: values.pop(name) for name in ("topic", "topic_id", "dataset", "tenant", "format")}
        if identity != {**_identity(empty), "format": FORMAT} or values["end"] > end:
            raise ValueError("it is of another ledger")
        return replace(
            empty,
            end=values["end"],
            files=tuple(Delta(**file) for file in values["files"]),
            batches=values["batches"],
            revised=values["revised"],
        )
    return None


def remember(settings: Settings, fold: Fold) -> None:
    """Write a snapshot where it pays: after many markers, or when much of what is folded has been revised."""
    if settings.postgres_dsn is None:
        return
    much_revised = fold.revised > max(ROWS_PER_PART, fold.rows // 4)
    if len(fold.fresh) < MARKERS and not much_revised:
        return
    with _forgiving("cannot write a ledger snapshot"):
        lake = Lake(settings)
        merged = [file for file in fold.files if much_revised or file.rows < SMALL_DELTA]
        kept = tuple(file for file in fold.files if file not in merged)
        files = kept + tuple(_merge(lake, fold.folder, merged))
        content = json.dumps(
            {
                **_identity(fold),
                "format": FORMAT,
                "end": fold.end,
                "files": [asdict(file) for file in files],
                "batches": dict(fold.batches),
                "revised": 0 if much_revised else fold.revised,
            }
        ).encode()
        digest = hashlib.sha256(content).hexdigest()
        path = f"{fold.folder}/fold-{digest}.json"
        lake.put(path, content)
        with _transaction(settings) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute(_TABLE)
            connection.execute(
                _POINT,
                (fold.topic, fold.tenant, fold.dataset, fold.topic_id, fold.end, len(fold.batches), path, digest),
            )
        log.info("wrote a ledger snapshot", extra={"path": path, "ledger_offset": fold.end, "files": len(files)})


def _merge(lake: Lake, folder: str, files: list[Delta]) -> Iterator[Delta]:
    import pyarrow as pa

    if not files:
        return
    query = (
        "SELECT record_id, newest.content_hash AS content_hash, newest.as_of AS as_of "  # noqa: S608
        f"FROM (SELECT record_id, {NEWEST} AS newest FROM deltas GROUP BY record_id) ORDER BY record_id"
    )
    with workspace() as connection, deltas_in(connection, lake, files):
        for batch in connection.sql(query).to_arrow_reader(ROWS_PER_PART):
            yield write_delta(lake, folder, pa.Table.from_batches([batch]).cast(delta_schema()))


def _identity(fold: Fold) -> dict[str, str]:
    return {"topic": fold.topic, "topic_id": fold.topic_id, "dataset": fold.dataset, "tenant": fold.tenant}


@contextmanager
def _transaction(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    dsn = settings.require("postgres_dsn")
    with postgres.connect(dsn, "ledger") as connection, postgres.transaction(connection):
        yield connection


@contextmanager
def _forgiving(what: str, **where: object) -> Iterator[None]:
    """Log what goes wrong and go on: a snapshot is never needed."""
    try:
        yield
    except Exception as error:
        log.warning(what, extra={**where, "reason": f"{type(error).__name__}: {error}".splitlines()[0]})
