"""Rows to messages: JSON of all columns, whole columns at a time.

A value's text is the one that entered the content hash: a price keeps all digits of its scale (``2000.500000``), a time
is ``2020-04-20T00:00:00.000000Z``. So a consumer can check a record's hash from the message alone.

Each column becomes text once per distinct value and columns are joined by Arrow; DuckDB prints numbers exactly. No
Python object is made per value, only the bytes of each message at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from marketdata.datasets import Column, Dataset
from marketdata.datasets.conform import canonical
from marketdata.datasets.dataset import DATE, TEXT, TIMESTAMP

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

ROWS_AT_ONCE = 20_000
"""Messages made at once; bounds memory (some 600 bytes each, three times over)."""

DIGESTS = ("record_id", "content_hash")
"""Columns of text that nothing in JSON needs to be escaped in; they are a third of a message."""

_SAMPLE = 1000


def messages(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, rows: pa.Table
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Keys and values of the rows' messages, in order, `ROWS_AT_ONCE` at a time.

    Args:
        connection: of `datasets.conform.connect`; it counts in UTC.
        rows: rows of `dataset.arrow_schema()`; `fold.delta_rows` has seen that their `DIGESTS` are hexadecimal.
    """
    import pyarrow as pa

    pieces = _pieces(connection, dataset, rows)
    coded = _coded(rows[dataset.message_key])
    keys = cast("list[bytes]", coded.dictionary.cast(pa.binary()).to_pylist())
    for first in range(0, len(rows), ROWS_AT_ONCE):
        values = _join(*(piece.slice(first, ROWS_AT_ONCE) for piece in pieces)).cast(pa.binary())
        numbers = cast("list[int]", coded.indices.slice(first, ROWS_AT_ONCE).to_pylist())
        yield [keys[number] for number in numbers], cast("list[bytes]", values.to_pylist())


def repeats(column: Column) -> bool:
    """A column of texts that are few in many rows."""
    return column.type == TEXT and column.name not in DIGESTS


class _Repeated:
    """A column of few distinct texts, spelled out slice by slice."""

    def __init__(self, texts: pa.Array[Any], indices: pa.Array[Any]) -> None:
        self._texts = texts
        self._indices = indices

    def slice(self, first: int, length: int) -> pa.Array[Any]:
        return self._texts.take(self._indices.slice(first, length))


class _Constant:
    """The same text in every row."""

    def __init__(self, text: str) -> None:
        self._text = text

    def slice(self, first: int, length: int) -> str:  # noqa: ARG002 - the shape of Arrow's method
        return self._text


def _pieces(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, rows: pa.Table
) -> list[pa.Array[Any] | _Repeated | _Constant]:
    """Columns of text which, joined row by row, are the messages."""
    pieces: list[pa.Array[Any] | _Repeated | _Constant] = []
    literal = "{"
    for number, column in enumerate(dataset.columns):
        literal += f"{',' if number else ''}{json.dumps(column.message_name)}:"
        if column.name in DIGESTS:
            pieces += [_Constant(literal + '"'), rows[column.name].combine_chunks()]
            literal = '"'
        elif repeats(column) or _few(rows[column.name]):
            coded = _coded(rows[column.name])
            texts = _texts(connection, column, coded.dictionary)
            if len(texts) == 1 and number:  # the first column stays a column: it says how many messages there are
                literal += texts[0].as_py()
            else:
                pieces.append(_Repeated(_join(literal, texts), coded.indices))
                literal = ""
        else:
            pieces += [_Constant(literal), _texts(connection, column, rows[column.name].combine_chunks())]
            literal = ""
    return [*pieces, _Constant(literal + "}")]


def _few(values: pa.ChunkedArray[Any]) -> bool:
    """Few distinct values, by a sample."""
    import pyarrow.compute as pc

    sample = values.slice(0, _SAMPLE)
    return len(sample) < 2 or pc.count_distinct(sample, mode="all").as_py() * 2 <= len(sample)


def _coded(values: pa.ChunkedArray[Any]) -> pa.DictionaryArray[Any, Any]:
    """Dictionary-encoded, NULL being a value like any other."""
    import pyarrow as pa

    together: pa.Array[Any] = values.combine_chunks()
    if isinstance(together, pa.DictionaryArray):
        if not together.null_count:
            return together
        together = together.dictionary_decode()
    return together.dictionary_encode(null_encoding="encode")


def _texts(connection: duckdb.DuckDBPyConnection, column: Column, values: pa.Array[Any]) -> pa.Array[Any]:
    """JSON text of each value of a column."""
    import pyarrow as pa

    if column.type == TEXT:
        return _array([json.dumps(value, ensure_ascii=False).encode() for value in values.to_pylist()])
    text = canonical(column)
    if column.type in (TIMESTAMP, DATE):
        text = f"concat('\"', {text}, '\"')"
    connection.register("encoded", pa.table({column.name: values}))
    query = f"SELECT CASE WHEN {column.name} IS NULL THEN 'null' ELSE {text} END AS text FROM encoded"  # noqa: S608
    texts: pa.Array[Any] = connection.sql(query).to_arrow_table()["text"].combine_chunks()
    connection.unregister("encoded")
    return texts


def _array(texts: list[bytes]) -> pa.Array[Any]:
    """Texts of Python as Arrow's; ``pa.array`` and ``pa.scalar`` would import pandas, a fifth of a second."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(texts)))


def _join(*texts: pa.Array[Any] | str) -> pa.Array[Any]:
    import pyarrow.compute as pc

    scalars = [_array([text.encode()])[0] if isinstance(text, str) else text for text in (*texts, "")]
    joined: pa.Array[Any] = pc.binary_join_element_wise(*scalars)
    return joined
