"""Parquet, in batches; typed values become their shortest exact text later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from marketdata.sources.formats.delimited import check_names
from marketdata.sources.formats.stream import refused
from marketdata.sources.mapping import Layout

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_ROWS = 100_000_000
MAX_CHUNK = 512 * 2**20
"""Rows a file, and bytes once decoded a column of a row group may claim: a few kilobytes can claim billions."""

MAX_BATCH = 256 * 2**20
"""Bytes of text in a batch of rows: a value that the file holds once may stand in every row."""

_BATCH = 65_536


def read(path: Path, origin: str, layout: Layout) -> Iterator[pa.Table]:
    """The rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            check_names(file.schema_arrow.names, origin, layout)
            _check_types(file.schema_arrow, origin, layout)
            _check_claims(file.metadata, origin)
            metadata = file.metadata
        # Texts are left as the file repeats them until it is known how long they are together.
        with pq.ParquetFile(
            path, metadata=metadata, buffer_size=2**20, pre_buffer=False, read_dictionary=list(layout.columns)
        ) as file:
            for batch in file.iter_batches(batch_size=_BATCH, columns=list(layout.columns)):
                _check_texts(batch, origin)
                yield pa.Table.from_batches([batch]).select(list(layout.columns))
    except (pa.ArrowException, OSError) as error:
        raise refused(origin, f"is not a sound Parquet file: {str(error).splitlines()[0][:200]}") from error


def _check_types(schema: pa.Schema, origin: str, layout: Layout) -> None:
    """A column holds one value a row, of a size that follows from its type, or text."""
    import pyarrow as pa

    for column in layout.columns:
        kind = schema.field(column).type
        if pa.types.is_nested(kind) or pa.types.is_fixed_size_binary(kind):
            raise refused(origin, f"column {column!r} is of type {str(kind)[:100]}", "write it as text or as a number")


def _check_texts(batch: pa.RecordBatch, origin: str) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    size = 0
    for column in batch.columns:
        if isinstance(column, pa.DictionaryArray):
            lengths = pc.binary_length(column.dictionary)  # type: ignore[call-overload]  # the stubs want its type
            size += pc.sum(pc.take(lengths, column.indices)).as_py() or 0
    if size > MAX_BATCH:
        raise refused(origin, f"holds {size} bytes of text in {len(batch)} rows", "is a text repeated in every row?")


def _check_claims(metadata: pq.FileMetaData, origin: str) -> None:
    groups = (metadata.row_group(position) for position in range(metadata.num_row_groups))
    chunk = max(
        (group.column(at).total_uncompressed_size for group in groups for at in range(group.num_columns)), default=0
    )
    if metadata.num_rows > MAX_ROWS or chunk > MAX_CHUNK:
        what = f"claims {metadata.num_rows} rows, and up to {chunk} bytes in a column of a row group"
        raise refused(origin, f"{what}: more than is read", "split it")
