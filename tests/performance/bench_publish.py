"""How fast a batch is published, beside a bare producer loop over ready bytes on the same brokers in the same run.

``python -m tests.performance.bench_publish --rows 1000000`` needs engines that are up (`marketdata engines up`);
``--three`` takes three brokers of its own, with replication 3, and what else people publish with beside ours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from marketdata import datasets
from marketdata.batches import Batch, Interval, Lake, Manifest
from marketdata.settings import CHECKOUT, Settings, load
from tests.performance.memory import peak_megabytes
from tests.waiting import until

if TYPE_CHECKING:
    import pyarrow as pa

DATASET = datasets.COMMODITY_PRICES
BARE_ROWS = 1_000_000
"""Most messages of the bare loop, which holds them all."""

THREE_ROWS = 1_000_000
"""A day's messages (R5.2)."""

BURST_ROWS = 100_000
POLL_EVERY = 10_000
"""Messages between two polls of a bare loop; polling after each would cost it a tenth of its time."""

OTHER_BYTES = 150
OTHER_MESSAGES = 300_000
OTHER_CLIENTS = ("aiokafka==0.14.0", "cramjam==2.14.0", "kafka-python==3.0.12", "lz4==4.4.5")
"""Installed into build/ the first time; the second and the fourth compress for the others."""

SLOW_MESSAGES = 50_000
"""Of clients that take minutes for more."""

ROUNDS = 3
"""Other work on the machine comes and goes: the median round counts."""

THREE_ROUNDS = 5
RESTING_PERCENT = 25
"""Of all processors; three idle brokers alone take a tenth."""


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


def run_three(settings: Settings) -> dict[str, Any]:
    """On three brokers: publishing against a bare loop within one transaction, the burst, and other clients.

    Returns:
        ``ratio``: `THREE_ROWS` records published, against the same bytes sent by a bare loop, both in one transaction;
        ``burst``: seconds for `BURST_ROWS` records; ``others``: messages/s of `OTHER_BYTES` bytes by client, None
        where it is not installed.
    """
    from tests.engines.kafka import brokers

    with tempfile.TemporaryDirectory(prefix="marketdata-bench-") as folder, brokers(Path(folder)) as cluster:
        three = settings.model_copy(update={"kafka_brokers": cluster.addresses})
        batch, burst = (_step("make", three, str(rows))["uri"] for rows in (THREE_ROWS, BURST_ROWS))
        with _topics(three) as own:
            _step("bare_transaction", own, batch)  # the brokers' code is compiled by then
        rounds = []
        for _ in range(THREE_ROUNDS):
            with _topics(three) as own:
                alone = _step("bare_transaction", own, batch)
            with _topics(three) as own:
                published = _step("publish", own, batch)
            rounds.append((published["rows_per_second"] / alone["rows_per_second"], published, alone))
        rounds.sort(key=lambda one: one[0])
        ratio, published, alone = rounds[len(rounds) // 2]
        bursts = []
        for _ in range(THREE_ROUNDS):
            with _topics(three) as own:
                bursts.append(_step("publish", own, burst)["seconds"]["total"])
        others = {}
        for name, measure in OTHERS.items():
            with _topics(three) as own:
                others[name] = measure(own)
        return {
            "rows": THREE_ROWS,
            "publish": published,
            "bare": alone,
            "ratio": ratio,
            "ratios": [one[0] for one in rounds],
            "burst": {"rows": BURST_ROWS, "seconds": sorted(bursts)},
            "others": others,
            "load": os.getloadavg()[0],
        }


def make(settings: Settings, rows: int) -> dict[str, Any]:
    """A batch of `records`."""
    lake = Lake(settings)
    interval = Interval(date(2026, 1, 1), date(2026, 1, 2))
    batch_id = uuid.uuid4().hex[:16]
    writer = lake.writer(DATASET.name, interval, batch_id)
    for first in range(0, rows, 250_000):
        writer.add(records(first, min(first + 250_000, rows), batch_id))
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


def records(first: int, last: int, batch_id: str) -> pa.Table:
    """Records that look like five commodities' minutes."""
    from marketdata.datasets.conform import connect

    schema = DATASET.arrow_schema()
    with connect() as connection:
        return connection.sql(_ROWS, params=[batch_id, first, last]).to_arrow_table().select(schema.names).cast(schema)


def publish(settings: Settings, batch: Batch) -> dict[str, Any]:
    import duckdb  # noqa: F401 - importing is no part of publishing
    import psycopg  # noqa: F401
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
    return _bare(settings, batch, None)


def bare_transaction(settings: Settings, batch: Batch) -> dict[str, Any]:
    """The same in one transaction, from its beginning to its commit."""
    return _bare(settings, batch, uuid.uuid4().hex)


def _bare(settings: Settings, batch: Batch, transactional_id: str | None) -> dict[str, Any]:
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
    producer = Producer(producer_settings(settings, transactional_id, []))
    topic = settings.kafka_topic
    if transactional_id:
        producer.init_transactions(30)
    began = time.perf_counter()
    if transactional_id:
        producer.begin_transaction()
    _put(producer, topic, ready)
    if transactional_id:
        producer.commit_transaction(30)
    return {
        "rows_per_second": len(ready) / (time.perf_counter() - began),
        "bytes_per_message": round(sum(len(value) for _, value in ready) / len(ready)),
    }


def _put(producer: Any, topic: str, messages: list[tuple[bytes, bytes]]) -> None:
    """The client's fastest way to take ready bytes (`bench_encode`): ``produce`` in a loop, polled now and then."""
    for first in range(0, len(messages), POLL_EVERY):
        for key, value in messages[first : first + POLL_EVERY]:
            while True:
                try:
                    producer.produce(topic, value, key)
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)
    producer.flush()


def _confluent(settings: Settings) -> float:
    """confluent-kafka, set up as ours but without a transaction."""
    from confluent_kafka import Producer

    from marketdata.streaming.publish import producer_settings

    producer = Producer(producer_settings(settings, None, []))
    messages = _short_messages(OTHER_MESSAGES)
    began = time.perf_counter()
    _put(producer, settings.kafka_topic, messages)
    return len(messages) / (time.perf_counter() - began)


def _java(settings: Settings) -> float:
    """Kafka's own ``ProducerPerformance`` with the others' values, its start not counted; its messages have no key."""
    from marketdata.engines.kafka import _java as java

    with tempfile.NamedTemporaryFile(prefix="marketdata-bench-") as payload:
        payload.write(b"\n".join(value for _, value in _short_messages(OTHER_MESSAGES)))
        payload.flush()
        command = [
            *java(print), "org.apache.kafka.tools.ProducerPerformance", "--topic", settings.kafka_topic,
            "--num-records", str(OTHER_MESSAGES), "--payload-file", payload.name, "--throughput", "-1",
            "--producer-props", f"bootstrap.servers={settings.kafka_brokers}", "acks=all", "enable.idempotence=true",
            "compression.type=lz4", "linger.ms=10",
        ]  # fmt: skip
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(re.findall(r"([\d.]+) records/sec", told)[-1])


def _aiokafka(settings: Settings) -> float | None:
    return _in_other_environment(_AIOKAFKA, settings, OTHER_MESSAGES)


def _kafka_python(settings: Settings) -> float | None:
    return _in_other_environment(_KAFKA_PYTHON, settings, SLOW_MESSAGES)


def _in_other_environment(script: str, settings: Settings, count: int) -> float | None:
    """Messages/s of a client that is no dependency of ours; None where it cannot be installed."""
    folder = CHECKOUT / "build" / "bench" / "-".join(OTHER_CLIENTS)
    if not folder.exists():
        forming = folder.with_name("other-clients.forming")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(forming), *OTHER_CLIENTS]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            return None
        forming.rename(folder)
    ran = subprocess.run(
        [sys.executable, "-c", script, settings.require("kafka_brokers"), settings.kafka_topic],
        input=json.dumps([(key.decode(), value.decode()) for key, value in _short_messages(count)]),
        stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    return float(ran.stdout)


def _short_messages(count: int) -> list[tuple[bytes, bytes]]:
    names = [b"Gold", b"Silver", b"Copper", b"Oil", b"Natural Gas"]
    values = (
        json.dumps({"commodity": names[i % 5].decode(), "price": i % 99991 / 7, "timestamp": 1767225600000000 + i})
        for i in range(count)
    )
    return [(names[i % 5], f'{value[:-1]}, "x": "{"":.<{OTHER_BYTES}}'.encode()[: OTHER_BYTES - 2] + b'"}')
            for i, value in enumerate(values)]  # fmt: skip


OTHERS = {
    "confluent-kafka": _confluent,
    "Java ProducerPerformance": _java,
    "aiokafka": _aiokafka,
    "kafka-python": _kafka_python,
}

_AIOKAFKA = """
import asyncio, json, sys, time
from aiokafka import AIOKafkaProducer
brokers, topic = sys.argv[1:]
messages = [(key.encode(), value.encode()) for key, value in json.load(sys.stdin)]
async def main():
    producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all", enable_idempotence=True, linger_ms=10,
        compression_type="lz4")
    await producer.start()
    began = time.perf_counter()
    for key, value in messages:
        last = await producer.send(topic, value, key)
    await producer.flush()
    print(len(messages) / (time.perf_counter() - began))
    await producer.stop()
asyncio.run(main())
"""
_KAFKA_PYTHON = """
import json, sys, time
from kafka import KafkaProducer
brokers, topic = sys.argv[1:]
messages = [(key.encode(), value.encode()) for key, value in json.load(sys.stdin)]
producer = KafkaProducer(bootstrap_servers=brokers, acks="all", enable_idempotence=True, linger_ms=10,
    compression_type="lz4")
began = time.perf_counter()
for key, value in messages:
    producer.send(topic, value, key)
producer.flush()
print(len(messages) / (time.perf_counter() - began))
"""


def _step(name: str, settings: Settings, argument: str) -> dict[str, Any]:
    values = settings.model_dump(mode="json", exclude_none=True)
    if settings.postgres_dsn:
        values["postgres_dsn"] = settings.postgres_dsn.get_secret_value()
    # The settings carry a password: they go through a pipe, not through the command line.
    child = subprocess.run(
        [sys.executable, "-m", "tests.performance.bench_publish", "--step", name, "--argument", argument],
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
    _rested()
    try:
        yield own
    finally:
        cluster = reach(own)
        for future in cluster.admin.delete_topics([own.kafka_topic, f"{own.kafka_topic}-ledger"]).values():
            outcome(future, cluster, "deleting the topics of the benchmark")


def _rested() -> None:
    """Brokers go on working on what they were sent before; who comes next would pay for it."""
    with suppress(AssertionError):
        until("the machine rests", lambda: psutil.cpu_percent(0.5) < RESTING_PERCENT)


def _child(name: str, argument: str) -> None:
    settings = Settings(**json.load(sys.stdin))
    if name == "make":
        result = make(settings, int(argument))
    else:
        result = {"publish": publish, "bare": bare, "bare_transaction": bare_transaction}[name](
            settings, Lake(settings).open(argument)
        )
    result["peak_megabytes"] = peak_megabytes()
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
    parser.add_argument("--three", action="store_true")
    parser.add_argument("--step", choices=["make", "publish", "bare", "bare_transaction"], help=argparse.SUPPRESS)
    parser.add_argument("--argument", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        _child(arguments.step, arguments.argument)
    else:
        json.dump(run_three(load()) if arguments.three else run(arguments.rows, load()), sys.stdout, indent=1)
