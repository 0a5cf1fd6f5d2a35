"""Load: rows a second and peak memory, beside a bare pyiceberg append of the same rows to a table of the same shape.

Each measurement is a process of its own, so that its peak memory is its own. The bare append has all rows in memory
before its clock starts, and decides nothing. On a table partitioned by month it needs `pyiceberg-core`.

    python tests/performance/bench_load.py 1000000 4000000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marketdata.batches import ROWS_PER_PART, Batch, Interval, Lake, Manifest
from marketdata.datasets import COMMODITY_PRICES
from marketdata.lakehouse.embedded import EmbeddedLakehouse
from marketdata.settings import ENDPOINTS_VARIABLE, Settings
from tests.performance.memory import peak_megabytes

if TYPE_CHECKING:
    import pyarrow as pa

SHARE_OF_BARE = 0.6
DAYS = 10_000
"""Days of history of a series: 329 months. Every part has them all, which is the order sources come in."""

_INTERVAL = Interval(date(2024, 1, 1), date(2024, 1, 2))
_BATCH = "bench"


def run(rows: int, settings: Settings) -> dict[str, Any]:
    """Measure one size on the embedded lakehouse; everything written is removed afterwards.

    Returns:
        seconds, rows a second and peak megabytes of the load, of its repetition, and of the bare append; their ratio.
    """
    name = f"bench_{uuid.uuid4().hex[:8]}"
    lake_uri = f"{settings.require('lake_uri').rstrip('/')}/{name}"
    own = settings.model_copy(update={"lake_uri": lake_uri, "trino_schema": name, "trino_host": None})
    try:
        _measure("prepare", rows, own)
        load, again, bare = (_measure(step, rows, own) for step in ("load", "load", "bare"))
    finally:
        _remove(own)
    assert (load["inserted"], again["repeated"]) == (rows, rows)
    ratio = bare["seconds"] / load["seconds"]
    return {
        "rows": rows,
        "load": _figures(load, rows),
        "repeated": _figures(again, rows),
        "bare_append": {**_figures(bare, rows), "partitioned": bare["partitioned"]},
        "ratio": round(ratio, 2),
        "limit": SHARE_OF_BARE,
        "passed": ratio >= SHARE_OF_BARE,
    }


def _measure(step: str, rows: int, settings: Settings) -> dict[str, Any]:
    stated = {
        "LAKE_URI": settings.require("lake_uri"),
        "POSTGRES_DSN": settings.require("postgres_dsn"),
        "TRINO_SCHEMA": settings.trino_schema,
        "TRINO_HOST": "",
        ENDPOINTS_VARIABLE: os.devnull + "-none",
    }
    command = [sys.executable, "-m", "tests.performance.bench_load", "--step", step, str(rows)]
    answer = subprocess.run(command, env={**os.environ, **stated}, stdout=subprocess.PIPE, check=True).stdout
    result: dict[str, Any] = json.loads(answer)
    return result


def _figures(result: dict[str, Any], rows: int) -> dict[str, float]:
    return {
        "seconds": round(result["seconds"], 2),
        "rows_per_second": round(rows / result["seconds"]),
        "peak_mb": result["peak_mb"],
    }


def _step(step: str, rows: int, settings: Settings) -> dict[str, Any]:
    result = {"prepare": _prepare, "load": _load, "bare": _bare}[step](rows, settings)
    return {**result, "peak_mb": peak_megabytes()}


def _prepare(rows: int, settings: Settings) -> dict[str, Any]:
    lake = Lake(settings)
    writer = lake.writer(COMMODITY_PRICES.name, _INTERVAL, _BATCH)
    for first in range(0, rows, ROWS_PER_PART):
        writer.add(_rows(first, min(ROWS_PER_PART, rows - first)))
    moment = datetime(2024, 6, 1, tzinfo=UTC)
    writer.commit(
        Manifest(
            dataset=COMMODITY_PRICES.name, tenant="default", batch_id=_BATCH, step="transform", step_version=1,
            run_id="bench", interval_start=_INTERVAL.start, interval_end=_INTERVAL.end, created_at=moment,
        )
    )  # fmt: skip
    EmbeddedLakehouse(settings).ensure(COMMODITY_PRICES)
    return {}


def _rows(first: int, count: int) -> pa.Table:
    """Records of consecutive numbers: series after series, each in the order of its days."""
    import duckdb

    names = ", ".join(f"{column.name}" for column in COMMODITY_PRICES.columns)
    statement = f"""
        SELECT {names} FROM (
            SELECT sha256(i::VARCHAR) AS record_id, 'default' AS tenant, 'Oil' AS commodity,
                'S' || (i // {DAYS}) AS series, 'daily' AS frequency,
                CAST(20 + (hash(i) % 100000) / 1000 AS DECIMAL(18, 6)) AS price, 'USD' AS currency, 'bbl' AS unit,
                NULL::DECIMAL(18, 4) AS volume, 'bench' AS source,
                TIMESTAMPTZ '1986-01-01 00:00:00+00' + to_days((i % {DAYS})::INTEGER) AS event_time,
                (DATE '1986-01-01' + (i % {DAYS})::INTEGER) AS price_date,
                TIMESTAMPTZ '2024-06-01 00:00:00+00' AS as_of,
                TIMESTAMPTZ '2024-06-01 00:00:00+00' AS ingested_at, 'bench' AS run_id, '{_BATCH}' AS batch_id,
                sha256('content' || i::VARCHAR) AS content_hash, 1 AS schema_version
            FROM range(?, ?) AS numbers(i)
        )"""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        table = connection.sql(statement, params=[first, first + count]).to_arrow_table()
    return table.cast(COMMODITY_PRICES.arrow_schema())


def _load(rows: int, settings: Settings) -> dict[str, Any]:
    lakehouse = EmbeddedLakehouse(settings)
    lakehouse.check()  # imports and connects before the clock starts, as for the bare append
    loaded = lakehouse.load(COMMODITY_PRICES, _batch(settings))
    return {"seconds": loaded.seconds, "inserted": loaded.inserted, "repeated": loaded.repeated}


def _bare(rows: int, settings: Settings) -> dict[str, Any]:
    from importlib.util import find_spec

    import pyarrow as pa
    from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC

    lakehouse = EmbeddedLakehouse(settings)
    catalog = lakehouse._catalog
    like = catalog.load_table((settings.trino_schema, COMMODITY_PRICES.name))
    partitioned = find_spec("pyiceberg_core") is not None
    spec = like.spec() if partitioned else UNPARTITIONED_PARTITION_SPEC
    table = catalog.create_table((settings.trino_schema, "bare"), like.schema(), partition_spec=spec)
    whole = pa.concat_tables(_batch(settings).tables())
    started = time.monotonic()
    table.append(whole)
    return {"seconds": time.monotonic() - started, "partitioned": partitioned}


def _batch(settings: Settings) -> Batch:
    batch = Lake(settings).find(COMMODITY_PRICES.name, _INTERVAL, _BATCH)
    assert batch is not None
    return batch


def _remove(settings: Settings) -> None:
    catalog = EmbeddedLakehouse(settings)._catalog
    if catalog.namespace_exists(settings.trino_schema):
        for table in catalog.list_tables(settings.trino_schema):
            catalog.drop_table(table)
        catalog.drop_namespace(settings.trino_schema)
    if settings.require("lake_uri").startswith("file://"):
        shutil.rmtree(Path(settings.require("lake_uri").removeprefix("file://")), ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=int, nargs="*", default=[1_000_000])
    parser.add_argument("--step", choices=["prepare", "load", "bare"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        answer: Any = _step(arguments.step, arguments.rows[0], Settings())
    else:
        answer = [run(rows, Settings()) for rows in arguments.rows]
    sys.stdout.write(json.dumps(answer, indent=1) + "\n")
