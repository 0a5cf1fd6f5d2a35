"""Markers, deltas and their fold: what has been published, as values and as rows.

Per record, the fold is the revision with the greatest (`as_of`, content hash). That is a maximum: deltas may be folded
in any order, and any of them may be merged into one, without changing the result.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from marketdata.batches import ROWS_PER_PART, Lake
from marketdata.datasets.conform import connect
from marketdata.errors import BadDataError, UsageError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

FORMAT = 1
"""Of markers, deltas and snapshots."""

MEMORY_LIMIT = "256MB"
"""Of DuckDB while it joins with the fold; what does not fit goes to temporary files."""


@dataclass(frozen=True)
class Delta:
    """Record ids, content hashes and as-of times that a batch published: a Parquet object of the lake."""

    path: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Offsets:
    """A batch's first and last record in a partition."""

    partition: int
    first: int
    last: int


@dataclass(frozen=True)
class Marker:
    """What publishing a batch came to; every row of the batch is counted in exactly one of the first three.

    Args:
        published: rows that are in the topic since this batch.
        already_published: rows whose content the topic had.
        superseded: rows older than what the topic had.
        revised: how many of the published ones replaced an older revision.
    """

    dataset: str
    tenant: str
    batch_id: str
    run_id: str
    published: int
    already_published: int
    superseded: int
    revised: int
    delta: tuple[Delta, ...]
    offsets: tuple[Offsets, ...]
    published_at: datetime
    format: int = FORMAT

    def to_json(self) -> bytes:
        return json.dumps({**asdict(self), "published_at": self.published_at.isoformat()}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """
        Raises:
            UsageError: this is not a marker, or one of a newer version.
        """
        try:
            values = json.loads(text)
            if values["format"] > FORMAT:
                raise UsageError(
                    f"a ledger marker has format {values['format']}, this version reads {FORMAT}; nothing was changed",
                    "use the version that wrote it, or a newer one",
                )
            values["delta"] = tuple(Delta(**delta) for delta in values["delta"])
            values["offsets"] = tuple(Offsets(**offsets) for offsets in values["offsets"])
            values["published_at"] = datetime.fromisoformat(values["published_at"])
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f"a message of the ledger is not a marker ({error!r}); nothing was changed",
                "find out who else writes to the ledger topic",
            ) from error


@dataclass(frozen=True)
class Fold:
    """What has been published of one tenant's dataset, up to an offset of the ledger.

    Args:
        topic: the ledger.
        topic_id: Kafka's own id of that topic; another one means another topic of the same name.
        end: offset up to which (exclusive) markers are in the fold.
        files: the deltas, in no particular order.
        batches: batch id → offset of its marker.
        revised: upper bound of the rows in `files` that a newer revision has made superfluous.
        fresh: markers read from the topic itself, not covered by a snapshot, by batch id.
    """

    topic: str
    topic_id: str
    dataset: str
    tenant: str
    end: int = 0
    files: tuple[Delta, ...] = ()
    batches: Mapping[str, int] = field(default_factory=dict)
    revised: int = 0
    fresh: Mapping[str, Marker] = field(default_factory=dict)

    @property
    def key(self) -> bytes:
        """Message key of this fold's markers."""
        return f"{self.tenant}/{self.dataset}".encode()

    @property
    def folder(self) -> str:
        """Where the lake keeps its deltas and snapshots."""
        return f"ledger/{self.dataset}/{self.tenant}"

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def with_markers(self, markers: Iterable[tuple[int, Marker]], end: int) -> Fold:
        """This fold and what these markers, at these offsets, add."""
        added = list(markers)
        return replace(
            self,
            end=end,
            files=(*self.files, *(delta for _, marker in added for delta in marker.delta)),
            batches={**self.batches, **{marker.batch_id: offset for offset, marker in added}},
            revised=self.revised + sum(marker.revised for _, marker in added),
            fresh={**self.fresh, **{marker.batch_id: marker for _, marker in added}},
        )


@contextmanager
def workspace() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of bounded memory, whose temporary files go away with it."""
    with tempfile.TemporaryDirectory(prefix="marketdata-") as folder, connect() as connection:
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        connection.execute(f"SET temp_directory = '{folder}'")
        connection.execute("SET preserve_insertion_order = false")
        yield connection


NEWEST = "max({'as_of': deltas.as_of, 'content_hash': deltas.content_hash})"
"""SQL: the fold of a group of rows of ``deltas``."""


@contextmanager
def deltas_in(connection: duckdb.DuckDBPyConnection, lake: Lake, files: Iterable[Delta]) -> Iterator[None]:
    """Let one query of the connection read ``deltas``: the rows of all files, streamed, in no particular order.

    Raises:
        BadDataError: a delta is missing from the lake, or is not what its marker says.
    """
    import duckdb
    import pyarrow as pa

    failures: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for file in files:
                yield from read_delta(lake, file).to_batches()
        except Exception as error:
            failures.append(error)  # DuckDB reports it as an error of its own kind
            raise

    connection.register("deltas", pa.RecordBatchReader.from_batches(delta_schema(), batches()))
    try:
        yield
    except duckdb.Error:
        if failures:
            raise failures[0] from None
        raise
    finally:
        connection.unregister("deltas")


def delta_schema() -> pa.Schema:
    """Arrow schema of deltas: SHA-256 as 32 bytes, microseconds since 1970 (UTC)."""
    import pyarrow as pa

    fields: list[pa.Field[Any]] = [
        pa.field("record_id", pa.binary(32), nullable=False),
        pa.field("content_hash", pa.binary(32), nullable=False),
        pa.field("as_of", pa.int64(), nullable=False),
    ]
    return pa.schema(fields)


def delta_rows(rows: pa.Table) -> pa.Table:
    """Rows of a batch as rows of a delta.

    Raises:
        BadDataError: a record id or content hash is not a SHA-256 in hexadecimal.
    """
    import pyarrow as pa

    ids, hashes = (_unhex(rows[name].combine_chunks()) for name in ("record_id", "content_hash"))
    as_of = rows["as_of"].combine_chunks().cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    return pa.Table.from_arrays([ids, hashes, as_of], schema=delta_schema())


def write_delta(lake: Lake, folder: str, rows: pa.Table) -> Delta:
    """Put a delta into the lake; an object of the same content is left as it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    # Hashes neither compress nor repeat.
    pq.write_table(rows, sink, compression={"as_of": "zstd"}, use_dictionary=False, row_group_size=ROWS_PER_PART)
    content = memoryview(sink.getvalue()).cast("B")
    digest = hashlib.sha256(content).hexdigest()
    delta = Delta(f"{folder}/{digest}.parquet", digest, len(rows))
    lake.put(delta.path, content)
    return delta


def read_delta(lake: Lake, delta: Delta) -> pa.Table:
    """
    Raises:
        BadDataError: it is missing, or is not what its marker says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = lake.get(delta.path)
    if content is None or hashlib.sha256(content).hexdigest() != delta.sha256:
        wrong = "is missing" if content is None else "is not the object its marker names (SHA-256 differs)"
        raise BadDataError(
            f"{lake.uri}/{delta.path} {wrong}; without it nobody knows what has been published, and nothing was",
            "restore the object from the store's backup or versions",
        )
    return pq.ParquetFile(pa.BufferReader(content)).read()


def _unhex(texts: pa.Array[Any]) -> pa.Array[Any]:
    """SHA-256 as text → 32 bytes, without a Python object per value."""
    import binascii

    import numpy as np
    import pyarrow as pa

    if not len(texts):
        return pa.array([], pa.binary(32))
    _, offsets_buffer, data = texts.cast(pa.string()).buffers()
    offsets = np.frombuffer(memoryview(offsets_buffer or b""), np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if texts.null_count or not (np.diff(offsets) == 64).all():
        raise BadDataError("a record id or content hash of the batch is not a SHA-256", "transform the batch again")
    try:
        content = binascii.unhexlify(memoryview(data or b"")[offsets[0] : offsets[-1]])
    except binascii.Error as error:
        raise BadDataError(
            f"a record id or content hash of the batch is not hexadecimal: {error}", "transform the batch again"
        ) from error
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(texts), [None, pa.py_buffer(content)])
