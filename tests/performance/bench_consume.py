"""How fast the streaming consumer drains a backlog, beside a bare consumer that only counts, and how far it lags.

``python -m tests.performance.bench_consume --rows 1000000`` needs engines that are up (`marketdata engines up`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from marketdata.datasets import COMMODITY_PRICES
from marketdata.settings import Settings, load
from tests.performance.memory import peak_megabytes

ROUNDS = 3
"""Other work on the machine comes and goes: the median round counts."""

STEADY_RATES = (10_000, 35_000)
"""Messages/s; five times the baseline of 7,153 are 35,765 (R5.3)."""

STEADY_SECONDS = 20
DAY_ROWS = 1_000_000
DAY_SECONDS = 60
"""The day's messages (R5.2) come in one minute."""

PIECE = 100
"""Messages sent at once by a producer that keeps to a rate."""


def run(rows: int, settings: Settings) -> dict[str, Any]:
    """Drain `rows` messages, bare and ours, each in a process of its own; keep up with steady rates, and with a day.

    Two shapes of the same load: ``ticks`` come at 10,000 a second of event time, so that a window holds 120,000 prices
    of each series; ``archive`` has a window for every price, the most that storing can cost.

    Returns:
        messages/s and peak memory of each in the median round, ``ratio`` being ours against bare; of each steady
        rate and of the ``day`` how late records are; of the day also what was lost or stored wrongly, and memory.
    """
    found: dict[str, Any] = {}
    for shape, count, times in (("ticks", rows, ROUNDS), ("archive", rows // 5, 1)):
        with _topics(settings) as own:
            _step("produce", own, shape=shape, rows=count)
            rounds = []
            for _ in range(times):
                bare = _step("bare", own, rows=count)
                ours = _step("ours", _anew(own), rows=count)
                rounds.append({"bare": bare, "ours": ours, "ratio": ours["per_second"] / bare["per_second"]})
        found[shape] = {"rows": count, **sorted(rounds, key=lambda one: one["ratio"])[times // 2]}
    for rate in STEADY_RATES:
        with _topics(settings) as own:
            found[f"steady_{rate}"] = _step("steady", own, rows=rate * STEADY_SECONDS, rate=rate)
    with _topics(settings) as own:
        found["day"] = _step("day", own, rows=DAY_ROWS, rate=DAY_ROWS // DAY_SECONDS)
    found["load"] = os.getloadavg()[0]
    return found


def produce(settings: Settings, rows: int, shape: str, rate: int | None = None) -> dict[str, Any]:
    """Fill the topic with ready messages; no ledger, no transaction.

    Args:
        rate: messages/s; each waits for its time. Default: as fast as they go.
    """
    from confluent_kafka import Producer

    producer = Producer(
        {"bootstrap.servers": settings.require("kafka_brokers"), "partitioner": "murmur2_random", "linger.ms": 5}
    )
    if rate is None:
        for keys, values in _messages(rows, shape, time.time()):
            _send(producer, settings.kafka_topic, keys, values)
        return {"left": producer.flush(60)}
    ready = time.time() + rows / 40_000 + 3
    pieces = [
        (keys[first : first + PIECE], values[first : first + PIECE])
        for keys, values in _messages(rows, shape, ready, rate)
        for first in range(0, len(keys), PIECE)
    ]
    began = time.time()
    for number, (keys, values) in enumerate(pieces):
        time.sleep(max(0.0, ready + (number + 1) * PIECE / rate - time.time()))
        _send(producer, settings.kafka_topic, keys, values)
    left = producer.flush(60)
    return {"left": left, "rate": round(rows / (time.time() - max(began, ready)))}


def _send(producer: Any, topic: str, keys: list[bytes], values: list[bytes]) -> None:
    for key, value in zip(keys, values, strict=True):
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.1)
    producer.poll(0)


def _messages(rows: int, shape: str, now: float, rate: int | None = None) -> Iterator[tuple[list[bytes], list[bytes]]]:
    from marketdata.datasets.conform import connect
    from marketdata.streaming.encode import messages

    step = {"archive": 12_000_000, "day": 86_400_000_000 // rows}.get(shape, 1_000_000 // (rate or STEADY_RATES[0]))
    # The day is the one before yesterday: its last windows need not wait for the clock.
    start = int(now * 1e6) - {"steady": 0, "day": 2 * 86_400_000_000}.get(shape, rows * step)
    due = 1e6 / rate if rate else 0.0
    with connect() as connection:
        for first in range(0, rows, 100_000):
            last = min(first + 100_000, rows)
            table = connection.sql(_ROWS, params=[step, start, first, last, now * 1e6, due]).to_arrow_table()
            yield from messages(connection, COMMODITY_PRICES, table.cast(COMMODITY_PRICES.arrow_schema()))


def bare(settings: Settings, rows: int) -> dict[str, Any]:
    """A consumer that only counts."""
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            "bootstrap.servers": settings.require("kafka_brokers"), "group.id": f"bare-{uuid.uuid4().hex}",
            "auto.offset.reset": "earliest", "isolation.level": "read_committed", "enable.auto.commit": False,
        }
    )  # fmt: skip
    consumer.subscribe([settings.kafka_topic])
    seen, began = 0, 0.0
    while seen < rows:
        found = len(consumer.consume(10_000, 0.05))
        if found and not seen:
            began = time.perf_counter()
        seen += found
    seconds = time.perf_counter() - began
    consumer.close()
    return {"per_second": round(rows / seconds)}


def ours(settings: Settings, rows: int) -> dict[str, Any]:
    """The consumer with its topic sink, until PostgreSQL says that every record is stored."""
    with _running(settings) as (progress, _):
        while not progress.assigned:
            time.sleep(0.005)
        began = time.perf_counter()
        while (stored := _stored(settings)) < rows:
            time.sleep(0.05)
        seconds = time.perf_counter() - began
    return {"per_second": round(rows / seconds), "stored": stored}


def steady(settings: Settings, rows: int, rate: int) -> dict[str, Any]:
    """A producer at a steady rate; how old each record is when it is in its window, from when it was due to be sent."""
    return _keep_up(settings, rows, rate, "steady", time.sleep, dict)


def day(settings: Settings, rows: int, rate: int) -> dict[str, Any]:
    """A day of event time at a steady rate: what is stored is compared with what was sent, by set and by sum."""
    import psutil

    process = psutil.Process()
    resident: list[int] = []

    def wait(seconds: float) -> None:
        resident.append(process.memory_info().rss)
        time.sleep(seconds)

    found = _keep_up(settings, rows, rate, "day", wait, lambda: _compared(settings, rows))
    quarter = len(resident) // 4
    early, late = (
        sorted(part)[len(part) // 2] >> 20 for part in (resident[quarter : 2 * quarter], resident[-quarter:])
    )
    return {
        **found,
        "resident_megabytes": {"second_quarter": early, "last_quarter": late},
    }


def _keep_up(
    settings: Settings,
    rows: int,
    rate: int,
    shape: str,
    wait: Callable[[float], None],
    check: Callable[[], dict[str, int]],
) -> dict[str, Any]:
    import numpy as np

    ages: list[Any] = []
    with _running(settings, ages) as (progress, _), ThreadPoolExecutor(1) as beside:
        while not progress.assigned:
            time.sleep(0.005)
        sending = beside.submit(_step, "produce", settings, rows=rows, shape=shape, rate=rate)
        while not ages and not sending.done():
            time.sleep(0.05)
        while _stored(settings) < rows:
            wait(0.5)
        sent = sending.result()
        checked = check()
    found = np.concatenate(ages)
    p50, p99 = np.percentile(found, [50, 99])
    return {
        "rate": sent["rate"], "p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(found.max(), 3),
        **checked,
    }  # fmt: skip


def _compared(settings: Settings, rows: int) -> dict[str, int]:
    """Records that are in no window, that no one sent, and by how much the prices' sum is off (millionths)."""
    import duckdb
    import numpy as np

    from marketdata.streaming.window_store import connected
    from marketdata.streaming.windows import MEMBER

    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE sent AS SELECT unhex(sha256('content' || i)[1:16]) AS content, "
            "CAST((i % 9999991 + 100) / 7.0 AS DECIMAL(18,6)) AS price FROM range($1) AS numbers(i)",
            [rows],
        )
        hashes = connection.sql("SELECT content FROM sent").to_arrow_table()["content"].to_pylist()
        ((total,),) = connection.sql("SELECT CAST(sum(price) * 1000000 AS HUGEINT) FROM sent").fetchall()
    expected = np.frombuffer(b"".join(hashes), ">u8").astype("u8")
    deadline = time.monotonic() + 30
    while True:
        with connected(settings) as postgres:
            stored = postgres.execute(
                "SELECT members FROM marketdata.price_windows JOIN marketdata.price_series USING (series_id) "
                "WHERE consumer_group = %s",
                (settings.analytics_group,),
            ).fetchall()
        members = np.concatenate([np.frombuffer(some, MEMBER) for (some,) in stored])
        if len(members) >= rows or time.monotonic() > deadline:  # the last windows are stored when they have been quiet
            break
        time.sleep(0.5)
    return {
        "lost": len(np.setdiff1d(expected, members["content"])),
        "not_sent": len(np.setdiff1d(members["content"], expected)),
        "twice": len(members) - len(np.unique(members["content"])),
        "sum_off": int(members["price"].sum()) - int(total),
    }


@contextmanager
def _running(settings: Settings, ages: list[Any] | None = None) -> Iterator[tuple[Any, Any]]:
    from marketdata.streaming.analytics import Analytics, TopicSinks
    from marketdata.streaming.service import Courier, Measures, Progress

    measures = Measures("bench", "streaming", settings.analytics_group, settings.kafka_topic)
    if ages is not None:
        measures.latencies = ages.append  # type: ignore[method-assign]
    progress = Progress()
    stop = threading.Event()
    consumer = Analytics(settings, measures, progress, lambda _changes: None, wake=lambda: courier.wake())
    courier = Courier("topics", 1.0, TopicSinks(settings, lambda: consumer.feeds).deliver, measures)

    def consume() -> None:
        try:
            consumer.run(stop)
        except BaseException:
            traceback.print_exc()
            os._exit(70)  # whoever waits for its records would wait for ever

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        yield progress, measures
    finally:
        stop.set()
        thread.join()
        courier.stop(30)


def _stored(settings: Settings) -> int:
    from marketdata.streaming.window_store import connected

    with connected(settings) as postgres:
        (records,) = postgres.execute(
            "SELECT coalesce(sum(records), 0) FROM marketdata.analytics_feeds WHERE consumer_group = %s",
            (settings.analytics_group,),
        ).fetchone() or (0,)
    return int(records)


def _anew(settings: Settings) -> Settings:
    """The same topic for a group that has read nothing of it."""
    return settings.model_copy(update={"analytics_group": f"bench-{uuid.uuid4().hex[:12]}"})


@contextmanager
def _topics(settings: Settings) -> Iterator[Settings]:
    from marketdata.streaming import topics
    from marketdata.streaming.brokers import outcome, reach

    name = f"bench-{uuid.uuid4().hex[:12]}"
    own = _anew(settings.model_copy(update={"kafka_topic": name, "analytics_topic": f"{name}-aggregates"}))
    topics.apply(own)
    try:
        yield own
    finally:
        cluster = reach(own)
        mine = [topic for topic in cluster.metadata.topics if topic.startswith(name)]
        for future in cluster.admin.delete_topics(mine).values():
            outcome(future, cluster, "deleting the topics of the benchmark")


def _step(name: str, settings: Settings, **arguments: Any) -> Any:
    values = {
        field: getattr(settings, field)
        for field in ("kafka_brokers", "kafka_topic", "analytics_topic", "analytics_group", "lake_uri")
    } | {"postgres_dsn": settings.require("postgres_dsn")}
    module = "tests.performance.bench_consume"
    done = subprocess.run(
        [sys.executable, "-m", module, "--step", name, "--argument", json.dumps(arguments)],
        input=json.dumps(values), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _child(name: str, arguments: dict[str, Any]) -> None:
    settings = Settings(**json.load(sys.stdin))
    result = {"produce": produce, "bare": bare, "ours": ours, "steady": steady, "day": day}[name](settings, **arguments)
    result["peak_megabytes"] = peak_megabytes()
    json.dump(result, sys.stdout)


_ROWS = """
SELECT sha256('bench' || i) AS record_id, 'default' AS tenant,
    ['Gold', 'Silver', 'Copper', 'Oil', 'Natural Gas'][1 + i % 5] AS commodity,
    ['LBMA', 'LBMA', 'LME', 'WTI', 'Henry Hub'][1 + i % 5] AS series, 'daily' AS frequency,
    CAST((i % 9999991 + 100) / 7.0 AS DECIMAL(18,6)) AS price, 'USD' AS currency,
    ['troy_oz', 'troy_oz', 'tonne', 'bbl', 'mmbtu'][1 + i % 5] AS unit,
    CAST(NULL AS DECIMAL(18,4)) AS volume, 'worldbank' AS source,
    make_timestamp($2 + i * $1) AT TIME ZONE 'UTC' AS event_time, CAST(event_time AS DATE) AS price_date,
    make_timestamp(CAST($5 + i * $6 AS BIGINT)) AT TIME ZONE 'UTC' AS as_of,
    as_of AS ingested_at,
    'scheduled__2026-01-01T02:00:00+00:00' AS run_id, 'bench' AS batch_id, sha256('content' || i) AS content_hash,
    CAST(1 AS INTEGER) AS schema_version
FROM range($3, $4) AS numbers(i)
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--step", choices=["produce", "bare", "ours", "steady", "day"], help=argparse.SUPPRESS)
    parser.add_argument("--argument", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        _child(given.step, given.argument)
    else:
        json.dump(run(given.rows, load()), sys.stdout, indent=1)
