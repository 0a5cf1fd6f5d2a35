"""The lake through Trino: loads beside a bare MERGE and other ways in; queries of a table of 1,000 loads during loads.

The bare MERGE is the same statement on files that are staged already: what is left to us is reading the batch, staging,
looking the table up, counting what became of the rows. Both take turns on tables of their own, and the median counts.

    python -m tests.performance lake
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marketdata.batches import ROWS_PER_PART, Batch, Interval, Lake, Manifest
from marketdata.datasets import COMMODITY_PRICES
from marketdata.lakehouse.embedded import EmbeddedLakehouse, _Write
from marketdata.lakehouse.merging import shape
from marketdata.lakehouse.trino import TrinoLakehouse
from marketdata.settings import Settings
from tests.engines import trino as engine
from tests.performance.bench_load import _rows

if TYPE_CHECKING:
    import pyarrow as pa

SIZES = {100_000: 5, 1_000_000: 2}
"""Rows, and how often each of the two is measured."""

WARM_UP = (20_000, 100_000)
"""Rows of loads that are not measured: the JVM compiles what it will need."""

SHARE_OF_BARE = 0.9
VALUES_ROWS = 300
DAILY_LOADS = 1000
MAINTAINED_EVERY = 50
"""Loads; every one is a day's, so this is harder than what happens."""

QUERIES = 40
ONE_DAY_SECONDS, THIRTY_DAYS_SECONDS = 2.0, 10.0
"""R5.4."""

COMMODITIES = ("Gold", "Silver", "Copper", "Oil", "Natural Gas")


def run(settings: Settings) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="marketdata-bench-") as folder, _trino(settings, Path(folder)) as own:
        for rows in WARM_UP:
            _load_pair(own, rows)
        return {
            "loads": {rows: _loads(own, rows, turns) for rows, turns in SIZES.items()},
            "many": _many(own),
        }


@contextmanager
def _trino(settings: Settings, folder: Path) -> Iterator[Settings]:
    """Settings of a Trino on a lake of its own, on the PostgreSQL there is."""
    lake_uri = f"file://{folder}/lake"
    lakes = {"iceberg": engine.Lake(lake_uri)}
    with engine.trino(settings.require("postgres_dsn"), lakes, folder / "server") as (host, port):
        yield settings.model_copy(update={"trino_host": host, "trino_port": port, "lake_uri": lake_uri})


def _fresh(settings: Settings) -> Settings:
    return settings.model_copy(update={"trino_schema": f"bench_{uuid.uuid4().hex[:8]}"})


def _loads(settings: Settings, rows: int, turns: int) -> dict[str, Any]:
    pairs = [_load_pair(settings, rows, bare_first=bool(turn % 2)) for turn in range(turns)]
    ours, bare = (statistics.median(one[name] for one in pairs) for name in ("ours", "bare"))
    seconds = {"load": ours, "bare_merge": bare, "repeated": statistics.median(one["again"] for one in pairs)}
    seconds |= _other_ways(settings, rows)
    return {
        "rows": rows,
        "turns": turns,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "rows_per_second": {name: round(rows / value) for name, value in seconds.items()},
        "values_rows_per_second": round(_values(settings)),
        "ratio": round(bare / ours, 3),
        "limit": SHARE_OF_BARE,
    }


def _load_pair(settings: Settings, rows: int, bare_first: bool = False) -> dict[str, float]:
    """Seconds of a load, of its repetition, and of a bare MERGE of the same rows into a table of its own."""
    own, other = _fresh(settings), _fresh(settings)
    batch = _batch(own, rows)

    def merge(bare: TrinoLakehouse, staging: str) -> None:
        bare._execute(bare._merge_statement(COMMODITY_PRICES, staging))

    def load() -> dict[str, float]:
        lakehouse = TrinoLakehouse(own)
        lakehouse.ensure(COMMODITY_PRICES)
        lakehouse._create_schema(lakehouse._staging)  # a tenant's first load does, and it stays
        loaded, again = lakehouse.load(COMMODITY_PRICES, batch), lakehouse.load(COMMODITY_PRICES, batch)
        assert (loaded.inserted, again.repeated) == (rows, rows)
        return {"ours": loaded.seconds, "again": again.seconds}

    if bare_first:
        return {"bare": _staged(other, batch, merge), **load()}
    return {**load(), "bare": _staged(other, batch, merge)}


def _staged(settings: Settings, batch: Batch, work: Callable[[TrinoLakehouse, str], None]) -> float:
    """Seconds of work on ready staged files and an empty table."""
    lakehouse = TrinoLakehouse(settings)
    lakehouse.ensure(COMMODITY_PRICES)
    with lakehouse._staged(COMMODITY_PRICES, batch) as staged:
        started = time.monotonic()
        work(lakehouse, staged.table)
        seconds = time.monotonic() - started
    (row,) = lakehouse.query("SELECT count(*) AS n FROM commodity_prices").to_pylist()
    assert row["n"] == batch.manifest.rows
    return seconds


def _other_ways(settings: Settings, rows: int) -> dict[str, float]:
    import pyarrow as pa

    batch = _batch(_fresh(settings), rows)

    def insert(lakehouse: TrinoLakehouse, staging: str) -> None:
        lakehouse._run(f"INSERT INTO {lakehouse._table(COMMODITY_PRICES)} SELECT * FROM {staging}")

    own = _fresh(settings).model_copy(update={"trino_host": None})
    embedded = EmbeddedLakehouse(own)
    embedded.ensure(COMMODITY_PRICES)
    whole = pa.concat_tables(batch.tables())
    table = embedded._catalog.load_table((own.trino_schema, COMMODITY_PRICES.name))
    started = time.monotonic()
    table.append(whole)
    appended = time.monotonic() - started
    return {"insert_select": _staged(_fresh(settings), batch, insert), "pyiceberg_append": appended}


def _values(settings: Settings) -> float:
    """Rows a second of INSERT … VALUES, all in one statement."""
    lakehouse = TrinoLakehouse(_fresh(settings))
    lakehouse.ensure(COMMODITY_PRICES)
    rows = [tuple(row.values()) for row in _rows(0, VALUES_ROWS).to_pylist()]
    marks = ", ".join(f"({', '.join('?' * len(COMMODITY_PRICES.columns))})" for _ in rows)
    started = time.monotonic()
    lakehouse._run(
        f"INSERT INTO {lakehouse._table(COMMODITY_PRICES)} VALUES {marks}", [value for row in rows for value in row]
    )
    return VALUES_ROWS / (time.monotonic() - started)


def _many(settings: Settings) -> dict[str, Any]:
    """A table after 1,000 daily loads, left alone and maintained.

    Trino asks; pyiceberg, being quicker, writes what a load writes, without deciding: nothing of it is there yet.
    """
    return {
        name: _daily_loads(_fresh(settings), every)
        for name, every in (("left_alone", None), ("maintained", MAINTAINED_EVERY))
    }


def _daily_loads(settings: Settings, every: int | None) -> dict[str, Any]:
    embedded = EmbeddedLakehouse(settings.model_copy(update={"trino_host": None}))
    embedded.ensure(COMMODITY_PRICES)
    asking = TrinoLakehouse(settings)
    maintenance = 0.0
    first = datetime(2021, 1, 1, tzinfo=UTC)
    marks: dict[int, dict[str, Any]] = {}
    for number in range(DAILY_LOADS):
        _append(embedded, settings, first + timedelta(days=number))
        if every and number % every == every - 1:
            started = time.monotonic()
            embedded.maintain(COMMODITY_PRICES, timedelta(0))
            maintenance += time.monotonic() - started
        if number + 1 in (100, DAILY_LOADS):
            marks[number + 1] = {
                "files": asking._count(COMMODITY_PRICES, "$files"),
                "manifests": asking._count(COMMODITY_PRICES, "$manifests"),
                "planning_ms": _planning(asking, first + timedelta(days=number)),
            }
    last = first + timedelta(days=DAILY_LOADS - 1)
    next_load = embedded.load(COMMODITY_PRICES, _day(settings, last + timedelta(days=1)))
    return {
        "after_loads": marks,
        "maintenance_seconds": round(maintenance, 1),
        "next_load_seconds": round(next_load.seconds, 2),
        **_asked(settings, embedded, last + timedelta(days=1)),
    }


def _append(embedded: EmbeddedLakehouse, settings: Settings, day: datetime) -> None:
    table = embedded._catalog.load_table((settings.trino_schema, COMMODITY_PRICES.name))
    write = _Write(table, shape(COMMODITY_PRICES), COMMODITY_PRICES.event_time)
    write._write(_day_rows(day))
    write.commit({})


def _planning(asking: TrinoLakehouse, day: datetime) -> float:
    """Milliseconds until Trino knows the plan of a query of one day, and which files it has to read."""
    statement = f"EXPLAIN (TYPE IO) {_one_day(day)}"
    files = f"SELECT count(*) FROM {asking._table(COMMODITY_PRICES)} WHERE event_time < TIMESTAMP '1900-01-01 UTC'"
    return round(_median_ms(lambda: (asking._run(statement), asking._run(files))), 1)


def _asked(settings: Settings, embedded: EmbeddedLakehouse, last: datetime) -> dict[str, Any]:
    """p95 of both kinds of query, while loads go on."""
    done = threading.Event()
    loads = 0

    def keep_loading() -> None:
        nonlocal loads
        while not done.is_set():
            loads += 1
            embedded.load(COMMODITY_PRICES, _day(settings, last + timedelta(days=loads)))

    loading = threading.Thread(target=keep_loading)
    loading.start()
    try:
        asking = TrinoLakehouse(settings)
        took: dict[str, list[float]] = {"one_day": [], "thirty_days": []}
        for number in range(QUERIES):
            day = last - timedelta(days=7 * number)
            for name, statement in (("one_day", _one_day(day)), ("thirty_days", _thirty_days(day))):
                started = time.monotonic()
                assert asking.query(statement).num_rows
                took[name].append(time.monotonic() - started)
    finally:
        done.set()
        loading.join()
    p95 = {name: round(statistics.quantiles(seconds, n=20)[-1], 3) for name, seconds in took.items()}
    return {"p95_seconds": p95, "loads_meanwhile": loads}


def _one_day(day: datetime) -> str:
    return (
        "SELECT series, event_time, price FROM commodity_prices WHERE commodity = 'Oil'"
        f" AND event_time >= TIMESTAMP '{day:%Y-%m-%d} UTC' AND event_time < TIMESTAMP '{day:%Y-%m-%d} UTC'"
        " + INTERVAL '1' DAY"
    )


def _thirty_days(day: datetime) -> str:
    return (
        "SELECT commodity, series, count(*) AS n, avg(price) AS mean, min(price) AS low, max(price) AS high"
        f" FROM commodity_prices WHERE event_time >= TIMESTAMP '{day:%Y-%m-%d} UTC' - INTERVAL '30' DAY"
        f" AND event_time < TIMESTAMP '{day:%Y-%m-%d} UTC' GROUP BY 1, 2"
    )


def _median_ms(work: Callable[[], object]) -> float:
    took = []
    for _ in range(9):
        started = time.monotonic()
        work()
        took.append((time.monotonic() - started) * 1000)
    return statistics.median(took)


def _day(settings: Settings, day: datetime) -> Batch:
    return _written(settings, _day_rows(day), day.date(), f"{settings.trino_schema}-{day:%Y%m%d}")


def _day_rows(day: datetime) -> pa.Table:
    """What ten series of the five commodities say about a day."""
    import hashlib
    from decimal import Decimal

    import pyarrow as pa

    def row(number: int) -> dict[str, Any]:
        key = f"{number}/{day:%Y-%m-%d}"
        return {
            "record_id": hashlib.sha256(key.encode()).hexdigest(), "tenant": "default",
            "commodity": COMMODITIES[number % 5], "series": f"S{number}", "frequency": "daily",
            "price": Decimal(number * 1000 + day.toordinal() % 997) / 100, "currency": "USD", "unit": "bbl",
            "volume": None, "source": "bench", "event_time": day, "price_date": day.date(), "as_of": day,
            "ingested_at": day, "run_id": "bench", "batch_id": f"{day:%Y%m%d}",
            "content_hash": hashlib.sha256(b"content" + key.encode()).hexdigest(), "schema_version": 1,
        }  # fmt: skip

    return pa.Table.from_pylist([row(number) for number in range(10)], COMMODITY_PRICES.arrow_schema())


def _batch(settings: Settings, rows: int) -> Batch:
    import pyarrow as pa

    parts = [_rows(first, min(ROWS_PER_PART, rows - first)) for first in range(0, rows, ROWS_PER_PART)]
    return _written(settings, pa.concat_tables(parts), date(2024, 1, 1), settings.trino_schema)


def _written(settings: Settings, rows: pa.Table, day: date, batch_id: str) -> Batch:
    interval = Interval(day, day + timedelta(days=1))
    writer = Lake(settings).writer(COMMODITY_PRICES.name, interval, batch_id)
    writer.add(rows)
    return writer.commit(
        Manifest(
            dataset=COMMODITY_PRICES.name, tenant=settings.tenant, batch_id=batch_id, step="transform", step_version=1,
            run_id="bench", interval_start=interval.start, interval_end=interval.end,
            created_at=datetime(2024, 6, 1, tzinfo=UTC),
        )
    )  # fmt: skip
