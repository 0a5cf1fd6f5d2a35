"""Extract a CSV and transform it, beside the least that reading it and typing it can cost."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from tests.performance.memory import peak_megabytes

MAPPING = """
entries:
  - files: prices.csv
    source: bench
    date: {column: Date, format: "%Y-%m-%d"}
    price: Price
    commodity: Oil
    series: {column: Series}
    frequency: daily
    currency: USD
    unit: bbl
"""
INTERVAL = (date(1900, 1, 1), date(2100, 1, 1))


def run(rows: int) -> dict[str, Any]:
    """Seconds, rows a second and peak megabytes of each step, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"LAKE_URI": f"file://{folder}/lake", "MARKETDATA_SOURCES": "files", "MARKETDATA_FILES": folder}
        found = {}
        for step in ("prepare", "extract", "bare_csv_reading", "transform", "bare_typing"):
            child = subprocess.run(
                [sys.executable, "-m", "tests.performance.bench_transform", step, folder, str(rows)],
                env={**os.environ, **own}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            found[step] = json.loads(child.stdout.splitlines()[-1])
    return found


def prepare(folder: Path, rows: int) -> None:
    """A CSV of `rows` daily prices of 500 series, and its mapping."""
    from marketdata.datasets.conform import connect

    connect().execute(
        f"""COPY (SELECT strftime(DATE '1950-01-01' + CAST(i // 500 AS INTEGER), '%Y-%m-%d') AS Date,
            'S' || (i % 500) AS Series, CAST(20 + (i * 7919 % 10000) / 100.0 AS DECIMAL(10,2)) AS Price
            FROM range({rows}) r(i)) TO '{folder}/prices.csv' (HEADER)"""
    )
    (folder / "mapping.yaml").write_text(MAPPING)


def extract(folder: Path) -> Any:
    from marketdata import settings
    from marketdata.batches import Interval
    from marketdata.datasets import COMMODITY_PRICES
    from marketdata.tasks.extract import extract as step

    return step(
        settings.load(), COMMODITY_PRICES, Interval(*INTERVAL), lookback_days=0, run_id="bench", attempt_of_run=0
    )


def bare_csv_reading(folder: Path) -> None:
    """The same file through pyarrow alone, as text."""
    import pyarrow as pa
    import pyarrow.csv

    columns = dict.fromkeys(("Date", "Series", "Price"), pa.string())
    options = pyarrow.csv.ConvertOptions(column_types=columns)
    for _ in pyarrow.csv.open_csv(folder / "prices.csv", convert_options=options):
        pass


def transform(folder: Path) -> Any:
    from marketdata import settings
    from marketdata.datasets import COMMODITY_PRICES
    from marketdata.tasks.transform import transform as step

    return step(settings.load(), COMMODITY_PRICES, _verdict(folder))


def bare_typing(folder: Path) -> None:
    """The typed projection alone, part by part: no identity, no hash, nothing written."""
    from marketdata import settings
    from marketdata.batches import Lake
    from marketdata.datasets import COMMODITY_PRICES
    from marketdata.datasets.conform import connect, projection

    connection = connect()
    for part in Lake(settings.load()).parent(_verdict(folder)).tables():
        connection.register("part", part)
        connection.sql(f"SELECT {projection(COMMODITY_PRICES)} FROM part").to_arrow_table()
        connection.unregister("part")


def _verdict(folder: Path) -> Any:
    """A verdict that refuses nothing on the extracted batch."""
    import pyarrow as pa

    raw = extract(folder)
    manifest = replace(raw.manifest, batch_id="verdict", step="validate", parent=raw.uri, counts={}, details={})
    writer = raw.lake.writer("commodity_prices", raw.manifest.interval, "verdict")
    writer.add(pa.table({"row_index": pa.array([], pa.int64())}))
    return writer.commit(manifest)


def _child(step: str, folder: Path, rows: int) -> dict[str, Any]:
    import duckdb  # noqa: F401 - imports are no part of a step
    import pyarrow.parquet  # noqa: F401

    if step == "prepare":
        prepare(folder, rows)
        return {}
    if step == "extract":
        shutil.rmtree(folder / "lake", ignore_errors=True)
    if step in ("transform", "bare_typing"):
        _verdict(folder)
    started = time.perf_counter()
    {"extract": extract, "bare_csv_reading": bare_csv_reading, "transform": transform, "bare_typing": bare_typing}[
        step
    ](folder)
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds),
        "peak_mb": peak_megabytes(),
        "beside": {"extract": "bare_csv_reading", "transform": "bare_typing"}.get(step),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step")
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", type=int)
    options = parser.parse_args()
    print(json.dumps(_child(options.step, options.folder, options.rows)))
