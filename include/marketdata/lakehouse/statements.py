"""SQL text: the only places where a name or a constant becomes part of a statement. Data never does."""

from __future__ import annotations

import re
from collections.abc import Sequence

from marketdata.errors import UsageError

_PIECES = re.compile(r"""(?P<kept>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<comment>--[^\n]*|/\*.*?\*/)""", re.DOTALL)
_READING = re.compile(r"\s*(select|with|show|describe)\b", re.IGNORECASE)
ONE_READING_STATEMENT = "a query is one SELECT, WITH, SHOW or DESCRIBE statement; nothing was run"


def identifier(*names: str) -> str:
    """A quoted, dotted name."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def text(value: str) -> str:
    """A text constant, where the grammar takes no parameter (locations, comments, properties)."""
    return "'" + value.replace("'", "''") + "'"


def reading_only(sql: str) -> str:
    """The statement without the semicolon at its end.

    Raises:
        UsageError: it is not exactly one reading statement.
    """
    bare = _PIECES.sub(lambda piece: "''" if piece["kept"] else " ", sql).strip()
    if not _READING.match(bare) or ";" in bare.removesuffix(";"):
        raise UsageError(ONE_READING_STATEMENT)
    return sql.rstrip().removesuffix(";") if bare.endswith(";") else sql


def tables_there(names: Sequence[str]) -> str:
    """A remedy that lists the tables."""
    return f"tables: {', '.join(names)}" if names else "there is no table yet: load a batch first"


def first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
