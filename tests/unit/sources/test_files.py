"""A folder and its mapping, on the project's own fixture and on files written here."""

from __future__ import annotations

import gzip
import io
import logging
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marketdata.batches import Interval
from marketdata.errors import UsageError
from marketdata.sources import open_sources
from marketdata.sources.files import FilesSource
from marketdata.sources.mapping import load
from tests.unit.sources.reading import DATASET, EVER, NOW, Read, entry, rows, workbook

DATA = Path(__file__).parent / "data"


def fixture(interval: Interval = EVER) -> list[dict[str, Any]]:
    return rows(FilesSource(DATA, load(DATA / "mapping.yaml"), DATASET).fetch(interval, NOW))


def test_long_file() -> None:
    taken = [row for row in fixture() if row["origin"] == "prices.csv"]
    assert len(taken) == 12  # 13 rows, one of them a day without observation
    assert [r["price"] for r in taken if r["series"] == "WTI"] == ["18.31", "-36.98", "8.91", "9.99"]
    assert taken[1]["price"] == "1,690.50"
    assert taken[1]["volume"] == "186.91K"
    assert [(r["price"], r["origin_row"]) for r in taken if r["price"] == ""] == [("", 12)]


def test_wide_file() -> None:
    taken = [
        (r["series"], r["event_time"], r["price"], r["unit"], r["as_of"], r["origin_row"])
        for r in fixture()
        if r["frequency"] == "monthly"
    ]
    assert taken == [
        ("Gold", "2020-03-01", "1591.90", "troy_oz", "2020-06-02", 1),
        ("Gold", "2020-04-01", "1683.20", "troy_oz", "2020-06-02", 2),
        ("Copper", "2020-03-01", "5182.60", "tonne", "2020-06-02", 1),
        ("Copper", "2020-05-01", "5239.80", "tonne", "2020-06-02", 3),
    ]


def test_an_interval_has_its_days_and_every_row_without_a_day() -> None:
    taken = fixture(Interval(date(2020, 4, 20), date(2020, 4, 21)))
    assert [(r["event_time"], r["commodity"]) for r in taken] == [
        ("2020-04-20", "Oil"), ("2020-04-20", "Gold"), ("2020-04-20", "Silver"), ("2020-04-20", "Copper"),
        ("not a day", "Oil"),
    ]  # fmt: skip


def test_what_was_skipped_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fixture(Interval(date(2020, 4, 20), date(2020, 4, 21)))
    said = [record.getMessage() for record in caplog.records]
    assert "prices.csv: 5 rows in [2020-04-20, 2020-04-21), 1 days without observation, 7 rows outside" in said


@pytest.mark.parametrize(
    ("said", "becomes"),
    [
        ("2020-04-20", "2020-04-20"),
        ("2020-4-20", "2020-04-20"),
        (" 2020-04-20 ", "2020-04-20"),
        ("2020-02-30", "2020-02-30"),
        ("20-04-20", "20-04-20"),
        ("04/20/2020", "04/20/2020"),
        ("2020-04-20x", "2020-04-20x"),
        ("infinity", "infinity"),
        ("epoch", "epoch"),
        ("1587340800", "1587340800"),
        ("O'Brien \u2028 'x'", "O'Brien \u2028 'x'"),
        ("", ""),
    ],
)
def test_a_date_that_does_not_match_stays_and_is_never_lost(read: Read, said: str, becomes: str) -> None:
    content = f"Date,Price\n{said},1\n1999-01-01,2\n"
    taken = read("a.csv", content, interval=Interval(date(2020, 4, 20), date(2020, 4, 21)))
    assert [(r["event_time"], r["price"]) for r in taken] == [(becomes, "1")]


@pytest.mark.parametrize(
    ("date_format", "said", "becomes"),
    [
        ("%m/%d/%Y", "4/20/2020", "2020-04-20"),
        ("%d.%m.%y", "20.04.20", "2020-04-20"),
        ("%YM%m", "2020M04", "2020-04-01"),
        ("%Y-%m-%d %H:%M:%S%z", "2020-04-20 00:30:00+09:00", "2020-04-19T15:30:00.000000Z"),
        ("%Y-%m-%d %H:%M", "2020-04-20 09:30", "2020-04-20T09:30:00.000000Z"),
    ],
)
def test_formats_become_iso(read: Read, date_format: str, said: str, becomes: str) -> None:
    mapping = entry("a.csv").replace("%Y-%m-%d", date_format)
    (row,) = read(
        "a.csv", f"Date,Price\n{said},1\n", mapping=mapping, interval=Interval(date(2020, 4, 1), date(2020, 5, 1))
    )
    assert row["event_time"] == becomes
    assert (
        read("a.csv", f"Date,Price\n{said},1\n", mapping=mapping, interval=Interval(date(2021, 4, 1), date(2021, 5, 1)))
        == []
    )


def test_without_a_format_a_date_is_as_said_and_in_utc(read: Read) -> None:
    mapping = entry("a.csv").replace(', format: "%Y-%m-%d"', "")
    content = "Date,Price\n2020-04-20 00:00:00+09:00,1\n2020-04-20T23:59:59Z,2\n2020-04-21,3\n"
    taken = read("a.csv", content, mapping=mapping, interval=Interval(date(2020, 4, 20), date(2020, 4, 21)))
    assert [r["event_time"] for r in taken] == ["2020-04-20T23:59:59Z"]


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


DAYS = ["2020-04-20", "2020-04-21"]
PLAIN = "Date,Price\n2020-04-20,-36.980\n2020-04-21,1e1\n"
RECORDS = '{"Date": "2020-04-20", "Price": -36.980}\n{"Date": "2020-04-21", "Price": "1e1", "more": [{}]}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", PLAIN),
        ("a.csv", "\ufeff" + PLAIN),
        ("a.csv", PLAIN.replace("\n", "\r\n")),
        ("a.csv", PLAIN.replace("\n", "\r").encode()),
        ("a.csv", PLAIN.rstrip("\n")),
        ("a.csv", PLAIN.replace("\n", "\n\n")),
        ("A.CSV", PLAIN),
        ("a.csv.gz", gzip.compress(PLAIN.encode())),
        ("a.tsv", PLAIN.replace(",", "\t")),
        ("a.tsv.gz", gzip.compress(PLAIN.replace(",", "\t").encode())),
        ("a.ndjson", RECORDS),
        ("a.jsonl", "\ufeff" + RECORDS.rstrip("\n").replace("\n", "\r\n\r\n")),
        ("a.ndjson.gz", gzip.compress(RECORDS.encode())),
        ("a.json", "[" + RECORDS.strip().replace("\n", ",") + "]"),
        ("a.json.gz", gzip.compress(b'{"data": [' + RECORDS.strip().replace("\n", ",").encode() + b"]}")),
        ("a.parquet", as_parquet(pa.table({"more": [1, 2], "Price": ["-36.980", "1e1"], "Date": DAYS}))),
        ("a.xlsx", workbook([["Date", "Price"], ["2020-04-20", "-36.980"], [], ["2020-04-21", "1e1"]])),
    ],
)  # fmt: skip
def test_each_format_keeps_the_text(read: Read, name: str, content: bytes | str) -> None:
    taken = read(name, content)
    assert [(r["event_time"], r["price"], r["origin"], r["origin_row"]) for r in taken] == [
        ("2020-04-20", "-36.980", name, 1),
        ("2020-04-21", "1e1", name, 2),
    ]


def test_numbers_of_json_keep_their_digits(read: Read) -> None:
    prices = ["1.10", "-36.980", "1E400", "123456789012345678901234567890.10", "12345678901234567890123", "0"]
    lines = "".join(f'{{"Date": "2020-04-20", "Price": {price}}}\n' for price in prices)
    assert [r["price"] for r in read("a.ndjson", lines)] == prices


def test_json_values_that_are_no_text(read: Read) -> None:
    prices = ['"Price": true', '"Price": {"a": [1.10]}', '"Other": 1', '"Price": null']
    lines = "".join(f'{{"Date": "2020-04-20", {price}}}\n' for price in prices)
    assert [r["price"] for r in read("a.ndjson", lines)] == ["true", '{"a":["1.10"]}', None, None]


def test_typed_values_of_parquet_and_workbooks_become_exact_text(read: Read) -> None:
    table = pa.table(
        {
            "Date": pa.array([datetime.fromisoformat("2020-04-20"), None], pa.timestamp("ns")),
            "Price": pa.array([Decimal("-36.980"), None], pa.decimal128(18, 3)),
        }
    )
    assert [(r["event_time"], r["price"]) for r in read("a.parquet", as_parquet(table))] == [
        ("2020-04-20 00:00:00", "-36.980"),
        (None, None),
    ]
    floats = pa.table({"Date": pa.array([date(2020, 4, 20)]), "Price": [-37.630001068115234]})
    assert [(r["event_time"], r["price"]) for r in read("a.parquet", as_parquet(floats))] == [
        ("2020-04-20", "-37.630001068115234")
    ]
    sheet = workbook([["Date", "Price"], ["2020-04-20", 35.0], ["2020-04-21", 1.8333333333333333]])
    assert [r["price"] for r in read("b.xlsx", sheet, mapping=entry("b.xlsx"))] == ["35", "1.8333333333333333"]


def test_typed_dates_are_filtered_though_they_do_not_match_the_format(read: Read) -> None:
    table = pa.table({"Date": pa.array([date(2020, 4, 20), date(2020, 4, 21)]), "Price": [1, 2]})
    taken = read(
        "a.parquet",
        as_parquet(table),
        mapping=entry("a.parquet").replace("%Y-%m-%d", "%m/%d/%Y"),
        interval=Interval(date(2020, 4, 21), date(2020, 4, 22)),
    )
    assert [(r["event_time"], r["price"]) for r in taken] == [("2020-04-21", "2")]


def test_names_that_are_no_identifiers(read: Read) -> None:
    mapping = entry("a.csv", 'volume: "Vol. \\"x\\" ; DROP TABLE chunk--"').replace(
        "series: WTI", 'series: "it\'s; --"'
    )
    (row,) = read("a.csv", 'Date,Price,"Vol. ""x"" ; DROP TABLE chunk--"\n2020-04-20,1,2K\n', mapping=mapping)
    assert (row["series"], row["volume"]) == ("it's; --", "2K")
    table = pa.table({"Date": ["2020-04-20"], "Price": ["1"], "Vol.": ["2K"]})
    (row,) = read("a.parquet", as_parquet(table), "volume: Vol.", mapping=entry("a.parquet", "volume: Vol."))
    assert row["volume"] == "2K"


def test_encoding_delimiter_and_rows_around_the_names(read: Read) -> None:
    content = "Title; of the; file\nPreis;Date\n(€);\n1,5;2020-04-20\n".encode("cp1252")
    mapping = entry(
        "a.csv", "encoding: cp1252\n    delimiter: ;\n    skip_rows: 1\n    skip_rows_after_names: 1"
    ).replace("price: Price", "price: Preis")
    (row,) = read("a.csv", content, mapping=mapping)
    assert (row["event_time"], row["price"], row["origin_row"]) == ("2020-04-20", "1,5", 1)
    utf16 = read("a.csv", "Date,Price\n2020-04-20,1\n".encode("utf-16"), "encoding: utf-16")
    assert [r["price"] for r in utf16] == ["1"]


def test_a_workbook_with_a_title_and_a_sheet_by_name(read: Read) -> None:
    sheet = workbook([["Title"], [None], ["Date", "Price"], ["", "($/bbl)"], ["2020-04-20", 1.5]], "Monthly Prices")
    more = "sheet: Monthly Prices\n    skip_rows: 2\n    skip_rows_after_names: 1"
    (row,) = read("a.xlsx", sheet, more)
    assert (row["price"], row["origin_row"]) == ("1.5", 1)


def test_many_chunks_number_their_rows_through(read: Read) -> None:
    count = 300_000
    content = "Date,Price\n" + "".join(f"2020-04-{20 + n % 2},{n}\n" for n in range(count))
    taken = read("a.csv", content, interval=Interval(date(2020, 4, 21), date(2020, 4, 22)))
    assert [r["origin_row"] for r in taken] == list(range(2, count + 1, 2))
    assert all(r["price"] == str(r["origin_row"] - 1) for r in taken)


def test_entries_without_a_file_are_no_error_unless_none_has_one(tmp_path: Path) -> None:
    said = tmp_path / "m.yaml"
    said.write_text(f"entries:{entry('no.csv')}{entry('*.csv')}")
    folder = tmp_path / "folder"
    folder.mkdir()
    source = FilesSource(folder, load(said), DATASET)
    with pytest.raises(UsageError, match=r"no entry of the mapping m\.yaml matches a file"):
        list(source.fetch(EVER, NOW))
    (folder / "a.csv").write_text(PLAIN)
    assert len(rows(source.fetch(EVER, NOW))) == 2


def test_own_mapping_of_the_folder_comes_before_the_packaged_one(
    settings_for: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mapping.yaml").write_text(f"entries:{entry('a.csv')}")
    (tmp_path / "a.csv").write_text(PLAIN)
    (source,) = open_sources(settings_for(marketdata_sources="files", marketdata_files=tmp_path), DATASET)
    assert {r["source"] for r in rows(source.fetch(EVER, NOW))} == {"test"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    (outside / "a.csv").write_text(PLAIN)
    if kind == "file":
        (folder / "a.csv").symlink_to(outside / "a.csv")
    else:
        (folder / "sub").symlink_to(outside)
    said = tmp_path / "m.yaml"
    said.write_text(f"entries:{entry('a.csv' if kind == 'file' else 'sub/*.csv')}")
    with pytest.raises(UsageError, match="leads out of"):
        list(FilesSource(folder, load(said), DATASET).fetch(EVER, NOW))


def test_a_link_within_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(PLAIN)
    (tmp_path / "b.csv").symlink_to("a.csv")
    (tmp_path / "mapping.yaml").write_text(f"entries:{entry('b.csv')}")
    taken = rows(FilesSource(tmp_path, load(tmp_path / "mapping.yaml"), DATASET).fetch(EVER, NOW))
    assert {r["origin"] for r in taken} == {"b.csv"}
