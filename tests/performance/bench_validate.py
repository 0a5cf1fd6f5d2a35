"""The quality gate beside its two limits: Great Expectations alone on a ready frame, and one DuckDB scan.

The same rows, the same suite, the same result format; interleaved, best of `ROUNDS`. What Great Expectations is given
is the frame a careful user builds: typed columns, ``datetime64[ns]``, texts as plain strings, the faster of ``object``
and pandas' own ``str``. The gate starts from raw text. Beside it: the same frame with the gate's categories.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from marketdata.datasets import get
from marketdata.datasets.conform import connect, given, projection
from tests.performance.memory import peak_megabytes

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

DATASET = get("commodity_prices")
ROUNDS = 5
LIMIT = 1.1
MEMORY_LIMIT = 2.0
PART_ROWS = 250_000
INGESTED_AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
CONTEXT = {"tenant": "default", "batch_id": "bench", "run_id": "bench"}

_ROWS = """
    WITH series(place, commodity, series, unit, price, source) AS (VALUES
        (0, 'Gold', 'GC=F', 'troy_oz', 1900, 'yahoo'), (1, 'Silver', 'SI=F', 'troy_oz', 25, 'yahoo'),
        (2, 'Copper', 'HG=F', 'lb', 4, 'yahoo'), (3, 'Oil', 'WTI', 'bbl', 70, 'eia'),
        (4, 'Oil', 'Brent', 'bbl', 75, 'eia'), (5, 'Natural Gas', 'Henry Hub', 'mmbtu', 3, 'eia'))
    SELECT commodity, series, 'daily' AS frequency,
        CASE WHEN hash(i) % 1000 <> 0 THEN printf('%.4f', price * (0.8 + hash(i) % 99991 / 250000.0))
            WHEN i % 5 = 0 THEN '-36.98' WHEN i % 5 = 1 THEN 'n/a' WHEN i % 5 = 2 THEN '' WHEN i % 5 = 3 THEN '999999'
            END AS price,
        'USD' AS currency, unit, CASE WHEN place < 3 THEN CAST(hash(i) % 100000 AS VARCHAR) END AS volume, source,
        strftime(TIMESTAMP '2026-10-01' - INTERVAL (i) MINUTE, '%Y-%m-%dT%H:%M:%SZ') AS event_time,
        '2026-11-01T00:00:00Z' AS as_of, 'https://prices.example/' || series AS origin, i // 6 + 1 AS origin_row
    FROM range($first, $end) AS t(i) JOIN series ON place = i % 6 ORDER BY i"""


def parts(rows: int) -> Iterator[pa.Table]:
    """A raw batch as a source would have said it: minutes of six series, one price in a thousand bad."""
    connection = connect()
    for first in range(0, rows, PART_ROWS):
        window = {"first": first, "end": min(first + PART_ROWS, rows)}
        yield connection.sql(_ROWS, params=window).to_arrow_table().cast(DATASET.raw_schema()).combine_chunks()


def run(rows: int = 1_000_000) -> dict[str, Any]:
    """Measure; seconds, rows per second, megabytes, and pass or fail against the limits."""
    from marketdata import quality
    from marketdata.quality.judge import Judge
    from marketdata.quality.verdict import CLOCK_SKEW

    batch = list(parts(rows))
    suite = quality.load_suite(DATASET)
    judge = Judge(suite, INGESTED_AT + CLOCK_SKEW)
    ready = _ready(batch)
    texts = list(ready.select_dtypes("category").columns)
    frames: dict[str, Any] = {"gx_object": object, "gx_str": "str", "gx_category": "category"}
    steps: dict[str, Callable[[], Any]] = {
        "gate": lambda: quality.gate(DATASET, iter(batch), ingested_at=INGESTED_AT, context=CONTEXT),
        "duckdb_scan": lambda: _scan(suite, batch),
    }
    for name, dtype in frames.items():
        steps[name] = partial(judge.ask, "row", ready.astype(dict.fromkeys(texts, dtype)))
    best, cpu = dict.fromkeys(steps, float("inf")), dict.fromkeys(steps, float("inf"))
    said: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start, worked = time.perf_counter(), time.process_time()
            said[name] = step()
            best[name] = min(best[name], time.perf_counter() - start)
            cpu[name] = min(cpu[name], time.process_time() - worked)
    _agree(said)

    peak, peak_of_four = _peak(rows), _peak(4 * rows)
    alone = min(best["gx_object"], best["gx_str"])
    ratio, memory_ratio = round(best["gate"] / alone, 2), round(peak_of_four / peak, 2)
    return {
        "rows": rows,
        "rules": len(suite.of("row")),
        "seconds": {name: round(seconds, 3) for name, seconds in best.items()},
        "cpu_seconds": {name: round(seconds, 3) for name, seconds in cpu.items()},
        "rows_per_second": round(rows / best["gate"]),
        "ratio": ratio,
        "limit": LIMIT,
        "ratio_to_categories": round(best["gate"] / best["gx_category"], 2),
        "ratio_to_duckdb_scan": round(best["gate"] / best["duckdb_scan"], 2),
        "peak_mb": round(peak),
        "peak_mb_of_four_times": round(peak_of_four),
        "memory_ratio": memory_ratio,
        "memory_limit": MEMORY_LIMIT,
        "passed": ratio <= LIMIT and memory_ratio <= MEMORY_LIMIT,
    }


def _ready(batch: list[pa.Table]) -> pd.DataFrame:
    """The frame of the row rules; made outside the measured time."""
    import pyarrow as pa

    from marketdata.quality.frames import chunks

    return next(chunks(DATASET, iter([pa.concat_tables(batch)]))).frame


def _scan(suite: Any, batch: list[pa.Table]) -> dict[str, int]:
    """Rule → failing rows, by one scan of the same raw text."""
    import pyarrow as pa

    connection = connect()
    connection.register("raw", pa.concat_tables(batch))
    ranges = [f"('{c}', '{u}', {low}, {high})" for (c, u), (low, high) in DATASET.ranges.items()]
    typed = ("price", "volume", "event_time", "as_of")
    word = {"price": "number", "volume": "number", "event_time": "timestamp", "as_of": "timestamp"}
    said = ", ".join(
        f"CASE WHEN {name}_given IS NULL THEN 'nothing' WHEN {name} IS NULL THEN 'other' ELSE '{word[name]}' END "
        f"AS {name}_said"
        for name in typed
    )
    counts = ", ".join(f"count(*) FILTER (WHERE NOT ({_holds(r.expectation)})) AS {r.id}" for r in suite.of("row"))
    row = connection.execute(
        f"""SELECT {counts} FROM (
            SELECT rows.*, {said}, low AS price_min, high AS price_max, rows.commodity || ' in ' || rows.unit AS market
            FROM (SELECT {projection(DATASET, "raw.")},
                {", ".join(f"{given(f'raw.{name}')} AS {name}_given" for name in typed)} FROM raw) AS rows
            LEFT JOIN (VALUES {", ".join(ranges)}) AS range(commodity, unit, low, high) USING (commodity, unit))"""
    ).fetchall()[0]
    return dict(zip((rule.id for rule in suite.of("row")), row, strict=True))


def _holds(expectation: Mapping[str, Any]) -> str:
    """An expectation as SQL; NULL where it does not apply."""
    kwargs = expectation["kwargs"]
    column = kwargs.get("column")
    match expectation["type"]:
        case "expect_column_values_to_not_be_null":
            return f"{column} IS NOT NULL"
        case "expect_column_values_to_be_in_set" | "expect_column_values_to_not_be_in_set":
            values = ", ".join(f"'{value}'" for value in kwargs["value_set"])
            return f"{column} {'NOT ' if 'not_be' in expectation['type'] else ''}IN ({values})"
        case "expect_column_pair_values_a_to_be_greater_than_b":
            return f"{kwargs['column_A']} >= {kwargs['column_B']}"
        case "expect_column_values_to_be_between":
            low, high = kwargs.get("min_value"), kwargs.get("max_value")
            bounds = []
            if low is not None:
                bounds.append(f"{column} {'>' if kwargs.get('strict_min') else '>='} {_literal(low)}")
            if high is not None:
                bounds.append(f"{column} <= {_literal(high)}")
            return " AND ".join(bounds)
    raise ValueError(f"no SQL for {expectation['type']}")


def _literal(bound: Any) -> str:
    if isinstance(bound, dict):
        return f"TIMESTAMPTZ '{INGESTED_AT.isoformat()}' + INTERVAL 5 MINUTE"
    return f"TIMESTAMPTZ '{bound}Z'" if isinstance(bound, str) else str(bound)


def _agree(said: dict[str, Any]) -> None:
    """A fast wrong answer is none."""
    counts = {name: failing for name, failing in said["duckdb_scan"].items() if failing}
    gate = {rule["rule"]: rule["failed"] for rule in said["gate"].rules if rule["failed"]}
    for name in ("gx_object", "gx_str", "gx_category"):
        alone = {rule: answer.result["unexpected_count"] for rule, answer in said[name].items()}
        if gate != {rule: failing for rule, failing in alone.items() if failing} or gate != counts:
            raise AssertionError(f"the answers differ: gate {gate}, {name} {alone}, DuckDB {counts}")


def _peak(rows: int) -> float:
    """Peak memory of a process that judges so many rows, in megabytes."""
    command = [sys.executable, "-m", "tests.performance.bench_validate", "--peak", str(rows)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _judge_once(rows: int) -> int:
    from marketdata import quality

    verdict = quality.gate(DATASET, parts(rows), ingested_at=INGESTED_AT, context=CONTEXT)
    assert verdict.rows == rows
    return peak_megabytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peak", type=int, metavar="ROWS", help="only print the peak memory of judging ROWS")
    arguments = parser.parse_args()
    said = str(_judge_once(arguments.peak)) if arguments.peak else json.dumps(run(arguments.rows), indent=1)
    sys.stdout.write(f"{said}\n")
