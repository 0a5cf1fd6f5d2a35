"""The lakehouse through Trino: Parquet files are staged, and one MERGE makes them part of the table.

Trino's catalog needs ``iceberg.add-files-procedure.enabled=true`` and ``marketdata.writer`` among
``iceberg.allowed-extra-properties``; it has to reach `LAKE_URI` under the same address.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from marketdata.batches import Batch, Lake
from marketdata.datasets import Column, Dataset, quarantine
from marketdata.datasets.dataset import DATE, INTEGER, TEXT, TIMESTAMP
from marketdata.errors import BadDataError, MarketdataError, TryLaterError, UnavailableError, UsageError
from marketdata.lakehouse.contract import ORPHANS_AFTER, WRITER, Loaded, Maintained, Snapshot, outdated
from marketdata.lakehouse.merging import REVISES, distinct, parts, shape
from marketdata.lakehouse.statements import (
    expired,
    first_line,
    identifier,
    mentioned,
    reading_only,
    refuse_now,
    tables_there,
    text,
    with_tables,
)
from marketdata.lakehouse.sweeping import sweep
from marketdata.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

ENGINE = "trino"
REQUEST_SECONDS = 10
TRIES = 10
STALE_AFTER = timedelta(hours=6)
"""Age of a staging table whose load cannot be running any more: a run ends after one hour."""

CATALOG_NEEDS = (
    "check the rights of TRINO_USER; Trino's catalog needs iceberg.add-files-procedure.enabled=true,"
    f" {WRITER} among iceberg.allowed-extra-properties, and as many iceberg.max-partitions-per-writer as a first load"
    " has months, e.g. 4000"
)

BEGIN_WITHIN = timedelta(minutes=10)
"""How long after a look at a table's snapshots the statement that expires them begins, repeated or not."""

_LOST_RACE = frozenset({"ICEBERG_COMMIT_ERROR", "TRANSACTION_CONFLICT"})
_ENDED_BY_OTHERS = frozenset({"ABANDONED_QUERY", "ADMINISTRATIVELY_KILLED", "USER_CANCELED"})
"""Trino counts them as the user's errors."""

_ROWS_AT_ONCE = 10_000

T = TypeVar("T")


class TrinoLakehouse:
    """Implements `Lakehouse` with Trino."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._catalog = settings.trino_catalog
        self._schema = settings.trino_schema
        self._staging = f"{settings.trino_schema}_staging"
        self._address = f"{settings.require('trino_host')}:{settings.trino_port}"
        self._lake_uri = settings.require("lake_uri").rstrip("/")

    def ensure(self, dataset: Dataset) -> None:
        shown = self._shown(dataset)
        if _as_defined(dataset, shown):
            return
        if not shown:
            writer = f"MAP(ARRAY[{text(WRITER)}], ARRAY[{text(ENGINE)}])"
            self._create_schema(self._schema)
            self._create(
                f"TABLE IF NOT EXISTS {self._table(dataset)} ({', '.join(_definitions(dataset))})"
                f" COMMENT {text(dataset.doc)} WITH (format = 'PARQUET', format_version = 2,"
                f" {_partitioning(dataset)}, extra_properties = {writer})"
            )
            log.info("created table", extra={"table": dataset.name})
            shown = self._shown(dataset)
        new = self._new_columns(dataset, shown)
        if new and self._writer(dataset) == ENGINE:
            for column in new:
                definition = f"{identifier(column.name)} {_trino_type(column)} COMMENT {text(column.doc)}"
                statement = f"ALTER TABLE {self._table(dataset)} ADD COLUMN IF NOT EXISTS {definition}"
                self._insist(dataset, partial(self._run, statement))
            log.info("added columns", extra={"table": dataset.name, "columns": [column.name for column in new]})

    def load(self, dataset: Dataset, batch: Batch, run_id: str | None = None) -> Loaded:
        return self._merge(dataset, batch, run_id or batch.manifest.run_id)

    def quarantine(self, dataset: Dataset, rows: pa.Table, run_id: str = "") -> Loaded:
        refused = quarantine(dataset)
        once = distinct(shape(refused), rows)
        loaded = self._merge(refused, once, run_id)
        return replace(loaded, unchanged=loaded.unchanged + len(rows) - len(once))

    def current(self, dataset: Dataset, keys: pa.Table, bounds: tuple[datetime, datetime] | None = None) -> pa.Table:
        import pyarrow as pa
        import pyarrow.compute as pc

        of = shape(dataset)
        wanted = keys[of.identity].combine_chunks()
        schema = pa.schema([dataset.arrow_schema().field(name) for name in of.columns])
        if not self._columns(dataset):
            return schema.empty_table()
        within = f" WHERE {identifier(dataset.event_time)} BETWEEN ? AND ?" if bounds else ""
        statement = f"SELECT {', '.join(of.columns)} FROM {self._table(dataset)}{within}"  # noqa: S608
        with self._answering(statement, bounds or ()) as answer:
            found = [batch.filter(pc.is_in(batch[of.identity], value_set=wanted)) for batch in answer.batches()]
        return pa.Table.from_batches(found).cast(schema) if found else schema.empty_table()

    def query(self, sql: str, max_rows: int | None = None, at: Mapping[str, int] | None = None) -> pa.Table:
        import pyarrow as pa

        statement = reading_only(sql)
        if at is not None:
            statement = self._as_it_was(statement, at)
        try:
            with self._answering(statement) as answer:
                return pa.Table.from_batches(list(answer.batches(max_rows)), answer.schema)
        except UsageError as refusal:
            raise UsageError(refusal.message, tables_there(self._names())) from None

    def snapshot(self, dataset: Dataset) -> int | None:
        return self._current_snapshot(dataset) if self._columns(dataset) else None

    def history(self, dataset: Dataset) -> list[Snapshot]:
        if not self._columns(dataset):
            return []
        rows = self._run(
            "SELECT snapshot_id, parent_id, committed_at, operation, summary"  # noqa: S608
            f" FROM {self._table(dataset, '$snapshots')} ORDER BY committed_at"
        )
        return [
            Snapshot(snapshot, parent, committed_at.astimezone(UTC), operation, dict(summary))
            for snapshot, parent, committed_at, operation, summary in rows
        ]

    def drop_namespace(self) -> None:
        for schema in (self._schema, self._staging):
            for name in self._names(schema):
                self._run(f"DROP TABLE IF EXISTS {identifier(self._catalog, schema, name)}")
            self._run(f"DROP SCHEMA IF EXISTS {identifier(self._catalog, schema)}")

    def check(self) -> None:
        with self._reaching(), self._connect(attempts=1) as connection:
            connection.cursor().execute(f"SHOW SCHEMAS FROM {identifier(self._catalog)} LIKE 'marketdata'").fetchall()

    def maintain(self, dataset: Dataset, keep: timedelta) -> Maintained | None:
        if not self._columns(dataset):
            return None
        self._refuse_other_writer(dataset)
        self._drop_stale_staging()
        sweep(self._settings, f"{self._lake_uri}/staging")
        before = self._count(dataset, "$files")
        self._alter(dataset, "optimize")
        after, snapshots = self._count(dataset, "$files"), self._count(dataset, "$snapshots")
        self._expire(dataset, keep)
        maintained = Maintained(before, after, snapshots - self._count(dataset, "$snapshots"))
        self._alter(dataset, "remove_orphan_files", ORPHANS_AFTER)
        log.info("maintained", extra={"table": dataset.name, **asdict(maintained)})
        return maintained

    def _expire(self, dataset: Dataset, keep: timedelta) -> None:
        """Forget what `outdated` counts, and nothing younger: Trino goes by the age of a snapshot alone."""
        rows = self._run(f"SELECT committed_at, now() FROM {self._table(dataset, '$snapshots')} ORDER BY committed_at")  # noqa: S608
        if not rows:
            return
        committed, now = [at for at, _ in rows], rows[0][1]
        count = outdated(committed, now - keep)
        if 0 < count < len(committed) - 1:  # the last one, Trino keeps by itself
            keep = max(keep, now - committed[count] + BEGIN_WITHIN)
        if count:
            self._alter(dataset, "expire_snapshots", keep)

    def _merge(self, dataset: Dataset, source: Batch | pa.Table, run_id: str) -> Loaded:
        from concurrent.futures import ThreadPoolExecutor

        started = time.monotonic()
        with ThreadPoolExecutor(1) as beside:
            ready = beside.submit(self._make_ready, dataset)
            with self._staged(dataset, source) as staged:
                ready.result()
                merge = self._insist(dataset, lambda: self._merge_staged(dataset, staged))
                looked_up = beside.submit(self._commit_of, dataset, merge.query_id)
                outcomes = (
                    self._outcomes(dataset, staged, looked_up.result().before) if merge.changed < staged.rows else None
                )
            commit = looked_up.result()
        if outcomes is None:
            outcomes = [merge.changed - commit.updated, commit.updated, 0, 0, 0]
        seconds = time.monotonic() - started
        loaded = Loaded.of(outcomes, commit.before, commit.after, seconds, merge.query_id if merge.changed else None)
        log.info("merged", extra={"table": dataset.name, "marketdata.run_id": run_id, **asdict(loaded)})
        return loaded

    def _make_ready(self, dataset: Dataset) -> None:
        self.ensure(dataset)
        self._refuse_other_writer(dataset)

    def _alter(self, dataset: Dataset, procedure: str, age: timedelta | None = None) -> None:
        statement = f"ALTER TABLE {self._table(dataset)} EXECUTE {procedure}"
        session = {}
        if age is not None:
            # The catalog's least age, 7 days unless it says otherwise, guards people; this age has been thought about.
            threshold = f"{age.total_seconds():.0f}s"
            statement += f"(retention_threshold => {text(threshold)})"
            session[f"{self._catalog}.{procedure}_min_retention"] = threshold
        self._insist(dataset, lambda: self._execute(statement, session=session))

    def _insist(self, dataset: Dataset, work: Callable[[], T]) -> T:
        """Do what ends in a commit, again where another writer committed first."""
        from tenacity import RetryError, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

        wait = wait_random_exponential(multiplier=0.2, max=5)
        try:
            return Retrying(stop=stop_after_attempt(TRIES), wait=wait, retry=retry_if_exception(_lost_race))(work)
        except RetryError as error:
            raise TryLaterError(
                f"other writers of {dataset.name} committed first, {TRIES} times; nothing of this was committed",
                "try again, and order the writers of a table by a pool of one slot",
            ) from error

    def _merge_staged(self, dataset: Dataset, staged: _Staged) -> _Done:
        inside, moments = _inside(dataset, staged)
        return self._execute(self._merge_statement(dataset, staged.table, inside), moments)

    def _commit_of(self, dataset: Dataset, query_id: str) -> _Commit:
        """What a MERGE made of the table."""
        committed = self._run(
            f"SELECT snapshot_id, parent_id, summary FROM {self._table(dataset, '$snapshots')}"  # noqa: S608
            " WHERE element_at(summary, 'trino_query_id') = ?",
            (query_id,),
        )
        if not committed:  # the table had all of it
            current = self._current_snapshot(dataset)
            return _Commit(current, current, 0)
        after, before, summary = committed[0]
        updated = int(summary.get("added-position-deletes", 0)) + int(summary.get("deleted-records", 0))
        return _Commit(before, after, updated)

    def _merge_statement(self, dataset: Dataset, staging: str, inside: str = "") -> str:
        of = shape(dataset)
        names = [identifier(column.name) for column in dataset.columns]
        assignments = ", ".join(f"{name} = s.{name}" for name in names)
        revision = f" WHEN MATCHED AND {REVISES} THEN UPDATE SET {assignments}" if of.revised else ""
        return (
            f"MERGE INTO {self._table(dataset)} t USING {staging} s"  # noqa: S608
            f" ON s.{of.identity} = t.{of.identity}{inside}{revision}"
            f" WHEN NOT MATCHED THEN INSERT ({', '.join(names)}) VALUES ({', '.join(f's.{name}' for name in names)})"
        )

    def _as_it_was(self, statement: str, at: Mapping[str, int]) -> str:
        names = self._names()
        refuse_now(statement, at, names)
        then = {}
        for name in mentioned(statement, sorted(at)):
            snapshots = identifier(self._catalog, self._schema, f"{name}$snapshots")
            if not self._run(f"SELECT 1 FROM {snapshots} WHERE snapshot_id = ?", (at[name],)):  # noqa: S608
                raise expired(name, at[name])
            table = identifier(self._catalog, self._schema, name)
            then[name] = f"SELECT * FROM {table} FOR VERSION AS OF {at[name]:d}"  # noqa: S608
        return with_tables(statement, then)

    def _count(self, dataset: Dataset, what: str) -> int:
        table = identifier(self._catalog, self._schema, dataset.name + what)
        ((count,),) = self._run(f"SELECT count(*) FROM {table}")  # noqa: S608
        return int(count)

    def _outcomes(self, dataset: Dataset, staged: _Staged, snapshot: int | None) -> list[int]:
        """How many staged rows end how, given the table as it is at a snapshot."""
        of = shape(dataset)
        inside, moments = _inside(dataset, staged)
        version = f" FOR VERSION AS OF {snapshot:d}" if snapshot is not None else ""
        target = f"(SELECT * FROM {self._table(dataset)}{version})"  # noqa: S608
        rows = self._run(
            f"SELECT outcome, count(*) FROM (SELECT {of.outcome()} AS outcome FROM {staged.table} s"  # noqa: S608
            f" LEFT JOIN {target} t ON s.{of.identity} = t.{of.identity}{inside}) GROUP BY outcome",
            moments,
        )
        counts = [0] * 5
        for outcome, count in rows:
            counts[outcome] = count
        return counts

    @contextmanager
    def _staged(self, dataset: Dataset, source: Batch | pa.Table) -> Iterator[_Staged]:
        """The rows as a table of their own, made of files that are copies; both are gone afterwards."""
        from concurrent.futures import ThreadPoolExecutor

        import numpy as np

        started = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
        name = f"{dataset.name}_{started}_{uuid.uuid4().hex[:8]}"
        folder = f"{self._lake_uri}/staging/{name}"
        staging = identifier(self._catalog, self._staging, name)
        lake = Lake(self._settings)
        with ThreadPoolExecutor(1) as beside:
            # The files lie in the table's own folder, so that dropping it removes them, whenever a load dies.
            created = beside.submit(self._create_staging, dataset, staging, folder)
            try:
                identities: list[NDArray[np.uint64]] = []
                span: list[datetime] = []
                for number, part in enumerate(parts(dataset, source)):
                    created.result()
                    lake.put(f"staging/{name}/rows/part-{number:05d}.parquet", part.content)
                    identities.append(part.identities)
                    span += [part.first, part.last]
                created.result()
                count = sum(map(len, identities))
                if count:
                    location = text(f"{_as_trino_says(folder)}/rows")
                    self._run(f"ALTER TABLE {staging} EXECUTE add_files(location => {location}, format => 'PARQUET')")
                    hashes = np.sort(np.concatenate(identities))  # np.unique takes 0.8 s for a million, this 5 ms
                    if (hashes[1:] == hashes[:-1]).any():
                        self._refuse_twins(dataset, staging)
                yield _Staged(staging, count, (min(span), max(span)) if span else None)
            finally:
                if created.exception() is None:
                    self._drop(staging)

    def _create_staging(self, dataset: Dataset, staging: str, folder: str) -> None:
        def create() -> None:
            self._run(
                f"CREATE TABLE {staging} ({', '.join(_definitions(dataset))})"
                f" WITH (format = 'PARQUET', format_version = 2, location = {text(folder)})"
            )

        try:
            create()
        except UsageError as refusal:
            if _trino_calls(refusal) != "NOT_FOUND":
                raise
            self._create_schema(self._staging)
            create()

    def _refuse_twins(self, dataset: Dataset, staging: str) -> None:
        identity = shape(dataset).identity
        twins = self._run(f"SELECT {identity} FROM {staging} GROUP BY {identity} HAVING count(*) > 1 LIMIT 1")  # noqa: S608
        if twins:
            raise BadDataError(
                f"a record is in the batch more than once: {identity} {twins[0][0]}; nothing was loaded",
                "transform the batch again",
            )

    def _drop(self, staging: str) -> None:
        """Drop a staging table and its files; a failure is left to maintenance: the load may be committed."""
        from trino.exceptions import Error

        try:
            self._run(f"DROP TABLE IF EXISTS {staging}")
        except (MarketdataError, Error) as error:
            log.warning("staged rows stay until maintenance", extra={"staging": staging, "error": first_line(error)})

    def _drop_stale_staging(self) -> None:
        """Drop what loads staged that were killed."""
        now = datetime.now(UTC).replace(microsecond=0)
        for name in self._names(self._staging):
            started = name.split("_")[-2] if name.count("_") >= 2 else ""
            if started.isdigit() and len(started) == 14:
                age = now - datetime.strptime(started, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
                if age > STALE_AFTER:
                    self._drop(identifier(self._catalog, self._staging, name))

    def _refuse_other_writer(self, dataset: Dataset) -> None:
        writer = self._writer(dataset)
        if writer != ENGINE:
            raise UsageError(
                f"table {dataset.name} is written by {writer or 'another engine'}, not by {ENGINE}; nothing was loaded",
                "unset TRINO_HOST so that pyiceberg writes"
                if writer == "pyiceberg"
                else f"choose another schema, or set the table property {WRITER} if {ENGINE} is to take the table over",
            )

    def _writer(self, dataset: Dataset) -> str | None:
        properties = dict(self._run(f"SELECT key, value FROM {self._table(dataset, '$properties')}"))  # noqa: S608
        return properties.get(WRITER)

    def _current_snapshot(self, dataset: Dataset) -> int | None:
        rows = self._run(f"SELECT snapshot_id FROM {self._table(dataset, '$refs')} WHERE name = 'main'")  # noqa: S608
        return rows[0][0] if rows else None

    def _columns(self, dataset: Dataset) -> dict[str, tuple[str, bool]]:
        """Type and whether it may be NULL, by name; empty where there is no table."""
        rows = self._run(
            "SELECT column_name, data_type, is_nullable"  # noqa: S608
            f" FROM {identifier(self._catalog, 'information_schema', 'columns')}"
            " WHERE table_schema = ? AND table_name = ?",
            (self._schema, dataset.name),
        )
        return {name: (type_, nullable == "YES") for name, type_, nullable in rows}

    def _shown(self, dataset: Dataset) -> str:
        """The statement that creates the table as it is; empty where there is none."""
        try:
            return str(self._run(f"SHOW CREATE TABLE {self._table(dataset)}")[0][0])
        except UsageError as refusal:
            if _trino_calls(refusal) not in {"TABLE_NOT_FOUND", "SCHEMA_NOT_FOUND"}:
                raise
            return ""

    def _new_columns(self, dataset: Dataset, shown: str) -> list[Column]:
        there = self._columns(dataset)
        wanted = {column.name for column in dataset.columns}
        differences = [f"{name} is not in the dataset" for name in there if name not in wanted]
        new = []
        for column in dataset.columns:
            if column.name not in there:
                if column.required:
                    differences.append(f"{column.name} is missing")
                else:
                    new.append(column)
                continue
            type_, nullable = there[column.name]
            if type_ != _trino_type(column):
                differences.append(f"{column.name} is {type_}, not {column.type}")
            elif not nullable and not column.required:
                differences.append(f"{column.name} is required in the table")
        if _partitioning(dataset) not in shown:
            differences.append(f"it is not partitioned by month({dataset.event_time})")
        if differences:
            raise UsageError(
                f"table {dataset.name} is not what the dataset says: {'; '.join(differences)}; nothing was changed",
                "migrate the table, or deploy the version that wrote it",
            )
        return new

    def _names(self, schema: str | None = None) -> list[str]:
        rows = self._run(
            f"SELECT table_name FROM {identifier(self._catalog, 'information_schema', 'tables')}"  # noqa: S608
            " WHERE table_schema = ? ORDER BY table_name",
            (schema or self._schema,),
        )
        return [name for (name,) in rows]

    def _create_schema(self, schema: str) -> None:
        self._create(f"SCHEMA IF NOT EXISTS {identifier(self._catalog, schema)}")

    def _create(self, what: str) -> None:
        """Create what is not there; Trino looks first and creates then, so of two that do so at once one fails."""
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed
        from trino.exceptions import TrinoQueryError

        failed = retry_if_exception_type((TrinoQueryError, UnavailableError, UsageError))
        for attempt in Retrying(stop=stop_after_attempt(2), wait=wait_fixed(0.2), retry=failed, reraise=True):
            with attempt:
                self._run(f"CREATE {what}")

    def _table(self, dataset: Dataset, suffix: str = "") -> str:
        return identifier(self._catalog, self._schema, dataset.name + suffix)

    def _run(self, statement: str, parameters: Sequence[object] = ()) -> list[Any]:
        return self._execute(statement, parameters).rows

    def _execute(
        self, statement: str, parameters: Sequence[object] = (), session: Mapping[str, str] | None = None
    ) -> _Done:
        """Run a statement to its end."""
        with self._reaching(), self._connect(session=session) as connection:
            cursor = connection.cursor()
            cursor.execute(statement, list(parameters) or None)
            rows = cursor.fetchall()
            return _Done(rows, str(cursor.query_id), cursor.rowcount)

    @contextmanager
    def _answering(self, statement: str, parameters: Sequence[object] = ()) -> Iterator[_Answer]:
        with self._reaching(), self._connect() as connection:
            cursor = connection.cursor()
            cursor.execute(statement, list(parameters) or None)
            yield _Answer(cursor)
            cursor.cancel()  # where not all rows were asked for

    def _connect(self, attempts: int = 3, session: Mapping[str, str] | None = None) -> Any:
        from trino.dbapi import connect

        return connect(  # type: ignore[no-untyped-call]
            host=self._settings.trino_host,
            port=self._settings.trino_port,
            user=self._settings.trino_user,
            catalog=self._catalog,
            schema=self._schema,
            source="marketdata",
            timezone="UTC",
            session_properties=dict(session or {}),
            legacy_prepared_statements=False,  # since Trino 418; else the client asks each time
            request_timeout=REQUEST_SECONDS,
            max_attempts=attempts,
        )

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn failures to reach Trino, or of what stands behind it, into errors that name the address."""
        from requests.exceptions import RequestException
        from trino.exceptions import HttpError, TrinoConnectionError, TrinoQueryError

        remedy = "check TRINO_HOST, TRINO_PORT and the server, then repeat the step: it is safe"
        try:
            yield
        except (RequestException, TrinoConnectionError, HttpError) as error:
            raise UnavailableError(
                f"Trino at {self._address} does not answer: {type(error).__name__};"
                " a load that was under way is either wholly in the table or not at all",
                remedy,
            ) from error
        except TrinoQueryError as error:
            if error.error_name in _LOST_RACE:
                raise
            if error.error_type == "USER_ERROR" and error.error_name not in _ENDED_BY_OTHERS:
                raise UsageError(
                    f"Trino refused query {error.query_id}: {first_line(error.message)}", CATALOG_NEEDS
                ) from error
            # Also what Trino calls internal: it says so while it starts, and when its catalog dies under it.
            raise UnavailableError(
                f"Trino at {self._address} could not run query {error.query_id}: {first_line(error.message)}",
                remedy,
            ) from error


@dataclass(frozen=True)
class _Staged:
    """A table of rows to be merged, and the event times of the first and the last of them."""

    table: str
    rows: int
    span: tuple[datetime, datetime] | None


@dataclass(frozen=True)
class _Done:
    """What came of a statement: its rows, Trino's id of it, and how many rows of a table it changed."""

    rows: list[Any]
    query_id: str
    changed: int


@dataclass(frozen=True)
class _Commit:
    """Snapshots before and after a MERGE, the same one where nothing changed, and how many rows it replaced."""

    before: int | None
    after: int | None
    updated: int


@dataclass(frozen=True)
class _Answer:
    """Rows of a running query as Arrow."""

    cursor: Any

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([(column[0], _arrow_type(column[1])) for column in self.cursor.description])

    def batches(self, max_rows: int | None = None) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        schema = self.schema
        left = max_rows
        while rows := self.cursor.fetchmany(_ROWS_AT_ONCE if left is None else min(left, _ROWS_AT_ONCE)):
            columns = zip(*rows, strict=True)
            yield pa.record_batch(
                [
                    pa.array(_plain(values, field.type), field.type)
                    for values, field in zip(columns, schema, strict=True)
                ],
                schema=schema,
            )
            if left is not None and (left := left - len(rows)) <= 0:
                return


def _plain(values: Sequence[Any], type_: pa.DataType) -> Sequence[Any]:
    """Arrays, maps and whatever else has no type of its own here become text."""
    import pyarrow as pa

    if not pa.types.is_string(type_):
        return values
    return [value if value is None or isinstance(value, str) else str(value) for value in values]


def _arrow_type(name: str) -> pa.DataType:
    import pyarrow as pa

    base, _, arguments = name.partition("(")
    simple: dict[str, pa.DataType] = {
        "boolean": pa.bool_(),
        "tinyint": pa.int8(),
        "smallint": pa.int16(),
        "integer": pa.int32(),
        "bigint": pa.int64(),
        "real": pa.float32(),
        "double": pa.float64(),
        "date": pa.date32(),
        "varbinary": pa.binary(),
    }
    if base == "decimal":
        precision, scale = arguments.rstrip(")").split(",")
        return pa.decimal128(int(precision), int(scale))
    if base == "timestamp":
        return pa.timestamp("us", "UTC" if name.endswith("with time zone") else None)
    return simple.get(base, pa.string())


def _inside(dataset: Dataset, staged: _Staged) -> tuple[str, tuple[datetime, ...]]:
    """Condition that spares reading what no staged row can match, and its parameters."""
    if staged.span is None or not shape(dataset).dated:
        return "", ()
    return f" AND t.{identifier(dataset.event_time)} BETWEEN ? AND ?", staged.span


def _definitions(dataset: Dataset) -> list[str]:
    return [
        f"{identifier(column.name)} {_trino_type(column)}{' NOT NULL' if column.required else ''}"
        f" COMMENT {text(column.doc)}"
        for column in dataset.columns
    ]


def _partitioning(dataset: Dataset) -> str:
    return f"partitioning = ARRAY[{text(f'month({dataset.event_time})')}]"


def _as_defined(dataset: Dataset, shown: str) -> bool:
    """Whether a table is shown to be just what would be created; if not, it may still do."""
    columns = ",\n   ".join(_definitions(dataset)).replace('"', "")
    return f"(\n   {columns}\n)".replace(", ", ",") in shown.replace(", ", ",") and _partitioning(dataset) in shown


def _trino_type(column: Column) -> str:
    types = {TEXT: "varchar", TIMESTAMP: "timestamp(6) with time zone", DATE: "date", INTEGER: "integer"}
    return types.get(column.type, column.type)


def _as_trino_says(uri: str) -> str:
    """Trino's procedures know the local file system by a scheme of its own."""
    return f"local://{uri.removeprefix('file://')}" if uri.startswith("file://") else uri


def _trino_calls(refusal: UsageError) -> str | None:
    return getattr(refusal.__cause__, "error_name", None)


def _lost_race(error: BaseException) -> bool:
    return getattr(error, "error_name", None) in _LOST_RACE
