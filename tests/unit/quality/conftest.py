"""A good row of commodity prices, and the gate over a few rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from marketdata.datasets import COMMODITY_PRICES
from marketdata.quality import Verdict, gate

INGESTED_AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
CONTEXT = {"tenant": "default", "batch_id": "b0000000000000b1", "run_id": "manual__1"}
GOOD = {
    "commodity": "Gold",
    "series": "GC=F",
    "frequency": "daily",
    "price": "2000.50",
    "currency": "USD",
    "unit": "troy_oz",
    "volume": "120",
    "source": "yahoo",
    "event_time": "2024-05-01T00:00:00Z",
    "as_of": "2024-05-02T00:00:00Z",
    "origin": "gold.csv",
    "origin_row": 1,
}


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """A row that breaks no rule, but for what is given."""
    return lambda **changes: {**GOOD, **changes}


@pytest.fixture
def table_of() -> Callable[[Iterable[dict[str, Any]]], pa.Table]:
    """Rows as a raw table."""
    return lambda rows: pa.Table.from_pylist(list(rows), schema=COMMODITY_PRICES.raw_schema())


@pytest.fixture
def judge(table_of: Callable[..., pa.Table]) -> Callable[..., Verdict]:
    """The gate over rows, extracted on 2026-11-01 at noon."""

    def over(rows: Iterable[dict[str, Any]], **changes: Any) -> Verdict:
        values = {"ingested_at": INGESTED_AT, "context": CONTEXT, **changes}
        return gate(COMMODITY_PRICES, iter([table_of(rows)]), **values)

    return over


def use_suite(suite: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the gate read this suite instead of the project's."""
    (folder / "expectations").mkdir()
    text = suite if isinstance(suite, str) else json.dumps(suite)
    (folder / "expectations" / f"{COMMODITY_PRICES.name}.json").write_text(text)
    monkeypatch.setattr("marketdata.quality.suite.CHECKOUT", folder)
