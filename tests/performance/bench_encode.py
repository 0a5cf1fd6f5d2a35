"""How fast rows become messages, beside other encoders; and what handing them to the client costs, without brokers.

``python -m tests.performance.bench_encode --rows 100000``; one process, one thread of Python.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.performance.bench_publish import DATASET, POLL_EVERY, records

if TYPE_CHECKING:
    import pyarrow as pa

ROUNDS = 3


def run(rows: int) -> dict[str, Any]:
    """
    Returns:
        ``encode``: rows/s from Arrow to a list of bytes, by encoder, None where it is not installed; ``client``:
        messages/s by way of handing them to confluent-kafka. Medians of `ROUNDS`, after one that does not count.
    """
    table = records(0, rows, "bench")
    values = _ours(table)
    return {
        "rows": rows,
        "bytes_per_message": round(sum(map(len, values)) / rows),
        "encode": {name: _rate(rows, encode, table) for name, encode in ENCODERS.items()},
        "client": {name: _rate(rows, hand_over, values) for name, hand_over in CLIENT.items()},
    }


def _rate(rows: int, work: Callable[[Any], Any], given: Any) -> float | None:
    seconds = []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        try:
            took = work(given)
        except ImportError:
            return None
        seconds.append(took if isinstance(took, float) else time.perf_counter() - began)
    return round(rows / median(seconds[1:]))


def _ours(table: pa.Table) -> list[bytes]:
    from marketdata.streaming.encode import messages
    from marketdata.streaming.fold import workspace

    with workspace() as connection:
        return [value for _, values in messages(connection, DATASET, table) for value in values]


def _duckdb(table: pa.Table) -> list[Any]:
    """Decimals become floating point; times are DuckDB's own texts."""
    from marketdata.datasets.conform import connect

    with connect() as connection:
        connection.register("records", table)
        query = "SELECT CAST(to_json(records) AS VARCHAR)::BLOB AS message FROM records"
        return connection.sql(query).to_arrow_table()["message"].to_pylist()


def _polars(table: pa.Table) -> list[Any]:
    polars: Any = importlib.import_module("polars")
    frame = polars.from_arrow(table)
    return list(frame.select(polars.struct(polars.all()).struct.json_encode()).to_series())


def _json(table: pa.Table) -> list[bytes]:
    return [json.dumps(row, default=_text).encode() for row in table.to_pylist()]


def _orjson(table: pa.Table) -> list[bytes]:
    orjson: Any = importlib.import_module("orjson")
    return [orjson.dumps(row, default=_text) for row in table.to_pylist()]


def _msgspec(table: pa.Table) -> list[bytes]:
    msgspec: Any = importlib.import_module("msgspec")
    encode = msgspec.json.Encoder().encode
    return [encode(row) for row in table.to_pylist()]


def _text(value: Decimal | datetime | date) -> str:
    return str(value) if isinstance(value, Decimal) else value.isoformat()


def _each_polled(values: list[bytes]) -> float:
    def each(producer: Any) -> None:
        for value in values:
            producer.produce("none", value, b"Gold")
            producer.poll(0)

    return _handing_over(each)


def _now_and_then_polled(values: list[bytes]) -> float:
    def now_and_then(producer: Any) -> None:
        for first in range(0, len(values), POLL_EVERY):
            for value in values[first : first + POLL_EVERY]:
                producer.produce("none", value, b"Gold")
            producer.poll(0)

    return _handing_over(now_and_then)


def _produce_batch(values: list[bytes]) -> float:
    def batches(producer: Any) -> None:
        for first in range(0, len(values), POLL_EVERY):
            batch = [{"value": value, "key": b"Gold"} for value in values[first : first + POLL_EVERY]]
            producer.produce_batch("none", batch)
            producer.poll(0)

    return _handing_over(batches)


def _handing_over(work: Callable[[Any], None]) -> float:
    """Seconds until the client has queued it all; nobody is there to send it to."""
    from confluent_kafka import Producer

    producer = Producer(
        {
            "bootstrap.servers": "127.0.0.1:1", "log_level": 0, "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 10_000_000, "queue.buffering.max.kbytes": 2_000_000,
        }
    )  # fmt: skip
    began = time.perf_counter()
    work(producer)
    seconds = time.perf_counter() - began
    producer.purge()
    producer.flush(10)
    return seconds


ENCODERS: dict[str, Callable[[pa.Table], list[Any]]] = {
    "ours": _ours,
    "DuckDB to_json": _duckdb,
    "Polars json_encode": _polars,
    "msgspec per row": _msgspec,
    "orjson per row": _orjson,
    "json.dumps per row": _json,
}
CLIENT: dict[str, Callable[[list[bytes]], float]] = {
    "produce, polled after each": _each_polled,
    f"produce, polled every {POLL_EVERY:,}": _now_and_then_polled,
    f"produce_batch of {POLL_EVERY:,}": _produce_batch,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    json.dump(run(parser.parse_args().rows), sys.stdout, indent=1)
