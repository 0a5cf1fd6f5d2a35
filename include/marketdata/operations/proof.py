"""What was sent, what the topic holds and what the windows hold, compared by sets of record ids and exact sums."""

from __future__ import annotations

import time
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from marketdata.operations.traffic import Traffic
from marketdata.settings import Settings
from marketdata.streaming.brokers import bounds, reach, read_committed
from marketdata.streaming.fold import workspace
from marketdata.streaming.window_store import connected

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

WINDOW_SECONDS = 60.0
"""For the last windows to be handed on: 5 s of quiet, and what it takes to store them."""


def prove(traffic: Traffic) -> dict[str, float | None]:
    """The figures of `judge.NOTHING_LOST`, but for lag.

    Raises:
        UnavailableError: an engine does not answer.
        TryLaterError: somebody else's transaction hides the end of the topic.
    """
    own = traffic.own
    with workspace() as duck:
        traffic.create_table(duck)
        held = _read_topic(duck, own)
        figures = _each_once(duck, traffic.undelivered)
        records, letters = _read_windows(duck, own)
        figures |= {name: _figure(duck, sql) for name, sql in _WINDOWS.items()}
    return {
        **figures,
        "success_percent": 100.0 * traffic.acknowledged / traffic.sent if traffic.sent else None,
        "miscounted": abs(records + letters - held),
        "dead_letters": letters,
    }


def prove_topic(own: Settings, sent: pa.Table) -> dict[str, float | None]:
    """The figures of `judge.each_once` for the topic.

    Args:
        sent: numbers, record ids and prices of what has to be there.

    Raises:
        UnavailableError: an engine does not answer.
        TryLaterError: somebody else's transaction hides the end of the topic.
    """
    with workspace() as duck:
        duck.register("sent", sent)
        _read_topic(duck, own)
        return _each_once(duck)


def prove_table(sent: pa.Table, held: pa.Table) -> dict[str, float | None]:
    """The figures of `judge.each_once` for a table's record ids and prices."""
    with workspace() as duck:
        duck.register("sent", sent)
        duck.register("held", held)
        return _each_once(duck)


def _each_once(duck: duckdb.DuckDBPyConnection, undelivered: Sequence[int] = ()) -> dict[str, float | None]:
    duck.execute("CREATE TABLE undelivered (number BIGINT)")
    if undelivered:
        duck.executemany("INSERT INTO undelivered VALUES (?)", [[number] for number in undelivered])
    duck.execute(_DUE)
    return {name: _figure(duck, sql) for name, sql in _EACH_ONCE.items()}


def _figure(duck: duckdb.DuckDBPyConnection, sql: str) -> float:
    ((value,),) = duck.execute(sql).fetchall()
    return float(value or 0)


def _read_topic(duck: duckdb.DuckDBPyConnection, own: Settings) -> int:
    """Fill table ``held``; how many messages there are, also those that are none of ours."""
    import msgspec
    import pyarrow as pa

    row = msgspec.defstruct("Row", [("record_id", str), ("price", Decimal)], gc=False)
    read = msgspec.json.Decoder(row).decode
    duck.execute("CREATE TABLE held (record_id VARCHAR, price DECIMAL(18,6))")
    count = 0
    for messages in read_committed(own, own.kafka_topic, bounds(reach(own), own.kafka_topic)):
        ids: list[str | None] = []
        prices: list[Decimal | None] = []
        for message in messages:
            try:
                found: Any = read(message.value() or b"")
                ids.append(found.record_id)
                prices.append(found.price)
            except msgspec.MsgspecError:
                ids.append(None)
                prices.append(None)
        count += len(ids)
        duck.register("arrived", pa.table({"record_id": ids, "price": pa.array(prices, pa.decimal128(18, 6))}))
        duck.execute("INSERT INTO held SELECT * FROM arrived")
        duck.unregister("arrived")
    return count


def _read_windows(duck: duckdb.DuckDBPyConnection, own: Settings) -> tuple[int, int]:
    """Fill table ``windows``, as soon as all are stored; records and dead letters that the consumers have counted."""
    import pyarrow as pa

    expected = int(_figure(duck, "SELECT count(DISTINCT record_id) FROM held SEMI JOIN sent USING (record_id)"))
    deadline = time.monotonic() + WINDOW_SECONDS
    with connected(own) as postgres:
        while True:
            stored = postgres.execute(_STORED, (own.analytics_group,)).fetchall()
            if sum(row[2] for row in stored) >= expected or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        counted = postgres.execute(
            "SELECT coalesce(sum(records), 0)::bigint, coalesce(sum(letters), 0)::bigint "
            "FROM marketdata.analytics_feeds WHERE consumer_group = %s",
            (own.analytics_group,),
        ).fetchone()
    columns = list(zip(*stored, strict=True)) or [()] * 4
    names = ("series", "minute", "count", "total")
    types = (pa.string(), pa.int64(), pa.int64(), pa.decimal128(38, 6))
    table = {name: pa.array(column, type_) for name, column, type_ in zip(names, columns, types, strict=True)}
    duck.register("stored", pa.table(table))
    duck.execute("CREATE TABLE windows AS SELECT * FROM stored")
    duck.unregister("stored")
    records, letters = counted or (0, 0)
    return int(records), int(letters)


_STORED = """
SELECT series, (extract(epoch FROM window_start) / 60)::bigint, count, total
FROM marketdata.price_window_features WHERE consumer_group = %s
"""
# A message that nobody acknowledged may be in the topic all the same.
_DUE = """
CREATE TEMP VIEW due AS FROM sent
WHERE number NOT IN (FROM undelivered) OR record_id IN (SELECT record_id FROM held WHERE record_id IS NOT NULL)
"""
_EACH_ONCE = {
    "lost": "SELECT count(*) FROM due ANTI JOIN held USING (record_id)",
    "repeated": "SELECT count(*) - count(DISTINCT record_id) FROM held WHERE record_id IS NOT NULL",
    "foreign": "SELECT count(*) FROM held ANTI JOIN sent USING (record_id)",
    "price_difference": """
        SELECT abs(sum(price)) FROM (SELECT price FROM held UNION ALL SELECT -price FROM due)
    """,
}
_WINDOWS = {
    "windows": "SELECT count(*) FROM windows",
    "wrong_windows": """
        SELECT count(*) FROM (
            SELECT series, epoch_us(event_time) // 60000000 AS minute, count(*) AS count, sum(price) AS total
            FROM sent SEMI JOIN held USING (record_id) GROUP BY ALL
        ) expected FULL JOIN windows USING (series, minute)
        WHERE expected.count IS DISTINCT FROM windows.count OR expected.total IS DISTINCT FROM windows.total
    """,
}
