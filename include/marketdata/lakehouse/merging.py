"""The rule of the merge, and a batch's rows in the order of the table's partitions. Knows no engine."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from marketdata.batches import ROWS_PER_PART, Batch
from marketdata.datasets import Dataset
from marketdata.errors import BadDataError, UnavailableError
from marketdata.lakehouse.statements import first_line

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

INSERTED, UPDATED, REPEATED, UNCHANGED, SUPERSEDED = range(5)
"""What may become of a row, in the order of the fields of `Loaded`."""

REVISES = (
    "s.content_hash <> t.content_hash"
    " AND (s.as_of > t.as_of OR (s.as_of = t.as_of AND s.content_hash > t.content_hash))"
)
"""SQL of DuckDB and Trino alike: row ``s`` of the batch replaces row ``t`` of the table."""


@dataclass(frozen=True)
class Shape:
    """How rows of a dataset meet the table.

    Args:
        identity: column that identifies a row.
        revised: rows have revisions; else a row that is there stays as it is.
        dated: the event time is part of the identity: a row can only be in its own month.
    """

    identity: str
    revised: bool
    dated: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns the decision needs, and that `Lakehouse.current` returns."""
        return (self.identity, *(("content_hash", "as_of") if self.revised else ()), "batch_id")

    def outcome(self) -> str:
        """SQL: what becomes of row ``s`` of the batch that meets row ``t`` of the table (NULLs: none)."""
        same = "s.content_hash = t.content_hash" if self.revised else "TRUE"
        revises = REVISES if self.revised else "FALSE"
        return (
            f"CASE WHEN t.{self.identity} IS NULL THEN {INSERTED}"
            f" WHEN {same} AND s.batch_id = t.batch_id THEN {REPEATED}"
            f" WHEN {same} THEN {UNCHANGED}"
            f" WHEN {revises} THEN {UPDATED}"
            f" ELSE {SUPERSEDED} END"
        )


def shape(dataset: Dataset) -> Shape:
    names = {column.name for column in dataset.columns}
    identity = "record_id" if "record_id" in names else dataset.key[0]
    return Shape(identity, revised={"content_hash", "as_of"} <= names, dated=dataset.event_time in dataset.key)


def decide(of: Shape, rows: pa.Table, state: pa.Table) -> NDArray[np.int8]:
    """Outcome of each row of the batch, given what the table has of these records.

    Raises:
        BadDataError: the table has one of them twice.
    """
    import duckdb
    import numpy as np
    import pyarrow as pa

    keys = rows.select(of.columns).append_column("position", pa.array(np.arange(len(rows), dtype=np.int32)))
    with duckdb.connect() as connection:
        connection.register("s", keys)
        connection.register("t", state)
        joined = f"s LEFT JOIN t ON s.{of.identity} = t.{of.identity}"
        statement = f"SELECT CAST({of.outcome()} AS TINYINT) AS outcome FROM {joined} ORDER BY position"  # noqa: S608
        outcomes = np.asarray(connection.execute(statement).fetchnumpy()["outcome"], dtype=np.int8)
    if len(outcomes) != len(rows):
        raise BadDataError(
            f"the table holds {len(outcomes) - len(rows)} of these records a second time; nothing was loaded",
            f"find them (GROUP BY {of.identity} HAVING count(*) > 1), and take the table back to a snapshot before",
        )
    return outcomes


def distinct(of: Shape, rows: pa.Table) -> pa.Table:
    """The first row of each identity."""
    import pyarrow as pa

    numbered = rows.select([of.identity]).append_column("number", pa.array(range(len(rows)), pa.int64()))
    first = numbered.group_by(of.identity).aggregate([("number", "min")])
    return rows.take(first["number_min"].combine_chunks().sort())


def months(event_time: pa.ChunkedArray[Any]) -> NDArray[np.int64]:
    """Months since 1970-01 (UTC) of timestamps in microseconds; negative before."""
    import numpy as np
    import pyarrow as pa

    microseconds = event_time.cast(pa.int64()).to_numpy()
    result: NDArray[np.int64] = microseconds.view("datetime64[us]").astype("datetime64[M]").astype(np.int64)
    return result


@dataclass(frozen=True)
class Part:
    """Some rows as a Parquet file.

    Args:
        identities: hash of each row's identity.
        first: event time of the earliest row.
        last: event time of the latest row.
    """

    content: Any
    identities: NDArray[np.uint64]
    first: datetime
    last: datetime

    @property
    def rows(self) -> int:
        return len(self.identities)


def parts(dataset: Dataset, source: Batch | pa.Table) -> Iterator[Part]:
    """The rows as files: the batch's own where they have the dataset's schema, so that nothing is encoded anew.

    Raises:
        BadDataError: rows do not fit the schema.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    schema, identity = dataset.arrow_schema(), shape(dataset).identity
    for content in source.contents() if isinstance(source, Batch) else [_parquet(source)]:
        file = pq.ParquetFile(pa.BufferReader(content))
        if not file.schema_arrow.equals(schema):
            content = _parquet(_conform(dataset, file.read()))
            file = pq.ParquetFile(pa.BufferReader(content))
        if file.metadata.num_rows:
            rows = file.read(columns=[identity, dataset.event_time])
            first, last = (moment(rows[dataset.event_time]).as_py().astimezone(UTC) for moment in (pc.min, pc.max))
            yield Part(content, _hashes(rows[identity]), first, last)


class Rows:
    """Rows to be merged: parts that can be read again, never all held at once."""

    def __init__(self, dataset: Dataset, source: Batch | pa.Table) -> None:
        self._dataset = dataset
        self._source = source
        # A source of one part, which most are, is read once.
        self._read = lru_cache(maxsize=1)(self._read_part)
        self._counts = [self._months_in(index) for index in range(self._parts)]

    @property
    def _parts(self) -> int:
        return len(self._source.manifest.parts) if isinstance(self._source, Batch) else 1

    def parts(self) -> Iterator[pa.Table]:
        """The rows as they come."""
        for index in range(self._parts):
            yield self._read(index)

    def slices(self) -> Iterator[pa.Table]:
        """The rows by event time, in tables of whole months, of about `ROWS_PER_PART` rows.

        Raises:
            BadDataError: a record is there twice.
            UnavailableError: the temporary folder has no room to sort a batch of several parts.
        """
        spans = list(self._spans())
        tables = self.parts() if len(spans) <= 1 and self._parts == 1 else self._sorted_out(spans)
        for table in tables:
            self._refuse_twins(table)
            yield table.sort_by(self._dataset.event_time)

    def _sorted_out(self, spans: Sequence[tuple[int, int]]) -> Iterator[pa.Table]:
        """The rows of each span of months, by way of a temporary file, so that memory holds one span at a time."""
        import pyarrow as pa

        schema = self._dataset.arrow_schema()
        pieces: list[list[int]] = [[] for _ in spans]
        try:
            with tempfile.TemporaryFile() as file:
                options = pa.ipc.IpcWriteOptions(compression="zstd")
                with pa.ipc.new_file(file, schema, options=options) as writer:
                    for number, (span, batch) in enumerate(self._split(spans)):
                        writer.write_batch(batch)
                        pieces[span].append(number)
                with pa.ipc.open_file(file) as reader:
                    for numbers in pieces:
                        yield pa.Table.from_batches([reader.get_batch(number) for number in numbers], schema)
        except OSError as error:
            raise UnavailableError(
                f"no room to sort the rows in {tempfile.gettempdir()}: {first_line(error)}; nothing was loaded",
                "make room there, or set TMPDIR to a folder with 100 bytes for each row",
            ) from error

    def _split(self, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows of each part, span by span."""
        import numpy as np

        last_months = [last for _, last in spans]
        for part in self.parts():
            span = np.searchsorted(last_months, months(part[self._dataset.event_time]))
            ordered = part.take(np.argsort(span, kind="stable")).combine_chunks()
            ends = np.cumsum(np.bincount(span, minlength=len(spans))).tolist()
            for number, (start, end) in enumerate(itertools.pairwise([0, *ends])):
                if end > start:
                    yield number, ordered.slice(start, end - start).to_batches()[0]

    def _spans(self) -> Iterator[tuple[int, int]]:
        totals: dict[int, int] = {}
        for counts in self._counts:
            for month, count in counts.items():
                totals[month] = totals.get(month, 0) + count
        span: list[int] = []
        held = 0
        for month in sorted(totals):
            if span and held + totals[month] > ROWS_PER_PART:
                yield span[0], span[-1]
                span, held = [], 0
            span.append(month)
            held += totals[month]
        if span:
            yield span[0], span[-1]

    def _months_in(self, index: int) -> dict[int, int]:
        import numpy as np

        name = self._dataset.event_time
        if isinstance(self._source, Batch) and self._parts > 1:
            event_time = next(_only(self._source, index).tables([name]))[name].cast(
                self._dataset.arrow_schema().field(name).type
            )
        else:
            event_time = self._read(index)[name]
        values, counts = np.unique(months(event_time), return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def _read_part(self, index: int) -> pa.Table:
        rows = next(_only(self._source, index).tables()) if isinstance(self._source, Batch) else self._source
        return _conform(self._dataset, rows)

    def _refuse_twins(self, rows: pa.Table) -> None:
        import pyarrow.compute as pc

        identity = shape(self._dataset).identity
        if pc.count_distinct(rows[identity]).as_py() < len(rows):
            twins = rows.group_by(identity).aggregate([([], "count_all")]).filter(pc.field("count_all") > 1)
            raise BadDataError(
                f"{len(twins)} records are in the batch more than once, e.g. {identity} {twins[identity][0]};"
                " nothing was loaded",
                "transform the batch again",
            )


def _conform(dataset: Dataset, rows: pa.Table) -> pa.Table:
    import pyarrow as pa

    schema = dataset.arrow_schema()
    try:
        return rows.select(schema.names).cast(schema)
    except (KeyError, ValueError, pa.ArrowInvalid) as error:
        raise BadDataError(
            f"rows do not fit the schema of {dataset.name}: {first_line(error)}; nothing was loaded",
            "transform the batch again with this version",
        ) from error


def _hashes(values: pa.ChunkedArray[Any]) -> NDArray[np.uint64]:
    import duckdb
    import numpy as np
    import pyarrow as pa

    with duckdb.connect() as connection:
        connection.register("given", pa.Table.from_arrays([values], ["value"]))
        return np.asarray(connection.execute("SELECT hash(value) AS hash FROM given").fetchnumpy()["hash"], np.uint64)


def _parquet(rows: pa.Table) -> memoryview:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    return memoryview(sink.getvalue()).cast("B")


def _only(batch: Batch, index: int) -> Batch:
    """The batch as if it had this one part."""
    return replace(batch, manifest=replace(batch.manifest, parts=(batch.manifest.parts[index],)))
