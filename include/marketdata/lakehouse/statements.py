"""SQL text: the only places where a name or a constant becomes part of a statement. Data never does."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from marketdata.errors import UsageError

_PIECES = re.compile(r"""(?P<kept>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<comment>--[^\n]*|/\*.*?\*/)""", re.DOTALL)
_READING = re.compile(r"\s*(select|with|show|describe)\b", re.IGNORECASE)
_BEGINNING = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?P<with>with\b(?:\s+recursive\b)?)?", re.DOTALL | re.IGNORECASE)
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


def mentioned(sql: str, names: Collection[str]) -> list[str]:
    """Those of the tables that the statement may be about."""
    return [name for name in names if re.search(rf"\b{re.escape(name)}\b", sql, re.IGNORECASE)]


def refuse_now(sql: str, at: Collection[str], names: Collection[str]) -> None:
    """Refuse what would show a table as it is now beside tables as they were.

    Args:
        at: tables whose state of then is known.
        names: all tables.

    Raises:
        UsageError: the statement names another table, or one of these in a way that leads to its state of now.
    """
    bare = _PIECES.sub(lambda piece: piece["kept"] if (piece["kept"] or "").startswith('"') else " ", sql)
    if re.match(r"\s*(show|describe)\b", bare, re.IGNORECASE):
        raise UsageError("SHOW and DESCRIBE know no earlier state; nothing was read", "ask without --as-of-run")
    for name in mentioned(bare, names):
        if name not in at:
            raise UsageError(
                f"how table {name} was then is not on record; nothing was read",
                f"tables of that run: {', '.join(sorted(at))}",
            )
        if re.search(rf'\.\s*"?{re.escape(name)}\b|\b{re.escape(name)}\$', bare, re.IGNORECASE):
            raise UsageError(
                f"{name} is to be read as it was, and such a name leads to what it is now; nothing was read",
                f"name the table without catalog and schema: {name}",
            )


def with_tables(sql: str, queries: Mapping[str, str]) -> str:
    """The statement, in which these names of tables mean these queries."""
    beginning = _BEGINNING.match(sql)
    own = beginning["with"] if beginning else None
    named = ", ".join(f"{identifier(name)} AS ({query})" for name, query in queries.items())
    if not named:
        return sql
    if beginning is None or own is None:
        return f"WITH {named} {sql}"
    return f"{own} {named}, {sql[beginning.end() :]}"


def expired(table: str, snapshot: int) -> UsageError:
    return UsageError(
        f"snapshot {snapshot} of table {table} is no longer kept; nothing was read",
        "choose a younger run (marketdata runs list), or ask without --as-of-run; docs/adr/0019 says how long",
    )


def tables_there(names: Sequence[str]) -> str:
    """A remedy that lists the tables."""
    return f"tables: {', '.join(names)}" if names else "there is no table yet: load a batch first"


def first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
