"""What is pyiceberg's alone; what every lakehouse does is in tests/contract."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from typing import cast

import pytest

from marketdata.datasets import COMMODITY_PRICES
from marketdata.lakehouse import embedded as module
from marketdata.lakehouse.embedded import EmbeddedLakehouse
from marketdata.postgres import SILENCE
from marketdata.settings import Settings
from tests.contract.prices import EARLY, batch_of, price
from tests.contract.test_lakehouse import new_schema


@pytest.fixture
def settings(embedded: Settings, settings_for: Callable[..., Settings]) -> Settings:
    return settings_for(postgres_dsn=embedded.require("postgres_dsn"), trino_schema=new_schema())


def test_what_was_current_since_is_kept_whenever_it_was_committed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that changed nothing names the snapshot that it found, which may be older than all that is kept."""
    lakehouse = EmbeddedLakehouse(settings)
    for hour in range(3):
        row = price(value=str(70 + hour), as_of=EARLY + timedelta(hours=hour), batch=f"b{hour}")
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [row]))
    first, second, third = lakehouse.history(COMMODITY_PRICES)
    keep = timedelta(days=30)

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return third.committed_at + keep

    monkeypatch.setattr(module, "datetime", Later)
    maintained = lakehouse.maintain(COMMODITY_PRICES, keep)
    assert maintained is not None
    assert maintained.expired == 1
    left = {snapshot.snapshot_id for snapshot in lakehouse.history(COMMODITY_PRICES)}
    assert first.snapshot_id not in left
    assert {second.snapshot_id, third.snapshot_id} <= left
    then = lakehouse.query("SELECT price FROM commodity_prices", at={"commodity_prices": second.snapshot_id})
    assert [str(value) for value in then["price"].to_pylist()] == ["71.000000"]


def test_a_table_that_is_taken_over_gets_what_keeps_a_lost_commit_from_being_repeated(settings: Settings) -> None:
    lakehouse = EmbeddedLakehouse(settings)
    lakehouse.ensure(COMMODITY_PRICES)
    table = lakehouse._find(COMMODITY_PRICES)
    assert table is not None
    with table.transaction() as transaction:  # as one that Trino made
        transaction.remove_properties(*module.DECIDED_ANEW)
    lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price()]))
    table = lakehouse._find(COMMODITY_PRICES)
    assert table is not None
    assert table.properties.items() >= module.DECIDED_ANEW.items()


def test_a_table_named_in_a_text_or_a_comment_is_not_looked_for_among_those_of_then(settings: Settings) -> None:
    lakehouse = EmbeddedLakehouse(settings)
    loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price()]))
    other = module.quarantine(COMMODITY_PRICES)
    lakehouse.ensure(other)
    sql = f"SELECT '{other.name}' AS said FROM commodity_prices -- not {other.name}"
    then = lakehouse.query(sql, at={"commodity_prices": cast(int, loaded.snapshot_after)})
    assert then["said"].to_pylist() == [other.name]


def test_a_catalog_that_has_gone_without_a_word_is_given_up(settings: Settings) -> None:
    assert (
        EmbeddedLakehouse(settings)._url.query.items() >= {name: str(value) for name, value in SILENCE.items()}.items()
    )
