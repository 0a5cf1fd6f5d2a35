"""What Trino's answers become; what it does with tables is in tests/contract, on a real one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from trino.exceptions import HttpError, TrinoQueryError

from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import MarketdataError, UnavailableError, UsageError
from marketdata.lakehouse.trino import BEGIN_WITHIN, TrinoLakehouse
from marketdata.settings import Settings

NOW = datetime(2024, 6, 1, tzinfo=UTC)
KEEP = timedelta(days=30)


@pytest.fixture
def lakehouse(settings_for: Callable[..., Settings]) -> TrinoLakehouse:
    return TrinoLakehouse(settings_for(trino_host="trino.invalid"))


def query_error(name: str, kind: str) -> TrinoQueryError:
    return TrinoQueryError({"errorName": name, "errorType": kind, "message": "why"}, "q1")


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (query_error("SYNTAX_ERROR", "USER_ERROR"), UsageError),
        (query_error("ABANDONED_QUERY", "USER_ERROR"), UnavailableError),
        (query_error("ADMINISTRATIVELY_KILLED", "USER_ERROR"), UnavailableError),
        (query_error("GENERIC_INTERNAL_ERROR", "INTERNAL_ERROR"), UnavailableError),
        (HttpError("error 404: a coordinator that was started anew knows no query"), UnavailableError),
    ],
)
def test_what_may_pass_is_tried_again(
    error: Exception, becomes: type[MarketdataError], lakehouse: TrinoLakehouse
) -> None:
    with pytest.raises(becomes), lakehouse._reaching():
        raise error


@pytest.mark.parametrize(
    ("ages", "expired_from"),
    [
        ([], None),
        ([50], None),
        ([50, 20], None),
        ([50, 40], KEEP),
        ([50, 40, 10], timedelta(days=40) + BEGIN_WITHIN),
        ([60, 50, 40, 31], KEEP),
        ([60, 50, 29, 1], timedelta(days=50) + BEGIN_WITHIN),
    ],
)
def test_what_was_current_since_is_kept_whenever_it_was_committed(
    ages: list[int], expired_from: timedelta | None, lakehouse: TrinoLakehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ages in days of a table's snapshots: each was current until the next one came."""
    altered: list[Any] = []
    rows = [(NOW - timedelta(days=age), NOW) for age in ages]
    monkeypatch.setattr(lakehouse, "_run", lambda statement: rows)
    monkeypatch.setattr(lakehouse, "_alter", lambda dataset, procedure, age: altered.append(age))
    lakehouse._expire(COMMODITY_PRICES, KEEP)
    assert altered == ([] if expired_from is None else [expired_from])
