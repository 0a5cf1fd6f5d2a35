"""The mapping of a folder's files: what their columns mean, read from YAML and checked against a JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from marketdata.batches import content_id
from marketdata.datasets.conform import connect
from marketdata.errors import UsageError

MAX_BYTES = 256 * 1024
PACKAGED = resources.files("marketdata.sources") / "mappings"
CONSTANTS = ("commodity", "series", "frequency", "currency", "unit", "source")
"""Columns that a mapping gives as a constant or names a column for."""


@dataclass(frozen=True)
class From:
    """A value that stands in a column of the file."""

    column: str


Value = str | From


@dataclass(frozen=True)
class Layout:
    """How a file is laid out; `columns` are those that are read, the first one being the date."""

    columns: tuple[str, ...]
    sheet: str | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    skip_rows: int = 0
    skip_rows_after_names: int = 0


@dataclass(frozen=True)
class Prices:
    """One column of prices, and the other raw columns that go with it."""

    column: str
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Entry:
    """What the files of one glob hold.

    Args:
        files: glob below the folder.
        layout: how they are laid out.
        prices: their columns of prices.
        date_format: as in strptime; None: ISO 8601.
        as_of: vintage; None: the time of the extraction.
        missing: texts in a column of prices that mean "no observation".
    """

    files: str
    layout: Layout
    prices: tuple[Prices, ...]
    date_format: str | None = None
    as_of: str | None = None
    missing: frozenset[str] = field(default_factory=frozenset)

    @property
    def date_column(self) -> str:
        return self.layout.columns[0]


@dataclass(frozen=True)
class FileMapping:
    """Every entry of a mapping file, and the hash of its content."""

    name: str
    digest: str
    entries: tuple[Entry, ...]


def load(file: Traversable) -> FileMapping:
    """The mapping in `file`.

    Raises:
        UsageError: it cannot be read, is not YAML or not a mapping; the message names the entry and the key.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read the mapping {file}: {error.strerror}", "check MARKETDATA_FILES_MAPPING"
        ) from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"the mapping {file.name} is larger than {MAX_BYTES // 1024} KiB", "split the folder")
    document = _parse(file.name, content)
    _validate(file.name, document)
    entries = tuple(_entry(file.name, position, said) for position, said in enumerate(document["entries"]))
    return FileMapping(file.name, content_id(document), entries)


def _parse(name: str, content: bytes) -> Any:
    import yaml

    try:
        return yaml.load(content, Loader=_loader())  # noqa: S506 - a loader of texts, lists and mappings only
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or type(error).__name__
        raise UsageError(f"the mapping {name} is not valid YAML{where}: {what}", "correct the mapping") from error


@cache
def _loader() -> type[Any]:
    import yaml

    class TextLoader(yaml.BaseLoader):
        """YAML whose scalars stay text (a date, a dot, a NA are what stands there), without aliases and double keys."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.get_mark())
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem="a key is no text or is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    return TextLoader


def _validate(name: str, document: Any) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = json.loads((PACKAGED / "schema.json").read_bytes())
    error = best_match(Draft202012Validator(schema).iter_errors(document))
    if error is None:
        return
    if error.validator == "oneOf":
        what = "says neither price nor prices, or both"
    else:
        what = error.message if len(error.message) < 200 else f"{error.message[:200]}…"
    raise UsageError(
        f"the mapping {name} is not valid: {_path(document, error.absolute_path)}{what}", "correct the mapping"
    )


def _path(document: Any, path: Any) -> str:
    """The place of an error for people: ``entries[3] (eia/*.csv).date.format: ``."""
    text = ""
    at = document
    for part in path:
        at = at[part]
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
        if isinstance(part, int) and isinstance(at, dict) and isinstance(at.get("files"), str):
            text += f" ({at['files']})"
    return f"{text}: " if text else ""


def _entry(name: str, position: int, said: Mapping[str, Any]) -> Entry:
    where = f"the mapping {name} is not valid: entries[{position}] ({said['files']})"
    parts = said["files"].replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in parts[0]:
        raise UsageError(f"{where}.files leaves the folder", "name files below the folder")
    prices = tuple(
        Prices(column, _values({**said, **own}, f"{where}.prices.{column}"))
        for column, own in said.get("prices", {}).items()
    ) or (Prices(said["price"], _values(said, where)),)
    columns = [said["date"]["column"]]
    for price in prices:
        columns += [price.column, *(value.column for value in price.values.values() if isinstance(value, From))]
    date_format = said["date"].get("format")
    _check_format(date_format, where)
    encoding = said.get("encoding", "utf-8")
    try:
        "a".encode(encoding)
    except LookupError as error:
        raise UsageError(
            f"{where}.encoding: {encoding!r} is not known as an encoding of text", "name an encoding as Python does"
        ) from error
    return Entry(
        files=said["files"],
        layout=Layout(
            columns=tuple(dict.fromkeys(columns)),
            sheet=said.get("sheet"),
            encoding=encoding,
            delimiter=said.get("delimiter"),
            skip_rows=int(said.get("skip_rows", 0)),
            skip_rows_after_names=int(said.get("skip_rows_after_names", 0)),
        ),
        prices=prices,
        date_format=date_format,
        as_of=said.get("as_of"),
        # In a wide file an empty cell is a series without an observation that day; in a long one it is a defect.
        missing=frozenset(said.get("missing", ())) | ({""} if "prices" in said else frozenset()),
    )


def _values(said: Mapping[str, Any], where: str) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for column in CONSTANTS:
        if column not in said:
            raise UsageError(f"{where} does not say the {column}", f"add {column}: a constant, or {{column: name}}")
        value = said[column]
        values[column] = value if isinstance(value, str) else From(value["column"])
    if "volume" in said:
        values["volume"] = From(said["volume"])
    return values


def _check_format(date_format: str | None, where: str) -> None:
    import duckdb

    try:
        with connect() as connection:
            connection.execute("SELECT try_strptime('', ?)", [date_format]).fetchall()
    except duckdb.Error as error:
        raise UsageError(
            f"{where}.date.format: {date_format!r} is not a format of strptime", "example: %Y-%m-%d"
        ) from error
