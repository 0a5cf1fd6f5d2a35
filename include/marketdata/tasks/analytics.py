"""`marketdata analytics`: the streaming consumer and its sinks, from start to the end of the process."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from marketdata.batches import Batch, Interval, Lake, Manifest, content_id, now
from marketdata.datasets.commodity_aggregates import COMMODITY_AGGREGATES
from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.datasets.conform import connect
from marketdata.lakehouse import open_lakehouse
from marketdata.settings import Settings
from marketdata.streaming.analytics import Analytics, TopicSinks
from marketdata.streaming.group import Group
from marketdata.streaming.price_moves import SERVICE, teller
from marketdata.streaming.service import Courier, Measures, Progress, serve
from marketdata.streaming.topics import records_topic
from marketdata.streaming.window_sinks import changes
from marketdata.streaming.window_store import connected

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

TOPIC_SECONDS = 1.0
LAKE_SECONDS = 300.0
"""One commit and a file a month touched, at most so often, by whichever member comes first."""

GROUP_SECONDS = 10.0
"""Between two looks at the group: longer than a rebalance takes."""

LAKE_ROWS = 100_000
"""Windows in one commit."""

LEAVING_SECONDS = 10.0
"""For the sinks, after the last checkpoint: together with it less than the 30 s until a pod is killed."""

_LOCK = 0x6C616B65  # "lake"
# Longer than a load takes, and the session is idle meanwhile: one whose process was stopped lets the others load.
_NO_LOCK_OUTLIVES_A_SLEEPER = "SELECT set_config('idle_in_transaction_session_timeout', '15min', true)"
_NEWEST = """
SELECT * FROM changed
QUALIFY row_number() OVER (PARTITION BY record_id ORDER BY as_of DESC, content_hash DESC) = 1
ORDER BY record_id
"""


def analytics(settings: Settings) -> None:
    """Consume until SIGTERM or Ctrl-C.

    Raises:
        MarketdataError: whatever makes this process useless; a restart takes up where it stopped.
    """
    stop = threading.Event()
    topic = records_topic(settings, COMMODITY_PRICES)
    for address in ("kafka_brokers", "postgres_dsn", "lake_uri"):
        settings.require(address)
    measures = Measures(SERVICE, "streaming", settings.analytics_group, topic)
    progress = Progress(turned=time.monotonic())
    with _signals(stop), serve(settings.analytics_port, measures.registry, progress) as port:
        log.info("serving metrics and health", extra={"port": port})
        consumer = Analytics(settings, measures, progress, teller(settings), wake=lambda: topics.wake())
        sinks = TopicSinks(settings, lambda: consumer.feeds)
        topics = Courier("topics", TOPIC_SECONDS, sinks.deliver, measures)
        lake = Courier("lake", LAKE_SECONDS, lambda: load_changes(settings), measures)
        group = Courier("group", GROUP_SECONDS, Group(settings, topic, consumer.member).tend, measures)
        patience = 0.0  # whoever takes over from a member that failed also takes over its sinks
        try:
            consumer.run(stop)
            patience = LEAVING_SECONDS
        finally:
            deadline = time.monotonic() + patience
            for courier in (topics, lake, group):
                courier.stop(deadline - time.monotonic())
            sinks.close()
    log.info("left in good order")


def load_changes(settings: Settings) -> int:
    """Merge the windows that changed since the last load into the table, in one commit; how many those were.

    Any member loads for all partitions, one at a time. A load that was cut short of its mark is repeated, and the
    merge finds that the table has those rows.
    """
    loaded = 0
    with connected(settings) as postgres:
        while rows := _load_some(settings, postgres):
            loaded += rows
    return loaded


def _load_some(settings: Settings, postgres: Any) -> int:
    with postgres.transaction():
        postgres.execute(_NO_LOCK_OUTLIVES_A_SLEEPER)
        if postgres.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,)).fetchone() != (True,):
            return 0
        found = _unloaded(settings, postgres)
        if found is None:
            return 0
        batch, marks = found
        if batch is not None:
            open_lakehouse(settings).load(COMMODITY_AGGREGATES, batch)
        for feed_id, upto in marks.items():
            postgres.execute("UPDATE marketdata.analytics_feeds SET loaded = %s WHERE feed_id = %s", (upto, feed_id))
    return 0 if batch is None else batch.manifest.rows


def _unloaded(settings: Settings, postgres: Any) -> tuple[Batch | None, dict[int, int]] | None:
    """A batch of changed windows, and up to which change of each feed it goes; None where nothing has changed."""
    import pyarrow as pa

    feeds = postgres.execute(
        "SELECT feed_id, loaded, least(sequence, loaded + %s) FROM marketdata.analytics_feeds "
        "WHERE consumer_group = %s AND topic = %s AND sequence > loaded ORDER BY feed_id",
        (LAKE_ROWS, settings.analytics_group, records_topic(settings, COMMODITY_PRICES)),
    ).fetchall()
    if not feeds:
        return None
    marks = {feed_id: upto for feed_id, _, upto in feeds}
    rows = _newest(pa.concat_tables([changes(postgres, feed_id, after, upto) for feed_id, after, upto in feeds]))
    if not len(rows):
        return None, marks
    moment = now()
    day = Interval(moment.date(), moment.date() + timedelta(days=1))
    # Numbers alone do not say what they number: a PostgreSQL that has gone back gives them again.
    batch_id = content_id("analytics", settings.analytics_group, feeds, rows["content_hash"].to_pylist())
    writer = Lake(settings).writer(COMMODITY_AGGREGATES.name, day, batch_id)
    writer.add(rows)
    manifest = Manifest(
        dataset=COMMODITY_AGGREGATES.name, tenant=settings.tenant, batch_id=batch_id, step="analytics", step_version=1,
        run_id=SERVICE, interval_start=day.start, interval_end=day.end, created_at=moment,
    )  # fmt: skip
    return writer.commit(manifest), marks


def _newest(rows: pa.Table) -> pa.Table:
    """Of each record the latest revision: a series that came under two commodities has two windows of one identity."""
    with connect() as duckdb:
        duckdb.register("changed", rows)
        found: pa.Table = duckdb.sql(_NEWEST).to_arrow_table()
    return found.cast(rows.schema)


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
