"""The packaged mapping on the real downloads: five commodities, six publishers, two vintages."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from marketdata.batches import Interval
from marketdata.sources.files import FilesSource
from marketdata.sources.mapping import PACKAGED, load
from tests.unit.sources.reading import DATASET, EVER, NOW, rows

EXPECTED = {
    ("eia", "Oil", "WTI", "daily", "bbl"): 10226,
    ("eia", "Oil", "WTI", "monthly", "bbl"): 487,
    ("eia", "Oil", "Brent", "monthly", "bbl"): 471,
    ("eia", "Natural Gas", "Henry Hub", "daily", "mmbtu"): 7437,
    ("eia", "Natural Gas", "Henry Hub", "monthly", "mmbtu"): 355,
    ("worldbank", "Oil", "Brent", "monthly", "bbl"): 759 + 797,
    ("worldbank", "Oil", "Dubai", "monthly", "bbl"): 759 + 797,
    ("worldbank", "Oil", "WTI", "monthly", "bbl"): 759 - 264 + 797 - 264,
    ("worldbank", "Natural Gas", "Henry Hub", "monthly", "mmbtu"): 759 + 797,
    ("worldbank", "Copper", "Copper", "monthly", "tonne"): 759 + 797,
    ("worldbank", "Gold", "Gold", "monthly", "troy_oz"): 759 + 797,
    ("worldbank", "Silver", "Silver", "monthly", "troy_oz"): 759 + 797,
    ("datahub", "Gold", "Gold", "monthly", "troy_oz"): 2322,
    ("yahoo", "Gold", "GC=F", "daily", "troy_oz"): 6395,
    ("yahoo", "Silver", "SI=F", "daily", "troy_oz"): 6397,
    ("yahoo", "Copper", "HG=F", "daily", "lb"): 6400,
    ("yahoo", "Oil", "CL=F", "daily", "bbl"): 6404,
    ("yahoo", "Natural Gas", "NG=F", "daily", "mmbtu"): 6401,
    ("investing", "Gold", "Gold Futures", "daily", "troy_oz"): 1746,
    ("investing", "Oil", "Crude Oil WTI Futures", "daily", "bbl"): 1785,
}


@pytest.fixture
def source(shared_data: Path) -> FilesSource:
    return FilesSource(shared_data / "commodities", load(PACKAGED / "commodities.yaml"), DATASET)


@pytest.fixture
def history(source: FilesSource) -> list[dict[str, Any]]:
    return rows(source.fetch(EVER, NOW))


def test_every_series_is_there_with_all_its_rows(history: list[dict[str, Any]]) -> None:
    counted = Counter((r["source"], r["commodity"], r["series"], r["frequency"], r["unit"]) for r in history)
    assert counted == EXPECTED
    assert {r["currency"] for r in history} == {"USD"}
    days = {r["event_time"] for r in history}
    assert (min(days), max(days)) == ("1833-01-01", "2026-08-18")
    assert all(date.fromisoformat(day) for day in days)


def test_a_day_as_each_source_said_it(source: FilesSource) -> None:
    day = rows(source.fetch(Interval(date(2020, 4, 20), date(2020, 4, 21)), NOW))
    said = {r["series"]: (r["price"], r["volume"], r["origin"], r["origin_row"]) for r in day}
    assert said == {
        "WTI": ("-36.98", None, "eia/wti-daily.csv", 8644),
        "Henry Hub": ("1.78", None, "eia/natural-gas-daily.csv", 5855),
        "GC=F": ("1701.5999755859375", "106", "yahoo/GC=F.csv", 4923),
        "SI=F": ("15.555999755859377", "0", "yahoo/SI=F.csv", 4925),
        "HG=F": ("2.3345000743865967", "414", "yahoo/HG=F.csv", 4927),
        "CL=F": ("-37.630001068115234", "247947", "yahoo/CL=F.csv", 4932),
        "NG=F": ("1.924000024795532", "229817", "yahoo/NG=F.csv", 4928),
        "Gold Futures": ("1,711.20", "186.91K", "investing/Gold Futures Historical Data.csv", 639),
        "Crude Oil WTI Futures": ("38.88", "7.29K", "investing/Crude Oil WTI Futures Historical Data.csv", 651),
    }
    assert {r["event_time"] for r in day} == {"2020-04-20"}
    assert {r["as_of"] for r in day} == {"2026-11-21T08:30:00+00:00"}


def test_origin_row_is_the_line_of_the_file(source: FilesSource, shared_data: Path) -> None:
    lines = (shared_data / "commodities" / "eia" / "wti-daily.csv").read_text().splitlines()
    assert lines[8644] == "2020-04-20,-36.98"  # line 0 has the names


def test_known_events_name_every_price_below_zero(history: list[dict[str, Any]]) -> None:
    below = {(r["series"], r["event_time"]) for r in history if r["price"].startswith("-")}
    assert below == {("WTI", "2020-04-20"), ("CL=F", "2020-04-20")}
    assert below == {(event.series, event.day.isoformat()) for event in DATASET.events}


def test_an_empty_price_of_a_long_file_goes_through(source: FilesSource) -> None:
    (row,) = (
        r
        for r in rows(source.fetch(Interval(date(2018, 1, 5), date(2018, 1, 6)), NOW))
        if r["source"] == "eia" and r["series"] == "Henry Hub"
    )
    assert row["price"] == ""


def test_two_vintages_of_one_series(source: FilesSource) -> None:
    month = rows(source.fetch(Interval(date(2023, 3, 1), date(2023, 3, 2)), NOW))
    copper = {r["as_of"]: (r["price"], r["origin_row"]) for r in month if r["series"] == "Copper"}
    assert copper == {"2023-04-01": ("8856.31", 759), "2026-06-02": ("8856.31", 759)}


def test_files_without_an_entry_are_said_once(source: FilesSource, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        list(source.fetch(EVER, NOW))
    (record,) = caplog.records
    assert "'eia/natural-gas-datapackage.json', 'eia/oil-datapackage.json'" in record.getMessage()
