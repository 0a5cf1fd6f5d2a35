"""JSON documents and JSON lines, decoded strictly; numbers keep the text they were written in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any

from marketdata.errors import BadDataError
from marketdata.sources.formats.stream import opened, refused
from marketdata.sources.mapping import Layout

if TYPE_CHECKING:
    import pyarrow as pa

MAX_DOCUMENT = 64 * 2**20
"""Bytes of a document, which has to be held at once; JSON lines have no such limit."""

MAX_VALUES = 6_000_000
"""Values in a document or a line: each becomes an object of fifty bytes and more, however short it was written."""

_BLOCK = 4 * 2**20
_MAX_LINE = 4 * _BLOCK
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Answer:
    """A decoded document: the asked columns of its records as text (None: absent or null).

    Args:
        columns: one list per column, in the order asked.
        says_next: the document says whether there is more; a bare list does not.
        next: address of the rest, None at the end.
    """

    columns: list[list[str | None]]
    says_next: bool = False
    next: str | None = None

    def __len__(self) -> int:
        return len(self.columns[0])


def decode(content: bytes, columns: Sequence[str], origin: str) -> Answer:
    """A list of records, or an object that has the list in ``data`` and may name the rest in ``next``.

    Raises:
        BadDataError: it is not JSON (with the offset), or JSON of another shape (with the path).
    """
    import msgspec

    records: Any = GenericAlias(list, (_record(tuple(columns)),))
    envelope: Any = msgspec.defstruct(
        "Document", [("data", records), ("next", str | msgspec.UnsetType | None, msgspec.UNSET)]
    )
    content = content.removeprefix(_BOM)
    _check_values(content, origin)
    try:
        document: Any = msgspec.json.Decoder(records | envelope, float_hook=str).decode(content)
    except (ValueError, RecursionError) as error:
        raise refused(origin, _what(error)) from error
    if isinstance(document, list):
        return Answer(_columns(document, columns))
    if document.next is msgspec.UNSET:
        return Answer(_columns(document.data, columns))
    return Answer(_columns(document.data, columns), says_next=True, next=document.next)


def read_document(path: Path, origin: str, layout: Layout) -> Iterator[pa.Table]:
    """The records of a JSON file."""
    with closing(opened(path, origin)) as stream:
        content = stream.read(MAX_DOCUMENT + 1)
    if len(content) > MAX_DOCUMENT:
        raise refused(
            origin, f"is a JSON document of more than {MAX_DOCUMENT // 2**20} MiB", "write it as JSON lines (.ndjson)"
        )
    answer = decode(content, layout.columns, origin)
    yield _table(answer.columns, layout, origin)


def read_lines(path: Path, origin: str, layout: Layout) -> Iterator[pa.Table]:
    """The records of a file of JSON lines; blank lines are not rows."""
    import msgspec

    decoder = msgspec.json.Decoder(_record(layout.columns), float_hook=str)
    row = offset = 0
    for lines in _blocks_of_lines(path, origin):
        _check_values(lines, origin)
        try:
            records = decoder.decode_lines(lines)
        except (ValueError, RecursionError) as error:
            raise _defect(decoder, lines, row, offset, origin) or refused(origin, _what(error)) from error
        if records:
            yield _table(_columns(records, layout.columns), layout, origin)
        row += len(records)
        offset += len(lines)


def _blocks_of_lines(path: Path, origin: str) -> Iterator[bytes]:
    with closing(opened(path, origin)) as stream:
        rest = stream.read(len(_BOM)).removeprefix(_BOM)
        while block := stream.read(_BLOCK):
            whole, newline, after = block.rpartition(b"\n")
            if newline:
                yield rest + whole + newline
                rest = after
            else:
                rest += block
            if len(rest) > _MAX_LINE:
                raise refused(origin, f"has a line of more than {_MAX_LINE // 2**20} MiB", "one record a line")
        if rest:
            yield rest


def _defect(decoder: Any, lines: bytes, row: int, offset: int, origin: str) -> BadDataError | None:
    """Where a block that was refused is at fault."""
    for line in lines.splitlines(keepends=True):
        if line.strip():
            row += 1
            try:
                decoder.decode(line)
            except (ValueError, RecursionError) as error:
                return refused(origin, f"data row {row} (its line begins at byte {offset}): {_what(error)}")
        offset += len(line)
    return None


def _check_values(content: bytes, origin: str) -> None:
    """Every value but a container's first stands behind a comma."""
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise refused(origin, f"has more than {MAX_VALUES} values at once", "write it as JSON lines (.ndjson)")


@cache
def _record(columns: tuple[str, ...]) -> Any:
    import msgspec

    fields = [(f"c{position}", Any, None) for position in range(len(columns))]
    names = {f"c{position}": column for position, column in enumerate(columns)}
    return msgspec.defstruct("Record", fields, rename=names, gc=False)


def _columns(records: list[Any], columns: Sequence[str]) -> list[list[str | None]]:
    from operator import attrgetter

    return [
        [value if type(value) is str else _text(value) for value in map(attrgetter(f"c{position}"), records)]
        for position in range(len(columns))
    ]


def _text(value: Any) -> str | None:
    import msgspec

    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def _table(columns: list[list[str | None]], layout: Layout, origin: str) -> pa.Table:
    import pyarrow as pa

    if columns[0] and all(value is None for value in columns[0]):
        raise refused(origin, f"no record has a {layout.columns[0]!r}", "correct the mapping or the file")
    try:
        return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], names=list(layout.columns))
    except UnicodeEncodeError as error:
        raise refused(origin, "holds a text that is not Unicode (a lone surrogate)") from error


def _what(error: Exception) -> str:
    import msgspec

    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} of a text is not UTF-8"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return f"is JSON of another shape: {error}"
    return str(error)
