"""From what the source said to typed, normalised columns: one DuckDB projection, used by the gate and by `transform`.

A text that is not of its column's type becomes NULL here; the gate says so and quarantines the row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from marketdata.datasets.dataset import DATE, TEXT, TIMESTAMP, Column, Dataset

if TYPE_CHECKING:
    import duckdb

_THOUSANDS = r"^[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?$"
_MACROS = f"""
CREATE OR REPLACE TEMP MACRO number(said) AS
    CASE WHEN regexp_matches(said, '{_THOUSANDS}') THEN replace(said, ',', '') ELSE said END
"""


def connect() -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that counts in UTC and knows the macros of the projections."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(_MACROS)
    return connection


def projection(dataset: Dataset, prefix: str = "") -> str:
    """SELECT list of the dataset's raw columns, typed and normalised; their names are kept."""
    return ",\n".join(f"{_typed(dataset, column, prefix)} AS {column.name}" for column in dataset.raw_columns)


def given(column: str) -> str:
    """SQL: 1.0 where the source said anything at all, else NULL."""
    return f"CASE WHEN nullif(trim({column}), '') IS NOT NULL THEN 1.0::DOUBLE END"


def canonical(column: Column) -> str:
    """SQL: the column's value as the text that enters the content hash; never NULL."""
    if column.type == TIMESTAMP:
        text = f"strftime({column.name}, '%Y-%m-%dT%H:%M:%S.%fZ')"
    else:
        text = f"CAST({column.name} AS VARCHAR)"
    return f"coalesce({text}, '')"


def digest(*texts: str) -> str:
    """SQL: SHA-256 (hexadecimal) of texts that cannot run into each other."""
    return f"sha256(concat_ws(chr(31), {', '.join(texts)}))"


def _typed(dataset: Dataset, column: Column, prefix: str) -> str:
    said = f"nullif(trim({prefix}{column.name}), '')"
    if column.type == TEXT:
        aliases = dataset.aliases.get(column.name)
        if not aliases:
            return said
        cases = " ".join(f"WHEN {_quote(alias)} THEN {_quote(value)}" for alias, value in aliases.items())
        return f"CASE lower({said}) {cases} ELSE {said} END"
    value = column.parse.format(said) if column.parse else f"number({said})"
    if column.decimal():
        return f"TRY_CAST({value} AS {column.type.upper()})"
    if column.type == TIMESTAMP:
        # DuckDB also takes "epoch", "infinity" and the year 22 for a moment.
        return f"CASE WHEN {said}[1] IN ('1', '2') AND {said}[5] = '-' THEN TRY_CAST({said} AS TIMESTAMPTZ) END"
    return f"TRY_CAST({said} AS {'DATE' if column.type == DATE else 'INTEGER'})"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
