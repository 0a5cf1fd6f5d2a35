"""Readers of files: each yields tables with the columns a layout names, chunk by chunk, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from marketdata.errors import UsageError
from marketdata.sources.formats import columnar, delimited, jsontext, spreadsheet
from marketdata.sources.mapping import Layout

if TYPE_CHECKING:
    import pyarrow as pa

_READERS = {
    ".csv": delimited.read,
    ".tsv": delimited.read,
    ".json": jsontext.read_document,
    ".ndjson": jsontext.read_lines,
    ".jsonl": jsontext.read_lines,
    ".parquet": columnar.read,
    ".xlsx": spreadsheet.read,
}
_GZIPPED = (".csv", ".tsv", ".json", ".ndjson", ".jsonl")


def read(path: Path, origin: str, layout: Layout) -> Iterator[pa.Table]:
    """The rows of a file, in order; the columns are those of `layout`, in its order.

    Args:
        path: the file; its extension says the format.
        origin: its name in errors.
        layout: how it is laid out.

    Raises:
        UsageError: no reader knows the extension.
        BadDataError: the file cannot be read; the message says where.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = suffixes[-1] if suffixes else ""
    if suffix == ".gz" and len(suffixes) > 1 and suffixes[-2] in _GZIPPED:
        suffix = suffixes[-2]
    if suffix not in _READERS:
        known = ", ".join(suffix.removeprefix(".") for suffix in _READERS)
        raise UsageError(
            f"{origin}: its format is not known by its extension; nothing of it was read", f"formats: {known}"
        )
    return _READERS[suffix](path, origin, layout)
