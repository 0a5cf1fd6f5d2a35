from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from marketdata import batches
from marketdata.batches import Interval, Lake, Manifest
from marketdata.datasets import COMMODITY_PRICES
from marketdata.tasks.transform import transform

INTERVAL = Interval(date(2020, 1, 1), date(2020, 2, 1))
EXTRACTED = datetime(2020, 2, 1, 2, tzinfo=UTC)
SAID = {
    "commodity": "Oil", "series": "WTI", "frequency": "daily", "price": "63.05", "currency": "USD", "unit": "bbl",
    "volume": None, "source": "eia", "event_time": "2020-01-02", "as_of": "2020-01-15", "origin": "f", "origin_row": 1,
}  # fmt: skip


@pytest.fixture
def settings(settings_for):
    return settings_for()


def verdict_on(settings, rows, refused=(), batch_id="raw", run_id="r1"):
    lake = Lake(settings)
    manifest = Manifest(
        dataset="commodity_prices", tenant="default", batch_id=batch_id, step="extract", step_version=1, run_id=run_id,
        interval_start=INTERVAL.start, interval_end=INTERVAL.end, created_at=EXTRACTED,
    )  # fmt: skip
    raw = lake.writer("commodity_prices", INTERVAL, batch_id)
    if rows:
        raw.add(pa.Table.from_pylist([{**SAID, **row} for row in rows], schema=COMMODITY_PRICES.raw_schema()))
    batch = raw.commit(manifest)
    writer = lake.writer("commodity_prices", INTERVAL, f"{batch_id}-v")
    writer.add(pa.table({"row_index": pa.array(list(refused), pa.int64())}))
    return writer.commit(replace(manifest, batch_id=f"{batch_id}-v", step="validate", parent=batch.uri))


def rows_of(batch):
    return [row for table in batch.tables() for row in table.to_pylist()]


def test_records_are_typed_identified_and_carry_the_run(settings):
    batch = transform(
        settings, COMMODITY_PRICES, verdict_on(settings, [{"price": "1,063.05", "commodity": "crude oil"}])
    )
    (row,) = rows_of(batch)
    assert next(batch.tables()).schema == COMMODITY_PRICES.arrow_schema()
    assert row["commodity"] == "Oil"
    assert str(row["price"]) == "1063.050000"
    assert row["price_date"] == date(2020, 1, 2)
    assert row["ingested_at"] == EXTRACTED
    assert row["run_id"] == "r1"
    assert row["batch_id"] == batch.manifest.batch_id
    assert len(row["record_id"]) == len(row["content_hash"]) == 64


def test_refused_rows_stay_out(settings):
    verdict = verdict_on(settings, [{"event_time": f"2020-01-0{day}"} for day in range(1, 6)], refused=[1, 3])
    batch = transform(settings, COMMODITY_PRICES, verdict)
    assert [row["price_date"].day for row in rows_of(batch)] == [1, 3, 5]
    assert batch.manifest.counts["accepted"] == 3


def test_identity_is_source_series_frequency_and_time(settings):
    changes = [{}, {"source": "yahoo"}, {"series": "Brent"}, {"frequency": "monthly"}, {"event_time": "2020-01-03"}]
    batch = transform(settings, COMMODITY_PRICES, verdict_on(settings, changes))
    assert len({row["record_id"] for row in rows_of(batch)}) == 5


def test_exact_duplicates_are_dropped_and_counted(settings):
    batch = transform(settings, COMMODITY_PRICES, verdict_on(settings, [{}, {"price": "63.050"}, {"origin_row": 9}]))
    assert len(rows_of(batch)) == 1
    assert batch.manifest.counts == {"accepted": 3, "records": 1, "exact_duplicates": 2, "superseded": 0}


def test_of_two_vintages_the_newer_wins_in_whatever_order(settings):
    old, new = {"price": "1", "as_of": "2023-04-01"}, {"price": "2", "as_of": "2026-06-02"}
    for number, rows in enumerate(([old, new, {"event_time": "2020-01-09"}], [new, old])):
        batch = transform(settings, COMMODITY_PRICES, verdict_on(settings, rows, batch_id=f"raw{number}"))
        assert [str(r["price"]) for r in rows_of(batch) if r["price_date"].day == 2] == ["2.000000"]
        assert batch.manifest.counts["superseded"] == 1


def test_a_tie_is_won_by_the_greater_hash_in_whatever_order(settings):
    one, two = {"price": "1"}, {"price": "2"}
    first = rows_of(transform(settings, COMMODITY_PRICES, verdict_on(settings, [one, two], batch_id="a")))
    second = rows_of(transform(settings, COMMODITY_PRICES, verdict_on(settings, [two, one], batch_id="b")))
    assert [row["content_hash"] for row in first] == [row["content_hash"] for row in second]


def test_records_that_meet_over_parts_are_one(settings, monkeypatch):
    monkeypatch.setattr(batches, "ROWS_PER_PART", 2)
    rows = [{"event_time": f"2020-01-0{day}"} for day in (1, 2, 3, 1, 5, 2)]
    batch = transform(settings, COMMODITY_PRICES, verdict_on(settings, rows))
    assert sorted(row["price_date"].day for row in rows_of(batch)) == [1, 2, 3, 5]


def test_a_repeated_step_finds_its_own_output(settings):
    verdict = verdict_on(settings, [{}])
    first = transform(settings, COMMODITY_PRICES, verdict)
    raw = Lake(settings).parent(verdict)
    part = Path(raw.lake.uri.removeprefix("file://")) / raw.folder / raw.manifest.parts[0].name
    part.unlink()  # whoever reads the input again will notice
    assert transform(settings, COMMODITY_PRICES, verdict).manifest == first.manifest


def test_no_rows_make_an_empty_batch(settings):
    batch = transform(settings, COMMODITY_PRICES, verdict_on(settings, []))
    assert batch.manifest.rows == 0
    assert batch.manifest.counts["records"] == 0
