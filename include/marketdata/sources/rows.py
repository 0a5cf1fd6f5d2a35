"""From the columns of a file or an answer to the dataset's raw schema: one DuckDB statement per chunk, all text."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from marketdata.batches import Interval
from marketdata.datasets import Dataset
from marketdata.datasets.conform import connect
from marketdata.errors import BadDataError
from marketdata.sources.mapping import Entry, From, Prices, Value

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

MAX_TEXT = 32_768
"""Bytes of one value: what a cell of a workbook holds at most. It is repeated in reasons, reports and tables."""

_EARLIEST = "TIMESTAMP '1000-01-01 00:00:00'"
"""DuckDB reads %Y from two digits as well: 10/05/22 is not a day of the year 22 but a text nobody can read."""


def to_raw(
    chunks: Iterable[pa.Table], dataset: Dataset, entry: Entry, origin: str, interval: Interval, as_of: str
) -> Iterator[pa.Table]:
    """The rows of `interval` in the dataset's raw schema.

    Raises:
        BadDataError: a row cannot be read, or holds a text of more than `MAX_TEXT` bytes.

    Args:
        chunks: tables with the columns of the entry's layout, in its order, in the order of the source's rows.
        dataset: whose raw schema.
        entry: what the columns mean.
        origin: file or address the rows come from.
        interval: days; a row is in it if its date is, or cannot be read.
        as_of: when the source said it.
    """
    import duckdb
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = dataset.raw_schema()
    statement = _statement(dataset, entry, origin, interval, as_of)
    names = [f"c{position}" for position in range(len(entry.layout.columns))]
    read = taken = missing = 0
    with connect() as connection:
        for chunk in chunks:
            _check_texts(chunk, origin, read)
            # Not pa.array: given a Python object, that imports pandas.
            numbers = pa.arange(read + 1, read + 1 + len(chunk))  # type: ignore[attr-defined]  # the stubs lag behind
            connection.register("chunk", chunk.rename_columns(names).append_column("origin_row", numbers))
            try:
                rows = connection.sql(statement).to_arrow_table()
            except duckdb.Error as error:
                first = str(error).splitlines()[0]
                raise BadDataError(
                    f"{origin}: rows {read + 1} to {read + len(chunk)} cannot be read as text: {first}"
                ) from error
            observed = rows if pc.all(rows["observed"]).as_py() else rows.filter(rows["observed"])
            observed = observed.select(schema.names).cast(schema)
            read += len(chunk)
            taken += len(observed)
            missing += len(rows) - len(observed)
            if len(observed):
                yield observed
    outside = read * len(entry.prices) - taken - missing
    _log.info(
        "%s: %d rows in %s, %d days without observation, %d rows outside", origin, taken, interval, missing, outside
    )


def _check_texts(chunk: pa.Table, origin: str, rows_before: int) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in zip(chunk.column_names, chunk.columns, strict=True):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)):
            continue
        lengths = pc.binary_length(column.cast(kind))  # type: ignore[arg-type]  # the stubs don't see the check above
        longest = pc.max(lengths).as_py() or 0
        if longest > MAX_TEXT:
            row = rows_before + 1 + pc.index(lengths, longest).as_py()
            raise BadDataError(
                f"{origin}: data row {row}: {name!r} holds {longest} bytes, more than {MAX_TEXT}; nothing of this "
                "extraction was kept",
                "correct the file or the mapping",
            )


def _statement(dataset: Dataset, entry: Entry, origin: str, interval: Interval, as_of: str) -> str:
    columns = {name: f"CAST(c{position} AS VARCHAR)" for position, name in enumerate(entry.layout.columns)}
    said = columns[entry.date_column]
    if entry.date_format is None:
        matched = "CAST(NULL AS TIMESTAMP)"
        text = said
    else:
        # Session time zone is UTC: a format with an offset and one without both give UTC.
        matched = f"CAST(try_strptime(told, {_quote(entry.date_format)}) AS TIMESTAMP)"
        has_time = any(directive in entry.date_format for directive in ("%H", "%I", "%c", "%X", "%f"))
        iso = "strftime(matched, '%Y-%m-%dT%H:%M:%S.%fZ')" if has_time else "CAST(CAST(matched AS DATE) AS VARCHAR)"
        text = f"CASE WHEN matched >= {_EARLIEST} THEN {iso} ELSE {said} END"
    day = f"""CASE WHEN matched >= {_EARLIEST} THEN matched
        ELSE CAST(TRY_CAST(told AS TIMESTAMPTZ) AS TIMESTAMP) END"""
    selects = " UNION ALL ".join(_select(dataset, entry, prices, columns, origin, as_of) for prices in entry.prices)
    # Without a digit it is no date, though DuckDB takes `epoch` and `infinity` for one.
    # The texts of the mapping are quoted, columns go by position.
    return f"""
        WITH said AS (SELECT *, CASE WHEN regexp_matches({said}, '[0-9]') THEN trim({said}) END AS told FROM chunk),
        parsed AS (SELECT *, {matched} AS matched FROM said),
        dated AS (SELECT *, {day} AS day, {text} AS event_time FROM parsed),
        inside AS (
            SELECT * FROM dated WHERE day IS NULL OR NOT isfinite(day) OR day < {_EARLIEST}
            OR (day >= TIMESTAMP '{interval.start} 00:00:00' AND day < TIMESTAMP '{interval.end} 00:00:00')
        )
        {selects}"""  # noqa: S608


def _select(dataset: Dataset, entry: Entry, prices: Prices, columns: dict[str, str], origin: str, as_of: str) -> str:
    price = columns[prices.column]
    values: dict[str, Value] = {**prices.values, "price": From(prices.column), "as_of": as_of}
    expressions = {dataset.event_time: "event_time"}
    for name, value in values.items():
        expressions[name] = columns[value.column] if isinstance(value, From) else _quote(value)
    missing = ", ".join(_quote(marker) for marker in sorted(entry.missing))
    observed = f"trim(coalesce({price}, '')) NOT IN ({missing})" if missing else "true"
    select = ", ".join(f"{expressions.get(column.name, 'NULL')} AS {column.name}" for column in dataset.raw_columns)
    return f"SELECT {select}, {_quote(origin)} AS origin, origin_row, {observed} AS observed FROM inside"  # noqa: S608


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
