"""`marketdata dlq`: the messages the consumer could not read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.errors import UsageError
from marketdata.settings import Settings
from marketdata.streaming.topics import letters_topic, records_topic
from marketdata.streaming.window_store import connected
from marketdata.tasks.screen import console

_OF = "FROM marketdata.dead_letters d JOIN marketdata.analytics_feeds f USING (feed_id) WHERE f.topic = %s"


def show_list(settings: Settings, limit: int) -> None:
    """Print the newest letters that have not been replayed."""
    with connected(settings) as postgres:
        rows = postgres.execute(
            f"SELECT letter_id, partition, message_offset, failed_at, asked_at, reason {_OF} "
            "AND replayed_at IS NULL ORDER BY letter_id DESC LIMIT %s",
            (records_topic(settings, COMMODITY_PRICES), limit),
        ).fetchall()
    table = Table("letter", "partition", "offset", "failed", "state", "reason", box=None)
    for letter_id, partition, offset, failed_at, asked_at, reason in rows:
        state = "asked for" if asked_at else "dead"
        table.add_row(str(letter_id), str(partition), str(offset), f"{failed_at:%Y-%m-%d %H:%M:%S}", state, reason)
    screen = console()
    screen.print(table if rows else "no dead letters")


def show(settings: Settings, letter_id: int) -> None:
    """Print one letter; its bytes as they are, last."""
    with connected(settings) as postgres:
        row = postgres.execute(
            f"SELECT partition, message_offset, failed_at, replayed_at, reason, key, value {_OF} AND letter_id = %s",
            (records_topic(settings, COMMODITY_PRICES), letter_id),
        ).fetchone()
    if row is None:
        raise UsageError(f"there is no dead letter {letter_id}", "marketdata dlq list")
    partition, offset, failed_at, replayed_at, reason, key, value = row
    screen = console()
    topic = records_topic(settings, COMMODITY_PRICES)
    screen.print(
        f"{topic}, partition {partition}, offset {offset}; also in {letters_topic(settings, COMMODITY_PRICES)}"
    )
    screen.print(f"failed {failed_at:%Y-%m-%d %H:%M:%S}: {reason}", markup=False)
    screen.print(f"replayed {replayed_at:%Y-%m-%d %H:%M:%S}" if replayed_at else "not replayed")
    screen.print(f"key {key!r}", markup=False)
    sys.stdout.flush()
    sys.stdout.buffer.write((value or b"") + b"\n")


def replay(settings: Settings, letter_ids: Sequence[int], every: bool) -> None:
    """Have letters read again by the consumer, which stores what they come to together with the mark of it."""
    if bool(letter_ids) == every:
        raise UsageError("name letters, or say --all", "marketdata dlq list")
    with connected(settings) as postgres:
        chosen: tuple[Any, ...] = (records_topic(settings, COMMODITY_PRICES), list(letter_ids), every)
        rows = postgres.execute(
            f"UPDATE marketdata.dead_letters SET asked_at = clock_timestamp() WHERE letter_id IN "  # noqa: S608
            f"(SELECT letter_id {_OF} AND (letter_id = ANY(%s::bigint[]) OR %s) AND replayed_at IS NULL) "
            "RETURNING letter_id",
            chosen,
        ).fetchall()
    asked = {letter_id for (letter_id,) in rows}
    if left := sorted(set(letter_ids) - asked):
        raise UsageError(
            f"letters {', '.join(map(str, left))} are not there or have been replayed;"
            f" {len(asked)} others will be read again",
            "marketdata dlq list",
        )
    console().print(f"{len(asked)} letters will be read again by the consumer, within seconds while it runs")
