"""From raw text to the frame the row rules look at: NumPy-backed pandas, which is Great Expectations' fast path.

Of each raw column the frame has what the text turned out to be: text columns as categories (normalised, NULL where the
source said nothing); numbers as ``float64`` and times as ``datetime64[ns]``, with a column ``<name>_said`` beside them
that tells ``number`` or ``timestamp`` from ``other`` and ``nothing``. Where the dataset has plausible ranges, `market`
("Gold in troy_oz", NULL unless both are known), `price_min` and `price_max` stand in the frame too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marketdata.datasets import Column, Dataset
from marketdata.datasets.conform import connect, given, projection
from marketdata.datasets.dataset import DATE, TEXT, TIMESTAMP

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

CHUNK_ROWS = 1_000_000
"""Rows that Great Expectations looks at together: its fixed cost is paid once per chunk, its memory too."""

EARLIEST, LATEST = "1678-01-01", "2262-01-01"
"""What nanoseconds can hold; a time beyond is moved to the nearest of these, which no rule lets pass."""

_NOT_A_TIME = -(2**63)
_FNV_PRIME = 0x100000001B3


@dataclass(frozen=True)
class Chunk:
    """Some rows of a batch.

    Args:
        first: number of its first row in the batch, from 0.
        table: the rows as the source said them.
        frame: the rows as the row rules see them; its index counts from 0.
        hashes: per column that is no text, a hash of each row's exact value (a ``float64`` is not exact).
    """

    first: int
    table: pa.Table
    frame: pd.DataFrame
    hashes: Mapping[str, NDArray[np.uint64]]


def chunks(dataset: Dataset, tables: Iterator[pa.Table]) -> Iterator[Chunk]:
    """The rows of `tables`, typed, in chunks of up to `CHUNK_ROWS` rows (or one table, where that has more)."""
    import pyarrow as pa

    connection = connect()
    pending: list[pa.Table] = []
    first = 0
    for table in tables:
        held = sum(map(len, pending))
        if pending and held + len(table) > CHUNK_ROWS:
            yield _chunk(connection, dataset, first, pa.concat_tables(pending))
            first += held
            pending = []
        if len(table):
            pending.append(table)
    if pending:
        yield _chunk(connection, dataset, first, pa.concat_tables(pending))


def identities(dataset: Dataset, chunk: Chunk) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """64-bit hashes of each row's key and `as_of`, and of those together with its business columns."""
    import numpy as np

    def of(name: str) -> NDArray[np.uint64]:
        return chunk.hashes[name] if name in chunk.hashes else _text_hashes(chunk.frame[name])

    identity = [*dataset.key, "as_of"]
    keys = np.zeros(len(chunk.frame), dtype=np.uint64)
    for name in identity:
        _mix(keys, of(name))
    contents = keys.copy()
    for column in dataset.business_columns:
        if column.name not in identity:
            _mix(contents, of(column.name))
    return keys, contents


def encoded(column: pa.ChunkedArray[Any]) -> pa.DictionaryArray[Any, Any]:
    """The column as one array of codes and distinct values."""
    array: pa.DictionaryArray[Any, Any] = column.dictionary_encode().combine_chunks()  # type: ignore[assignment]
    return array


def _chunk(connection: duckdb.DuckDBPyConnection, dataset: Dataset, first: int, table: pa.Table) -> Chunk:
    import numpy as np
    import pandas as pd

    # A column's projection looks at that column only: where values repeat, the distinct ones are enough.
    repeated = {
        column.name: encoded(table[column.name])
        for column in dataset.raw_columns
        if column.type == TEXT or _repeats(table[column.name])
    }
    rows = _scan(connection, dataset, table, [c for c in dataset.raw_columns if c.name not in repeated])
    values = _distinct_values(dataset, repeated)
    distinct = _scan(connection, dataset, values, [c for c in dataset.raw_columns if c.name in repeated])
    columns: dict[str, Any] = {}
    hashes = {}
    for column in dataset.raw_columns:
        name = column.name
        # A NULL's code is -1, and NULL is the last of the distinct values.
        place = repeated[name].indices.fill_null(-1).to_numpy() if name in repeated else slice(None)
        said = distinct if name in repeated else rows
        if column.type == TEXT:
            codes, categories = pd.factorize(said[name])
            codes = codes.astype(np.min_scalar_type(-max(len(categories), 1)))
            columns[name] = pd.Categorical.from_codes(codes[place], categories=pd.Index(categories, dtype=object))
        else:
            words = pd.Index(["timestamp" if _is_time(column) else "number", "other", "nothing"])
            typed = said[name].view("datetime64[ns]") if _is_time(column) else said[name]
            columns[name] = typed[place]
            columns[f"{name}_said"] = pd.Categorical.from_codes(said[f"{name}_said"][place], categories=words)
            hashes[name] = said[f"{name}_hash"][place]
    if dataset.ranges:
        columns |= _ranges(dataset, columns["commodity"], columns["unit"])
    return Chunk(first, table, pd.DataFrame(columns, copy=False), hashes)


def _repeats(column: pa.ChunkedArray[Any]) -> bool:
    import pyarrow.compute as pc

    sample = column.slice(0, 1000)
    return pc.count_distinct(sample).as_py() * 20 <= len(sample)


def _scan(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, table: pa.Table, columns: list[Column]
) -> dict[str, NDArray[Any]]:
    """Some columns, normalised and typed: what they say, whether that is of their type, and a hash of it."""
    if not columns:
        return {}
    wanted = ", ".join(
        column.name
        if column.type == TEXT
        else f"{_number(column)} AS {column.name}, {_said(column)} AS {column.name}_said, "
        f"hash({column.name}) AS {column.name}_hash"
        for column in columns
    )
    given_columns = ", ".join(f"{given(f'raw.{column.name}')} AS {column.name}_given" for column in columns)
    connection.register("raw", table)
    try:
        rows = connection.sql(
            f"SELECT {wanted} FROM (SELECT {projection(dataset, 'raw.')}, {given_columns} FROM raw)"  # noqa: S608
        ).to_arrow_table()
    finally:
        connection.unregister("raw")
    return {name: rows[name].to_numpy() for name in rows.column_names}


def _number(column: Column) -> str:
    name = column.name
    if not _is_time(column):
        return f"coalesce(CAST({name} AS DOUBLE), 'nan'::DOUBLE)"
    held = f"least(greatest(CAST({name} AS TIMESTAMPTZ), TIMESTAMPTZ '{EARLIEST}'), TIMESTAMPTZ '{LATEST}')"
    return f"CASE WHEN {name} IS NULL THEN ({_NOT_A_TIME})::BIGINT ELSE epoch_ns({held}) END"


def _said(column: Column) -> str:
    """SQL: 0 of the column's type, 1 other, 2 nothing."""
    name = column.name
    return f"(CASE WHEN {name}_given IS NULL THEN 2 WHEN {name} IS NULL THEN 1 ELSE 0 END)::TINYINT"


def _distinct_values(dataset: Dataset, repeated: Mapping[str, pa.DictionaryArray[Any, Any]]) -> pa.Table:
    """Distinct values side by side, filled up with NULLs, the last row NULL throughout."""
    import pyarrow as pa

    length = 1 + max((len(array.dictionary) for array in repeated.values()), default=0)
    nothing = pa.nulls(length, pa.string())
    return pa.table(
        {
            column.name: _padded(repeated[column.name].dictionary, length) if column.name in repeated else nothing
            for column in dataset.raw_columns
        }
    )


def _padded(values: pa.Array[Any], length: int) -> pa.Array[Any]:
    import pyarrow as pa

    return pa.concat_arrays([values, pa.nulls(length - len(values), pa.string())])


def _ranges(dataset: Dataset, commodity: pd.Categorical, unit: pd.Categorical) -> Mapping[str, Any]:
    import numpy as np
    import pandas as pd

    commodities = sorted({name for name, _ in dataset.ranges})
    units = sorted({name for _, name in dataset.ranges})
    markets = [(c, u) for c in commodities for u in units]
    row, place = _places(commodity, commodities), _places(unit, units)
    market = np.where((row < 0) | (place < 0), np.int16(-1), row * np.int16(len(units)) + place)
    bounds = [dataset.ranges.get(pair, ("nan", "nan")) for pair in markets]
    lowest = np.array([float(low) for low, _ in bounds] + [np.nan])
    highest = np.array([float(high) for _, high in bounds] + [np.nan])
    return {
        "market": pd.Categorical.from_codes(market, categories=pd.Index([f"{c} in {u}" for c, u in markets])),
        "price_min": lowest[market],
        "price_max": highest[market],
    }


def _places(texts: pd.Categorical, known: list[str]) -> NDArray[np.int16]:
    """Each row's place in `known`, -1 where it is not there."""
    import numpy as np

    of_code = np.array([known.index(text) if text in known else -1 for text in texts.categories] + [-1], dtype=np.int16)
    places: NDArray[np.int16] = of_code[texts.codes]
    return places


def _text_hashes(texts: pd.Series[Any]) -> NDArray[np.uint64]:
    import numpy as np
    import pandas as pd

    categories = texts.cat.categories.to_numpy(dtype=object)
    of_code = np.append(pd.util.hash_array(categories), np.uint64(0)).astype(np.uint64)
    hashes: NDArray[np.uint64] = of_code[texts.cat.codes.to_numpy()]
    return hashes


def _mix(hashes: NDArray[np.uint64], more: NDArray[np.uint64]) -> None:
    """Fold `more` into `hashes`, in place, so that order counts: FNV-1a on words, the high bits shifted down."""
    import numpy as np

    hashes ^= more
    hashes *= np.uint64(_FNV_PRIME)
    hashes ^= hashes >> np.uint64(29)


def _is_time(column: Column) -> bool:
    return column.type in (TIMESTAMP, DATE)
