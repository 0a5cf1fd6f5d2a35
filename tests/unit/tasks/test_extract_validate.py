from __future__ import annotations

from datetime import date

import pytest

from marketdata.batches import Interval, Lake
from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import BadDataError
from marketdata.tasks.extract import extract
from marketdata.tasks.validate import validate

WEEK = Interval(date(2020, 4, 20), date(2020, 4, 25))
MAPPING = """
entries:
  - files: prices.csv
    source: test
    date: {column: Date, format: "%Y-%m-%d"}
    price: Price
    commodity: Oil
    series: WTI
    frequency: daily
    currency: USD
    unit: bbl
"""


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "mapping.yaml").write_text(MAPPING)
    (folder / "prices.csv").write_text("Date,Price\n2020-04-17,18.31\n2020-04-20,-36.98\n2020-04-21,8.91\n")
    return folder


@pytest.fixture
def settings(settings_for, files):
    return settings_for(marketdata_sources="files", marketdata_files=files)


def taken(settings, interval=WEEK, lookback_days=0, run_id="r1", attempt_of_run=0):
    return extract(
        settings, COMMODITY_PRICES, interval, lookback_days=lookback_days, run_id=run_id, attempt_of_run=attempt_of_run
    )


def prices(batch):
    return [row["price"] for table in batch.tables() for row in table.to_pylist()]


def test_only_the_days_asked_for_and_those_looked_back_at(settings):
    assert prices(taken(settings)) == ["-36.98", "8.91"]
    assert prices(taken(settings, lookback_days=3, run_id="r2")) == ["18.31", "-36.98", "8.91"]


def test_rows_are_counted_by_series(settings):
    (series,) = taken(settings).manifest.counts["by_series"]
    assert series == {"source": "test", "commodity": "Oil", "series": "WTI", "frequency": "daily", "extracted": 2}


def test_a_retry_keeps_what_the_first_try_read_and_a_cleared_run_reads_anew(settings, files):
    first = taken(settings)
    (files / "prices.csv").write_text("Date,Price\n2020-04-21,9.99\n")
    assert taken(settings).manifest == first.manifest
    assert prices(taken(settings, attempt_of_run=1)) == ["9.99"]


def test_days_without_data_make_an_empty_batch(settings):
    batch = taken(settings, Interval(date(2020, 5, 2), date(2020, 5, 3)))
    assert batch.manifest.rows == 0
    verdict = validate(settings, COMMODITY_PRICES, batch)
    assert verdict.manifest.counts["rows"] == 0


def test_the_day_oil_was_below_zero_is_quarantined_by_name(settings):
    verdict = validate(settings, COMMODITY_PRICES, taken(settings))
    (row,) = [row for table in verdict.tables() for row in table.to_pylist()]
    assert row["value"] == "-36.98"
    assert "known event 2020-04-20" in row["reason"]
    assert row["origin"] == "prices.csv"
    assert verdict.manifest.counts["accepted"] == 1
    assert b"-36.98" in verdict.read("report.html")


def test_a_refused_batch_leaves_its_verdict_and_hands_over_where_it_is(settings, files):
    (files / "prices.csv").write_text("Date,Price\n2020-04-20,abc\n2020-04-21,\n")
    batch = taken(settings)
    with pytest.raises(BadDataError, match="nothing was published or loaded") as caught:
        validate(settings, COMMODITY_PRICES, batch)
    verdict = Lake(settings).open(caught.value.result["batch"])
    assert verdict.manifest.rows == 2
    assert b"<html" in verdict.read("report.html")
    assert caught.value.exit_code == 65
    with pytest.raises(BadDataError):
        validate(settings, COMMODITY_PRICES, batch)
