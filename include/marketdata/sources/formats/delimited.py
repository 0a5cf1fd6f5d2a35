"""CSV and TSV, streamed by Arrow's reader. What it lets pass in silence (an open quote, two equal names) is refused."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from marketdata.errors import BadDataError
from marketdata.sources.formats.stream import Text, refused
from marketdata.sources.mapping import Layout

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 2 * 2**20
_HEADER = 2**20
"""Bytes the rows up to the names may take."""


def read(path: Path, origin: str, layout: Layout) -> Iterator[pa.Table]:
    """The rows of a CSV or TSV file; blank lines are not rows."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    delimiter = layout.delimiter or ("\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ",")
    check_names(_names(path, origin, layout, delimiter), origin, layout)
    text = Text(path, origin, layout.encoding)
    with closing(io.BufferedReader(text, _BLOCK)) as stream:
        try:
            reader = arrow_csv.open_csv(
                stream,
                read_options=arrow_csv.ReadOptions(
                    block_size=_BLOCK, skip_rows=layout.skip_rows, skip_rows_after_names=layout.skip_rows_after_names
                ),
                parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=list(layout.columns),
                    column_types=dict.fromkeys(layout.columns, pa.string()),
                    strings_can_be_null=False,
                    check_utf8=False,  # the stream has checked it
                ),
            )
            for batch in reader:
                yield pa.Table.from_batches([batch])
        except pa.ArrowInvalid as error:
            raise _defect(path, origin, layout, delimiter) or refused(
                origin, str(error).splitlines()[0][:200]
            ) from error
        # Arrow takes all that follows an open quote for one value: those rows would be lost without a word.
        if text.quotes % 2 and (defect := _defect(path, origin, layout, delimiter)):
            raise defect


def check_names(names: list[str], origin: str, layout: Layout) -> None:
    """Each column of the layout is there, once.

    Raises:
        BadDataError: it is not.
    """
    for column in layout.columns:
        if names.count(column) != 1:
            there = ", ".join(repr(name) for name in names[:20]) + (", …" if len(names) > 20 else "")
            what = "is missing" if column not in names else "is there more than once"
            raise refused(origin, f"column {column!r} {what} (columns: {there})", "correct the mapping or the file")


def _names(path: Path, origin: str, layout: Layout, delimiter: str) -> list[str]:
    with closing(io.BufferedReader(Text(path, origin, layout.encoding), _HEADER)) as stream:
        start = stream.read(_HEADER).decode(errors="ignore")
    try:
        rows = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter)
        names = next((row for row in islice(rows, layout.skip_rows, None) if row), None)
    except csv.Error as error:
        raise refused(origin, f"the row of names cannot be read: {error}") from error
    if names is None:
        raise refused(origin, "is empty: it has no row of names")
    return names


def _defect(path: Path, origin: str, layout: Layout, delimiter: str) -> BadDataError | None:
    """Where a file that was refused is at fault: read again, row by row, because Arrow does not say."""
    with closing(io.BufferedReader(Text(path, origin, layout.encoding))) as stream:
        rows = csv.reader(io.TextIOWrapper(stream, "utf-8", newline=""), delimiter=delimiter, strict=True)
        try:
            for _ in range(layout.skip_rows):
                next(rows)
            names = next(row for row in rows if row)
            for number, row in enumerate((row for row in rows if row), start=1 - layout.skip_rows_after_names):
                if len(row) != len(names):
                    return refused(
                        origin, f"data row {number} (line {rows.line_num}) has {len(row)} values, not {len(names)}"
                    )
        except csv.Error as error:
            return refused(origin, f"line {rows.line_num}: {error}", "is a quote left open?")
    return None
