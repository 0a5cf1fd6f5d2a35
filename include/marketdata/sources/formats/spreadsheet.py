"""XLSX. The archive is measured and checked before a byte reaches the reader, which holds the whole sheet in memory."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from datetime import date, datetime
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marketdata.sources.formats.delimited import check_names
from marketdata.sources.formats.stream import refused
from marketdata.sources.mapping import Layout

if TYPE_CHECKING:
    import pyarrow as pa

MAX_XML = 512 * 2**20
MAX_MEMBERS = 10_000
MAX_CELLS = 8_000_000
"""Cells of the rectangle from A1 to the last one used: the reader allocates them all, and aborts where it cannot."""

MAX_TAGS = 24_000_000
"""Of the whole archive: a filled cell has four of them, and the reader keeps something of each."""

_BATCH = 65_536
_BLOCK = 2**20
_POSITION = re.compile(rb"""\sr\s*=\s*["']([A-Z]{0,3})([0-9]{1,7})["']""")
_UNPLACED = re.compile(rb"<(?:[\w.-]+:)?(?:(row)(?=[\s/>])([^>]*\sr\s*=)?|c(?=[\s/>])(?![^>]*\sr\s*=))")
"""Rows, and cells that don't say where they are: those stand behind the one before."""


def read(path: Path, origin: str, layout: Layout) -> Iterator[pa.Table]:
    """The rows of one sheet; empty rows are not rows. Numbers are their shortest exact text, dates ISO 8601."""
    import pyarrow as pa
    from python_calamine import CalamineError, CalamineWorkbook

    _check_archive(path, origin)
    try:
        workbook = CalamineWorkbook.from_path(path)
        if not workbook.sheet_names:
            raise refused(origin, "has no sheet")
        sheet = layout.sheet or workbook.sheet_names[0]
        if sheet not in workbook.sheet_names:
            raise refused(
                origin, f"has no sheet {sheet!r} (sheets: {', '.join(workbook.sheet_names)})", "correct the mapping"
            )
        rows = workbook.get_sheet_by_name(sheet).iter_rows()
    except (CalamineError, OSError) as error:
        raise refused(origin, f"is not a sound XLSX file: {str(error)[:200]}") from error
    names = next(([_text(cell) or "" for cell in row] for row in islice(rows, layout.skip_rows, None)), None)
    if names is None:
        raise refused(origin, f"sheet {sheet!r} has no row of names")
    check_names(names, origin, layout)
    positions = [names.index(column) for column in layout.columns]
    filled = (row for row in islice(rows, layout.skip_rows_after_names, None) if any(cell != "" for cell in row))
    while batch := list(islice(filled, _BATCH)):
        columns = [pa.array([_text(row[position]) for row in batch], pa.string()) for position in positions]
        yield pa.Table.from_arrays(columns, names=list(layout.columns))


def _check_archive(path: Path, origin: str) -> None:
    """Reads every member once: the sizes and checksums are true, and the sheets' rectangles fit in memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_XML:
                raise refused(origin, f"decompresses to more than {MAX_XML // 2**20} MiB or {MAX_MEMBERS} members")
            if sum(_check_member(archive, member, origin) for member in members) > MAX_TAGS:
                raise refused(origin, f"holds more than {MAX_TAGS} elements", "split it")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as error:
        raise refused(origin, f"is not a sound XLSX file: {str(error)[:200]}") from error


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, origin: str) -> int:
    """The number of its tags."""
    placed_height = placed_width = tags = rows = cells = most_cells = 0
    with archive.open(member) as stream:
        rest = b""
        for block in chain(iter(lambda: stream.read(_BLOCK), b""), (b"<",)):
            # What follows the last bracket waits for its end, unless that is more than a block away.
            whole, bracket, rest = (rest + block).rpartition(b"<")
            whole, rest = (whole, bracket + rest) if len(rest) < _BLOCK else (whole + bracket + rest, rest[-64:])
            tags += whole.count(b"<")
            for match in _POSITION.finditer(whole):
                placed_height = max(placed_height, int(match[2]))
                placed_width = max(placed_width, _column_number(match[1]))
            for match in _UNPLACED.finditer(whole):
                cells = 0 if match[1] else cells + 1
                rows += bool(match[1] and not match[2])
                most_cells = max(most_cells, cells)
            height, width = placed_height + rows, placed_width + most_cells
            if height * width > MAX_CELLS:
                raise refused(
                    origin,
                    f"{member.filename} spans {height} rows and {width} columns, more than {MAX_CELLS} cells",
                    "delete what stands far outside of the table",
                )
            if tags > MAX_TAGS:
                break
    return tags


def _column_number(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - 64
    return number


def _text(cell: Any) -> str | None:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        return repr(cell).removesuffix(".0")
    if isinstance(cell, datetime | date):
        return cell.isoformat()
    return None if cell is None else str(cell)
