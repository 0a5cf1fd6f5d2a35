"""The lakehouse in the task's own process: pyiceberg writes, DuckDB decides and answers.

The catalog is Iceberg's JDBC catalog in PostgreSQL (database ``iceberg``, catalog ``lake``), which Trino reads as well.
A load is one snapshot, made current by one compare-and-set of the table's row in that catalog: a reader sees the table
before or after it. Whoever loses the race decides again on the new state.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from marketdata.batches import ROWS_PER_PART, Batch
from marketdata.datasets import Column, Dataset, quarantine
from marketdata.datasets.dataset import DATE, INTEGER, TEXT, TIMESTAMP
from marketdata.errors import TryLaterError, UnavailableError, UsageError
from marketdata.lakehouse.contract import WRITER, Loaded, Maintained, Snapshot, outdated
from marketdata.lakehouse.merging import INSERTED, UPDATED, Rows, Shape, decide, distinct, months, shape
from marketdata.lakehouse.statements import (
    ONE_READING_STATEMENT,
    expired,
    first_line,
    identifier,
    mentioned,
    refuse_now,
    tables_there,
)
from marketdata.lakehouse.sweeping import sweep
from marketdata.postgres import SILENCE
from marketdata.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.table.snapshots import Snapshot as IcebergSnapshot
    from pyiceberg.types import IcebergType
    from sqlalchemy import URL

log = logging.getLogger(__name__)

ENGINE = "pyiceberg"
CATALOG = "lake"
DATABASE = "iceberg"
CONNECT_SECONDS = 5
"""For one try; pyiceberg makes two before it gives up."""

TRIES = 10

DECIDED_ANEW = {"commit.retry.num-retries": "0"}
"""Property of a table: pyiceberg would repeat a lost commit as it was, and so insert a record twice."""

SMALL_ROWS = ROWS_PER_PART // 2
"""A file of fewer rows is small; maintenance makes files of at most `ROWS_PER_PART` of them."""

T = TypeVar("T")


class EmbeddedLakehouse:
    """Implements `Lakehouse` with pyiceberg and DuckDB."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._namespace = settings.trino_schema
        self._lake_uri = settings.require("lake_uri").rstrip("/")
        self._dsn = settings.require("postgres_dsn")

    def ensure(self, dataset: Dataset) -> None:
        with self._reaching():
            self._ensure(dataset)

    def load(self, dataset: Dataset, batch: Batch, run_id: str | None = None) -> Loaded:
        summary = {
            "marketdata.batch_id": batch.manifest.batch_id,
            "marketdata.run_id": run_id or batch.manifest.run_id,
        }
        return self._merge(dataset, batch, summary)

    def quarantine(self, dataset: Dataset, rows: pa.Table, run_id: str = "") -> Loaded:
        refused = quarantine(dataset)
        once = distinct(shape(refused), rows)
        loaded = self._merge(refused, once, {"marketdata.run_id": run_id})
        return replace(loaded, unchanged=loaded.unchanged + len(rows) - len(once))

    def current(self, dataset: Dataset, keys: pa.Table, bounds: tuple[datetime, datetime] | None = None) -> pa.Table:
        import duckdb
        import pyarrow as pa
        from pyiceberg.expressions import (
            AlwaysTrue,
            And,
            BooleanExpression,
            GreaterThanOrEqual,
            LessThanOrEqual,
            Reference,
        )
        from pyiceberg.expressions.literals import literal

        of = shape(dataset)
        where: BooleanExpression = AlwaysTrue()
        if bounds:
            first, last = (literal(moment.isoformat()) for moment in bounds)
            time_ = Reference(dataset.event_time)
            where = And(GreaterThanOrEqual(time_, first), LessThanOrEqual(time_, last))  # type: ignore[call-arg,arg-type]
        schema = pa.schema([dataset.arrow_schema().field(name) for name in of.columns])
        with self._reaching():
            table = self._find(dataset)
            if table is None:
                return schema.empty_table()
            scan = table.scan(row_filter=where, selected_fields=of.columns)
            with duckdb.connect() as connection:
                connection.register("held", scan.to_arrow_batch_reader())
                connection.register("wanted", keys.select([of.identity]))
                semi_join = f"SELECT * FROM held SEMI JOIN wanted USING ({of.identity})"  # noqa: S608 - our own column
                found: pa.Table = connection.sql(semi_join).to_arrow_table()
        return found.select(of.columns).cast(schema)

    def query(self, sql: str, max_rows: int | None = None, at: Mapping[str, int] | None = None) -> pa.Table:
        import duckdb
        import pyarrow as pa

        with duckdb.connect() as connection:
            try:
                statements = connection.extract_statements(sql)
            except duckdb.Error as error:
                raise UsageError(f"the query is not valid: {first_line(error)}") from None
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError(ONE_READING_STATEMENT)
            connection.execute("SET TimeZone = 'UTC'")
            with self._reaching():
                names = self._register(connection, sql, at)
                # From here on the query sees these tables and nothing else: no file, no address, no setting.
                connection.execute("SET enable_external_access = false")
                connection.execute("SET lock_configuration = true")
                try:
                    reader = connection.sql(sql).to_arrow_reader(10_000)
                    batches = list(_at_most(reader, max_rows))
                except duckdb.Error as error:
                    raise UsageError(f"the query failed: {first_line(error)}", tables_there(names)) from None
        return pa.Table.from_batches(batches, reader.schema)

    def snapshot(self, dataset: Dataset) -> int | None:
        with self._reaching():
            table = self._find(dataset)
            return table.metadata.current_snapshot_id if table else None

    def history(self, dataset: Dataset) -> list[Snapshot]:
        with self._reaching():
            table = self._find(dataset)
        return [
            Snapshot(
                snapshot_id=snapshot.snapshot_id,
                parent_id=snapshot.parent_snapshot_id,
                committed_at=_committed_at(snapshot),
                operation=snapshot.summary.operation.value if snapshot.summary else "",
                summary=dict(snapshot.summary.additional_properties) if snapshot.summary else {},
            )
            for snapshot in (_in_order(table) if table else ())
        ]

    def maintain(self, dataset: Dataset, keep: timedelta) -> Maintained | None:
        with self._reaching():
            table = self._find(dataset)
            if table is None:
                return None
            _refuse_other_writer(table, dataset)
            before, after = self._insist(dataset, "was maintained", lambda: self._compact(dataset))
            expired_ = self._insist(dataset, "expired", lambda: self._expire(dataset, keep))
            table = self._catalog.load_table((self._namespace, dataset.name))
            sweep(self._settings, table.location(), _named(table))
        maintained = Maintained(before, after, expired_)
        log.info("maintained", extra={"table": dataset.name, **asdict(maintained)})
        return maintained

    def drop_namespace(self) -> None:
        with self._reaching():
            if self._catalog.namespace_exists(self._namespace):
                for name in self._catalog.list_tables(self._namespace):
                    self._catalog.drop_table(name)
                self._catalog.drop_namespace(self._namespace)

    def check(self) -> None:
        with self._reaching():
            self._catalog.namespace_exists(self._namespace)

    def _merge(self, dataset: Dataset, source: Batch | pa.Table, summary: dict[str, str]) -> Loaded:
        started = time.monotonic()
        rows = Rows(dataset, source)
        with self._reaching():
            self._ensure(dataset)
            write = self._insist(dataset, "was loaded", lambda: self._decide_and_commit(dataset, rows, summary))
        loaded = Loaded.of(write.outcomes, write.snapshot_before, write.snapshot_after, time.monotonic() - started)
        log.info("merged", extra={"table": dataset.name, **summary, **asdict(loaded)})
        return loaded

    def _insist(self, dataset: Dataset, what: str, work: Callable[[], T]) -> T:
        """Do work that decides on the table's state and commits; again where another writer committed first."""
        from pyiceberg.exceptions import CommitFailedException, ValidationException
        from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        lost_race = retry_if_exception_type((CommitFailedException, ValidationException))
        wait = wait_random_exponential(multiplier=0.1, max=5)
        try:
            return Retrying(stop=stop_after_attempt(TRIES), wait=wait, retry=lost_race)(work)
        except RetryError as error:
            raise TryLaterError(
                f"other writers of {dataset.name} committed first, {TRIES} times; nothing {what}",
                "try again, and order the writers of a table by a pool of one slot",
            ) from error

    def _compact(self, dataset: Dataset) -> tuple[int, int]:
        """Merge small files in one commit; how many files there were and are."""
        from pyiceberg.exceptions import CommitFailedException, ValidationException

        table = self._catalog.load_table((self._namespace, dataset.name))
        write = _Write(table, shape(dataset), dataset.event_time)
        try:
            files = write.compact()
            write.commit({"marketdata.step": "maintain"})
        except (CommitFailedException, ValidationException):
            write.undo()
            raise
        return files, files - len(write.removed) + len(write.added)

    def _expire(self, dataset: Dataset, keep: timedelta) -> int:
        """Forget old snapshots in one commit; how many."""
        table = self._catalog.load_table((self._namespace, dataset.name))
        kept = {ref.snapshot_id for ref in table.metadata.refs.values()}
        snapshots = _in_order(table)
        count = outdated([_committed_at(snapshot) for snapshot in snapshots], datetime.now(UTC) - keep)
        old = [snapshot.snapshot_id for snapshot in snapshots[:count] if snapshot.snapshot_id not in kept]
        if old:
            table.maintenance.expire_snapshots().by_ids(old).commit()
        return len(old)

    def _decide_and_commit(self, dataset: Dataset, rows: Rows, summary: dict[str, str]) -> _Write:
        from pyiceberg.exceptions import CommitFailedException, ValidationException

        table = self._catalog.load_table((self._namespace, dataset.name))
        _refuse_other_writer(table, dataset)
        write = _Write(table, shape(dataset), dataset.event_time)
        try:
            for slice_ in rows.slices():
                write.add(slice_)
        except Exception:
            write.undo()
            raise
        try:
            write.commit(summary)
        except (CommitFailedException, ValidationException):
            write.undo()  # after any other error the catalog may have taken the commit
            raise
        return write

    def _ensure(self, dataset: Dataset) -> None:
        from pyiceberg.exceptions import TableAlreadyExistsError

        table = self._find(dataset)
        if table is None:
            self._create_namespace()
            schema = _schema(dataset)
            with suppress(TableAlreadyExistsError):  # by another process, in this moment
                self._catalog.create_table(
                    (self._namespace, dataset.name),
                    schema,
                    partition_spec=_by_month(schema, dataset),
                    properties={
                        WRITER: ENGINE,
                        "comment": dataset.doc,
                        "format-version": "2",
                        "write.parquet.compression-codec": "zstd",
                        **DECIDED_ANEW,
                    },
                )
                log.info("created table", extra={"table": dataset.name})
            table = self._catalog.load_table((self._namespace, dataset.name))
        new = _new_columns(table, dataset)
        if table.properties.get(WRITER) != ENGINE:
            return
        if not table.properties.items() >= DECIDED_ANEW.items():  # Trino made it, and was told to leave it to us
            self._insist(dataset, "was taken over", lambda: self._take_over(dataset))
        if new:
            self._insist(dataset, "was changed", lambda: self._add_columns(dataset))
            log.info("added columns", extra={"table": dataset.name, "columns": [column.name for column in new]})

    def _take_over(self, dataset: Dataset) -> None:
        with self._catalog.load_table((self._namespace, dataset.name)).transaction() as transaction:
            transaction.set_properties(DECIDED_ANEW)

    def _add_columns(self, dataset: Dataset) -> None:
        table = self._catalog.load_table((self._namespace, dataset.name))
        with table.update_schema() as update:
            for column in _new_columns(table, dataset):
                update.add_column(column.name, _iceberg_type(column), column.doc)

    def _create_namespace(self) -> None:
        from pyiceberg.exceptions import NamespaceAlreadyExistsError
        from sqlalchemy.exc import IntegrityError

        with suppress(NamespaceAlreadyExistsError, IntegrityError):
            self._catalog.create_namespace(self._namespace)

    def _find(self, dataset: Dataset) -> Table | None:
        from pyiceberg.exceptions import NoSuchTableError

        try:
            return self._catalog.load_table((self._namespace, dataset.name))
        except NoSuchTableError:
            return None

    def _register(self, connection: Any, sql: str, at: Mapping[str, int] | None) -> list[str]:
        """Make the tables the statement names known to DuckDB, under the names they have in Trino; return all names."""
        names = sorted(name for *_, name in self._catalog.list_tables(self._namespace)) if self._has_namespace() else []
        schema = identifier(self._settings.trino_catalog, self._namespace)
        connection.execute(f"ATTACH ':memory:' AS {identifier(self._settings.trino_catalog)}")
        connection.execute(f"CREATE SCHEMA {schema}")
        connection.execute(f"USE {schema}")
        if at is not None:
            refuse_now(sql, at, names)
        lists_all = re.match(r"\s*show\b", sql, re.IGNORECASE)
        known = [name for name in names if at is None or name in at]
        for name in names if lists_all else mentioned(sql, known):
            table = self._catalog.load_table((self._namespace, name))
            connection.from_arrow(_readable(table, None if at is None else at[name])).create_view(name)
        return names

    def _has_namespace(self) -> bool:
        return self._catalog.namespace_exists(self._namespace)

    @cached_property
    def _url(self) -> URL:
        from sqlalchemy import make_url

        url = make_url(self._dsn).set(drivername="postgresql+psycopg", database=DATABASE)
        options = {"connect_timeout": CONNECT_SECONDS, **SILENCE}
        return url.update_query_dict({name: str(value) for name, value in options.items()})

    @cached_property
    def _catalog(self) -> SqlCatalog:
        from pyiceberg.catalog.sql import SqlCatalog
        from sqlalchemy.exc import IntegrityError, ProgrammingError

        properties = {
            "uri": self._url.render_as_string(hide_password=False),
            "warehouse": f"{self._lake_uri}/warehouse",
            "pool_pre_ping": "true",
            "s3.region": self._settings.aws_region,
        }
        if self._settings.aws_endpoint_url:
            properties["s3.endpoint"] = self._settings.aws_endpoint_url
        if self._settings.aws_access_key_id and self._settings.aws_secret_access_key:
            properties["s3.access-key-id"] = self._settings.aws_access_key_id.get_secret_value()
            properties["s3.secret-access-key"] = self._settings.aws_secret_access_key.get_secret_value()
        try:
            return SqlCatalog(CATALOG, **properties)
        except (IntegrityError, ProgrammingError):  # another process created the catalog's tables in this moment
            return SqlCatalog(CATALOG, **properties)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn failures of the catalog and of the store into errors that name the address."""
        from sqlalchemy.exc import DBAPIError

        try:
            yield
        except DBAPIError as error:
            address = f"{self._url.host}:{self._url.port or 5432}"
            if f'database "{DATABASE}" does not exist' in str(error.orig):
                raise UsageError(
                    f"PostgreSQL at {address} has no database {DATABASE}, which holds the Iceberg catalog",
                    f"create it: CREATE DATABASE {DATABASE}",
                ) from error
            raise UnavailableError(
                f"the Iceberg catalog in PostgreSQL at {address} does not answer: {first_line(error.orig)};"
                " a load that was under way is either wholly in the table or not at all",
                "check POSTGRES_DSN and the server, then repeat the step: it is safe",
            ) from error
        except OSError as error:
            raise UnavailableError(
                f"the lake {self._lake_uri} cannot be read or written: {first_line(error)}; no table was changed",
                "check LAKE_URI and the store behind it",
            ) from error


@dataclass
class _Write:
    """One try of a merge: data files written beside the table, which become part of it by `commit`."""

    table: Table
    of: Shape
    event_time: str
    outcomes: list[int] = field(default_factory=lambda: [0] * 5)
    added: list[DataFile] = field(default_factory=list)
    removed: list[DataFile] = field(default_factory=list)

    def __post_init__(self) -> None:
        snapshot = self.table.current_snapshot()
        self.snapshot_before = self.snapshot_after = snapshot.snapshot_id if snapshot else None
        self._id = uuid.uuid4()
        self._numbers = itertools.count()

    @cached_property
    def _state(self) -> dict[int | None, list[FileScanTask]]:
        """The table's files by month; all under None where a row's month does not follow from its identity."""
        files: dict[int | None, list[FileScanTask]] = {}
        for task in self.table.scan().plan_files():
            month = task.file.partition[0] if self.of.dated else None
            files.setdefault(month, []).append(task)
        return files

    def add(self, rows: pa.Table) -> None:
        """Decide on rows of whole months, sorted by event time, and write what changes."""
        import numpy as np
        import pyarrow as pa

        month = months(rows[self.event_time])
        present = np.unique(month).tolist() if self.of.dated else [None]
        files = [task for key in present for task in self._state.get(key, ())]
        if not files:
            self.outcomes[INSERTED] += len(rows)
            self._write(rows)
            return
        outcome = decide(self.of, rows, self._read(files, self.of.columns))
        for value, count in zip(*np.unique(outcome, return_counts=True), strict=True):
            self.outcomes[value] += int(count)
        inserted = rows.take(np.flatnonzero(outcome == INSERTED))
        updated = rows.take(np.flatnonzero(outcome == UPDATED))
        if len(updated):
            changed = set(month[outcome == UPDATED].tolist())
            kept = self._replace([task for task in files if task.file.partition[0] in changed], updated)
            inserted = pa.concat_tables([inserted, updated, *kept])
        if len(inserted):
            self._write(inserted.sort_by(self.event_time))

    def compact(self) -> int:
        """Write small files of a month anew, as few files; how many files the table has now."""
        months_: dict[int, list[FileScanTask]] = {}
        files = list(self.table.scan().plan_files())
        for task in files:
            if task.file.record_count < SMALL_ROWS:
                months_.setdefault(task.file.partition[0], []).append(task)
        names = [field_.name for field_ in self.table.schema().fields]
        for tasks in months_.values():
            for some in _together(tasks):
                self._write(self._read(some, names).sort_by(self.event_time))
                self.removed.extend(task.file for task in some)
        return len(files)

    def commit(self, summary: dict[str, str]) -> None:
        """Make the written files part of the table, in one snapshot; where nothing was written, do nothing."""
        if not self.added:
            return
        with self.table.transaction() as transaction:
            update = transaction.update_snapshot(snapshot_properties=summary)
            with update.overwrite() if self.removed else update.fast_append() as snapshot:
                for file in self.removed:
                    snapshot.delete_data_file(file)
                for file in self.added:
                    snapshot.append_data_file(file)
        self.snapshot_after = snapshot.snapshot_id

    def undo(self) -> None:
        """Delete the files that were written; only for a commit that is known not to have happened."""
        for file in self.added:
            with suppress(OSError):
                self.table.io.delete(file.file_path)

    def _read(self, files: Sequence[FileScanTask], columns: Sequence[str]) -> pa.Table:
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan

        schema = self.table.schema().select(*columns)
        return ArrowScan(self.table.metadata, self.table.io, schema, AlwaysTrue()).to_table(files)

    def _replace(self, files: Sequence[FileScanTask], updated: pa.Table) -> list[pa.Table]:
        """Mark the files that hold an older revision as removed; return their other rows."""
        import pyarrow.compute as pc

        replaced = updated[self.of.identity].combine_chunks()
        names = [field_.name for field_ in self.table.schema().fields]
        kept = []
        for task in files:
            old = self._read([task], names)
            stale = pc.is_in(old[self.of.identity], value_set=replaced)
            if pc.any(stale).as_py():
                self.removed.append(task.file)
                kept.append(old.filter(pc.invert(stale)).select(updated.schema.names).cast(updated.schema))
        return kept

    def _write(self, rows: pa.Table) -> None:
        """Write rows sorted by event time, one file a month."""
        import numpy as np
        from pyiceberg.io.pyarrow import write_file
        from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
        from pyiceberg.table import WriteTask

        schema, spec = self.table.schema(), self.table.spec()
        month = months(rows[self.event_time])
        starts = [0, *(np.flatnonzero(np.diff(month)) + 1).tolist(), len(rows)]
        tasks = (
            WriteTask(
                write_uuid=self._id,
                task_id=next(self._numbers),
                schema=schema,
                record_batches=rows.slice(start, end - start).combine_chunks().to_batches(),
                partition_key=PartitionKey([PartitionFieldValue(spec.fields[0], int(month[start]))], spec, schema),
            )
            for start, end in itertools.pairwise(starts)
        )
        self.added.extend(write_file(self.table.io, self.table.metadata, tasks))


def _together(tasks: Sequence[FileScanTask]) -> Iterator[list[FileScanTask]]:
    """Files that are to become one; of what results, one file at most is small."""
    some: list[FileScanTask] = []
    rows = 0
    for task in tasks:
        if rows + task.file.record_count > ROWS_PER_PART:
            yield some
            some, rows = [], 0
        some.append(task)
        rows += task.file.record_count
    if len(some) > 1:
        yield some


def _in_order(table: Table) -> list[IcebergSnapshot]:
    return sorted(table.metadata.snapshots, key=lambda snapshot: snapshot.sequence_number or 0)


def _committed_at(snapshot: IcebergSnapshot) -> datetime:
    return datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC)


def _named(table: Table) -> set[str]:
    """Every file that a kept snapshot or the table's own log names."""
    named = {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
    named.update(statistics.statistics_path for statistics in table.metadata.statistics)
    manifests = {}
    for snapshot in table.metadata.snapshots:
        named.add(snapshot.manifest_list)
        manifests.update({manifest.manifest_path: manifest for manifest in snapshot.manifests(table.io)})
    for path, manifest in manifests.items():
        named.add(path)
        named.update(entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io))
    return named


def _refuse_other_writer(table: Table, dataset: Dataset) -> None:
    writer = table.properties.get(WRITER)
    if writer != ENGINE:
        raise UsageError(
            f"table {dataset.name} is written by {writer or 'another engine'}, not by {ENGINE}; nothing was loaded",
            "set TRINO_HOST so that Trino writes"
            if writer == "trino"
            else f"choose another schema, or set the table property {WRITER} if {ENGINE} is to take the table over",
        )


def _schema(dataset: Dataset) -> Schema:
    from pyiceberg.schema import Schema
    from pyiceberg.types import NestedField

    fields = [
        NestedField(number, column.name, _iceberg_type(column), required=column.required, doc=column.doc)
        for number, column in enumerate(dataset.columns, start=1)
    ]
    identity = shape(dataset).identity
    return Schema(*fields, identifier_field_ids=[field_.field_id for field_ in fields if field_.name == identity])


def _by_month(schema: Schema, dataset: Dataset) -> PartitionSpec:
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.transforms import MonthTransform

    source = schema.find_field(dataset.event_time).field_id
    return PartitionSpec(PartitionField(source, 1000, MonthTransform(), f"{dataset.event_time}_month"))


def _iceberg_type(column: Column) -> IcebergType:
    from pyiceberg.types import DateType, DecimalType, IntegerType, StringType, TimestamptzType

    if decimal := column.decimal():
        return DecimalType(*decimal)
    types: dict[str, IcebergType] = {
        TEXT: StringType(),
        TIMESTAMP: TimestamptzType(),
        DATE: DateType(),
        INTEGER: IntegerType(),
    }
    return types[column.type]


def _new_columns(table: Table, dataset: Dataset) -> list[Column]:
    """Optional columns the table lacks.

    Raises:
        UsageError: it differs from the dataset in any other way.
    """
    there = {field_.name: field_ for field_ in table.schema().fields}
    wanted = {column.name for column in dataset.columns}
    differences = [f"{name} is not in the dataset" for name in there if name not in wanted]
    new = []
    for column in dataset.columns:
        field_ = there.get(column.name)
        if field_ is None and column.required:
            differences.append(f"{column.name} is missing")
        elif field_ is None:
            new.append(column)
        elif field_.field_type != _iceberg_type(column):
            differences.append(f"{column.name} is {field_.field_type}, not {column.type}")
        elif field_.required and not column.required:
            differences.append(f"{column.name} is required in the table")
    schema = table.schema()
    partitions = [(str(part.transform), schema.find_column_name(part.source_id)) for part in table.spec().fields]
    if partitions != [("month", dataset.event_time)]:
        differences.append(f"it is not partitioned by month({dataset.event_time})")
    if differences:
        raise UsageError(
            f"table {dataset.name} is not what the dataset says: {'; '.join(differences)}; nothing was changed",
            "migrate the table, or deploy the version that wrote it",
        )
    return new


def _readable(table: Table, snapshot: int | None) -> Any:
    """A snapshot of the table, by default the current one, as something DuckDB scans lazily and more than once."""
    import pyarrow.dataset as ds
    from pyiceberg.io.pyarrow import PyArrowFileIO, schema_to_pyarrow

    if snapshot is not None and table.snapshot_by_id(snapshot) is None:
        raise expired(table.name()[-1], snapshot)
    scan = table.scan(snapshot_id=snapshot)
    files = list(scan.plan_files())
    schema = schema_to_pyarrow(scan.projection(), include_field_ids=False)
    if not files or any(task.delete_files for task in files) or not isinstance(table.io, PyArrowFileIO):
        return scan.to_arrow()  # rows deleted by position (as Trino does) are taken out by pyiceberg alone
    scheme, host, _ = table.io.parse_location(files[0].file.file_path)
    paths = [table.io.parse_location(task.file.file_path)[2] for task in files]
    return ds.dataset(paths, schema=schema, format="parquet", filesystem=table.io.fs_by_scheme(scheme, host))


def _at_most(batches: Iterator[pa.RecordBatch], max_rows: int | None) -> Iterator[pa.RecordBatch]:
    left = max_rows
    for batch in batches:
        if left is None:
            yield batch
            continue
        yield batch.slice(0, left)
        left -= min(left, len(batch))
        if left == 0:
            return
