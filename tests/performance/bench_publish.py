"""How fast a batch is published, beside a bare producer loop over ready bytes on the same broker in the same run.

``python tests/performance/bench_publish.py --rows 1000000`` needs engines that are up (`marketdata engines up`).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

from marketdata import datasets
from marketdata.batches import Batch, Interval, Lake, Manifest
from marketdata.settings import Settings, load

DATASET = datasets.COMMODITY_PRICES
BARE_ROWS = 1_000_000
"""Most messages of the bare loop, which holds them all."""

ROUNDS = 3
"""Other work on the machine comes and goes: the median round counts."""


def run(rows: int, settings: Settings) -> dict[str, Any]:
    """Publish `rows` new records, then the same ones again in another batch; each step in a process of its own.

    Returns:
        rows/s and peak memory of each step in the median round; ``ratio`` is publishing against the bare loop.
    """
    first, again = (_step("make", settings, str(rows))["uri"] for _ in range(2))
    rounds = []
    for _ in range(ROUNDS if rows <= BARE_ROWS else 1):
        with _topics(settings) as own:
            bare = _step("bare", own, first)
        with _topics(settings) as own:
            published = _step("publish", own, first)
            repeat = _step("publish", own, again)
        rounds.append((published["rows_per_second"] / bare["rows_per_second"], published, repeat, bare))
    rounds.sort(key=lambda one: one[0])
    ratio, published, repeat, bare = rounds[len(rounds) // 2]
    return {
        "rows": rows,
        "publish": published,
        "nothing_new": repeat,
        "bare": bare,
        "ratio": ratio,
        "ratios": [one[0] for one in rounds],
    }


def make(settings: Settings, rows: int) -> dict[str, Any]:
    """A batch of records that look like five commodities' minutes."""
    import duckdb

    schema = DATASET.arrow_schema()
    lake = Lake(settings)
    interval = Interval(date(2026, 1, 1), date(2026, 1, 2))
    batch_id = uuid.uuid4().hex[:16]
    writer = lake.writer(DATASET.name, interval, batch_id)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for first in range(0, rows, 250_000):
        table = connection.sql(_ROWS, params=[batch_id, first, min(first + 250_000, rows)]).to_arrow_table()
        writer.add(table.select(schema.names).cast(schema))
    batch = writer.commit(
        Manifest(
            dataset=DATASET.name,
            tenant=settings.tenant,
            batch_id=batch_id,
            step="transform",
            step_version=1,
            run_id="bench",
            interval_start=interval.start,
            interval_end=interval.start + timedelta(days=1),
            created_at=datetime.now(UTC),
        )
    )
    return {"uri": batch.uri}


def publish(settings: Settings, batch: Batch) -> dict[str, Any]:
    import duckdb  # noqa: F401 - importing is no part of publishing
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    from marketdata.streaming.publish import publish as exactly_once

    began = time.perf_counter()
    published = exactly_once(DATASET, batch, settings)
    seconds = time.perf_counter() - began
    return {
        "rows_per_second": batch.manifest.rows / seconds,
        "seconds": {**published.seconds, "total": round(seconds, 3)},
        "published": published.published,
        "already_published": published.already_published,
    }


def bare(settings: Settings, batch: Batch) -> dict[str, Any]:
    """The least a Python producer can do: the same settings, bytes that are ready, produce and poll."""
    from confluent_kafka import Producer

    from marketdata.streaming.encode import messages
    from marketdata.streaming.fold import workspace
    from marketdata.streaming.publish import producer_settings

    ready: list[tuple[bytes, bytes]] = []
    with workspace() as connection:
        for table in batch.tables():
            for keys, values in messages(connection, DATASET, table):
                ready += zip(keys, values, strict=True)
            if len(ready) >= BARE_ROWS:
                break
    del ready[BARE_ROWS:]
    producer = Producer(producer_settings(settings, None, []))
    topic = settings.kafka_topic
    began = time.perf_counter()
    for key, value in ready:
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    producer.flush()
    return {"rows_per_second": len(ready) / (time.perf_counter() - began)}


def _step(name: str, settings: Settings, argument: str) -> dict[str, Any]:
    values = settings.model_dump(mode="json", exclude_none=True)
    if settings.postgres_dsn:
        values["postgres_dsn"] = settings.postgres_dsn.get_secret_value()
    # The settings carry a password: they go through a pipe, not through the command line.
    child = subprocess.run(
        [sys.executable, __file__, "--step", name, "--argument", argument],
        input=json.dumps(values),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(child.stdout)
    return result


@contextmanager
def _topics(settings: Settings) -> Iterator[Settings]:
    """Settings with topics of their own, which nothing has been published to."""
    from marketdata.streaming import topics
    from marketdata.streaming.brokers import outcome, reach

    own = settings.model_copy(update={"kafka_topic": f"bench-{uuid.uuid4().hex[:12]}"})
    topics.apply(own)
    try:
        yield own
    finally:
        cluster = reach(own)
        for future in cluster.admin.delete_topics([own.kafka_topic, f"{own.kafka_topic}-ledger"]).values():
            outcome(future, cluster, "deleting the topics of the benchmark")


def _child(name: str, argument: str) -> None:
    settings = Settings(**json.load(sys.stdin))
    if name == "make":
        result = make(settings, int(argument))
    else:
        result = {"publish": publish, "bare": bare}[name](settings, Lake(settings).open(argument))
    result["peak_megabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    json.dump(result, sys.stdout)


_ROWS = """
SELECT sha256('bench' || i) AS record_id, 'default' AS tenant,
    ['Gold', 'Silver', 'Copper', 'Oil', 'Natural Gas'][1 + i % 5] AS commodity,
    ['LBMA', 'LBMA', 'LME', 'WTI', 'Henry Hub'][1 + i % 5] AS series, 'daily' AS frequency,
    CAST((i % 9999991 + 100) / 7.0 AS DECIMAL(18,6)) AS price, 'USD' AS currency,
    ['troy_oz', 'troy_oz', 'tonne', 'bbl', 'mmbtu'][1 + i % 5] AS unit,
    CASE WHEN i % 3 = 0 THEN CAST(i % 1000003 AS DECIMAL(18,4)) END AS volume, 'worldbank' AS source,
    TIMESTAMPTZ '1960-01-01 00:00:00+00' + INTERVAL (i // 5) MINUTE AS event_time,
    CAST(event_time AS DATE) AS price_date, TIMESTAMPTZ '2026-01-01 02:00:01.123456+00' AS as_of, as_of AS ingested_at,
    'scheduled__2026-01-01T02:00:00+00:00' AS run_id, $1 AS batch_id, sha256('content' || i) AS content_hash,
    CAST(1 AS INTEGER) AS schema_version
FROM range($2, $3) AS numbers(i)
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--step", choices=["make", "publish", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--argument", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        _child(arguments.step, arguments.argument)
    else:
        json.dump(run(arguments.rows, load()), sys.stdout, indent=1)
