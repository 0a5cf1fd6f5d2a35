"""Transformed batches of few, readable records for the tests of the lakehouse."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from marketdata.batches import Batch, Interval, Lake, Manifest
from marketdata.datasets import COMMODITY_PRICES
from marketdata.settings import Settings

EARLY, LATE = datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 6, 2, tzinfo=UTC)


def price(
    day: str | datetime = "2024-01-02",
    value: str = "70.10",
    *,
    as_of: datetime = EARLY,
    batch: str = "b1",
    **other: Any,
) -> dict[str, Any]:
    """One row; the identity comes from series and day, the content hash from what the row says."""
    event_time = datetime.fromisoformat(day).replace(tzinfo=UTC) if isinstance(day, str) else day
    row: dict[str, Any] = {
        "tenant": "default",
        "commodity": "Oil",
        "series": "WTI",
        "frequency": "daily",
        "price": Decimal(value),
        "currency": "USD",
        "unit": "bbl",
        "volume": None,
        "source": "test",
        "event_time": event_time,
        "price_date": event_time.date(),
        "as_of": as_of,
        "ingested_at": as_of,
        "run_id": f"run-of-{batch}",
        "batch_id": batch,
        "schema_version": 1,
        **other,
    }
    row["record_id"] = _sha(row["series"], event_time)
    row["content_hash"] = other.get("content_hash") or _sha(
        row["record_id"], row["price"], row["volume"], row["commodity"]
    )
    return row


def table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), COMMODITY_PRICES.arrow_schema())


def batch_of(settings: Settings, rows: Sequence[dict[str, Any]] | pa.Table, *, parts: int = 1) -> Batch:
    """A batch on the lake; `parts` > 1 deals the rows out like cards, so that every part has every month."""
    whole = rows if isinstance(rows, pa.Table) else table(rows)
    batch_id = whole["batch_id"][0].as_py() if len(whole) else "empty"
    # Tests share a lake, and each has a schema of its own: its batches lie on a day of their own.
    day = date.fromordinal(1 + zlib.crc32(settings.trino_schema.encode()) % 3_000_000)
    interval = Interval(day, day + timedelta(days=1))
    writer = Lake(settings).writer(COMMODITY_PRICES.name, interval, batch_id)
    for part in range(parts):
        dealt = whole.take(pa.array(range(part, len(whole), parts), pa.int64()))
        if len(dealt):
            writer._write_part(dealt)  # the writer's own parts are 250,000 rows
    return writer.commit(
        Manifest(
            dataset=COMMODITY_PRICES.name, tenant="default", batch_id=batch_id, step="transform", step_version=1,
            run_id=f"run-of-{batch_id}", interval_start=interval.start, interval_end=interval.end, created_at=EARLY,
        )
    )  # fmt: skip


def refused(number: int, *, batch: str = "b1", at: datetime = EARLY) -> dict[str, Any]:
    """One row of the quarantine table; its identity does not depend on the batch that brought it."""
    return {
        "quarantine_id": _sha("refused", number),
        "tenant": "default",
        "dataset": COMMODITY_PRICES.name,
        "batch_id": batch,
        "run_id": f"run-of-{batch}",
        "quarantined_at": at,
        "commodity": "Oil",
        "series": "WTI",
        "source": "test",
        "event_time": "2020-04-20",
        "rules": "price_positive",
        "reason": "price -36.98 is not above zero",
        "value": "-36.98",
        "row": '{"price": "-36.98"}',
        "origin": "prices.csv",
        "origin_row": number,
    }


def _sha(*values: object) -> str:
    return hashlib.sha256("\x1f".join(str(value) for value in values).encode()).hexdigest()
