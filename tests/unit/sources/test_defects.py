"""Files nobody should have sent: each is refused with its name and the place, and nothing is lost in silence."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marketdata.errors import BadDataError, UsageError
from marketdata.sources.formats import columnar, jsontext, read, spreadsheet, stream
from marketdata.sources.mapping import Layout
from tests.unit.sources.reading import Read, entry, workbook

PLAIN = "Date,Price\n2020-04-20,1\n"
ROW = '{"Date": "2020-04-20", "Price": 1}\n'


def parquet(rows: int = 10) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"Date": ["2020-04-20"] * rows, "Price": ["1"] * rows}), sink)
    return sink.getvalue()


def lying_zip() -> bytes:
    """A workbook whose directory says that the sheet is ten bytes long."""
    content = bytearray(workbook([["Date", "Price"], ["2020-04-20", 1.0]]))
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 10)
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "is empty: it has no row of names"),
        ("a.csv", b"\n\n", "is empty: it has no row of names"),
        ("a.csv", b"\xef\xbb\xbf", "is empty: it has no row of names"),
        ("a.csv", b"2020-04-20,1\n", "column 'Date' is missing .columns: '2020-04-20', '1'."),
        ("a.csv", b"Date,Price,Price\n2020-04-20,1,2\n", "column 'Price' is there more than once"),
        ("a.csv", PLAIN.encode() + b"2020-04-21,\x00\n", "holds a NUL byte near byte 35"),
        ("a.csv", PLAIN.encode() + b"2020-04-21,\xe9\n", "byte 35 is not utf-8 text"),
        ("a.csv", b"x" * (2**20 - 1) + "é".encode() + b"\xe9\n", "byte 1048577 is not utf-8 text"),
        ("a.csv", PLAIN + "2020-04-21,2,3\n", r"data row 2 \(line 3\) has 3 values, not 2"),
        ("a.csv", PLAIN + "\n\n2020-04-21\n", r"data row 2 \(line 5\) has 1 values, not 2"),
        ("a.csv", PLAIN + '2020-04-21,"2\n2020-04-22,3\n', "line 4: unexpected end of data"),
        ("a.csv", PLAIN + '2020-04-21,"2\n' + "2020-04-22,3\n" * 700_000,
         "field larger than field limit|unexpected end of data"),
        ("a.csv", gzip.compress(PLAIN.encode()), "byte 1 is not utf-8 text"),
        ("a.csv", parquet(), "NUL byte|not utf-8"),
        ("a.csv", PLAIN.encode("utf-16"), "byte 0 is not utf-8 text"),
        ("a.csv.gz", PLAIN, "is not a sound gzip file, after byte 0"),
        ("a.csv.gz", gzip.compress(PLAIN.encode() * 10_000)[:-200], "is truncated, after byte"),
        ("a.csv.gz", gzip.compress(PLAIN.encode())[:-8] + b"12345678", "is not a sound gzip file"),
        ("a.parquet", b"", "is not a sound Parquet file"),
        ("a.parquet", PLAIN, "is not a sound Parquet file"),
        ("a.parquet", parquet()[:-20], "is not a sound Parquet file"),
        ("a.parquet", parquet()[200:], "is not a sound Parquet file"),
        ("a.xlsx", b"", "is not a sound XLSX file"),
        ("a.xlsx", PLAIN, "is not a sound XLSX file"),
        ("a.xlsx", workbook([["Date", "Price"]])[:-30], "is not a sound XLSX file"),
        ("a.xlsx", workbook([["Date"]]), "column 'Price' is missing"),
        ("a.xlsx", workbook([]), "has no row of names"),
        ("a.xlsx", lying_zip(), "is not a sound XLSX file"),
        ("a.xlsx", workbook([["Date", "Price"]], raw='<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'),
         "spans 1048576 rows and 16384 columns"),
        ("a.xlsx", workbook([["Date", "Price"]], raw="<row r='1048576'><c r = 'XFD1'><v>1</v></c></row>"),
         "spans 1048576 rows and 16384 columns"),
        ("a.json", b"", "truncated"),
        ("a.json", "[" + ROW, "truncated"),
        ("a.json", "[" + ROW + ",]", "trailing comma in array .byte 37."),
        ("a.json", "7", "is JSON of another shape: Expected `object . array`"),
        ("a.json", "{}", "is JSON of another shape: Object missing required field `data`"),
        ("a.json", f"[{ROW}, 7]", r"is JSON of another shape: Expected `object`, got `int` - at `\$\[1\]`"),
        ("a.json", '[{"date": 1}]', "no record has a 'Date'"),
        ("a.json", "[" * 200_000, "is JSON of another shape|nested too deeply"),
        ("a.json", '[{"Price": ' + "[" * 200_000, "nested too deeply"),
        ("a.json", '[{"Price": NaN}]', "invalid character .byte 11."),
        ("a.ndjson", ROW + "{\n" + ROW, r"data row 2 \(its line begins at byte 35\): "),
        ("a.ndjson", "\n" + ROW + ROW + "[]\n", r"data row 3 \(its line begins at byte 71\): is JSON of another shape"),
        ("a.ndjson", ROW.encode() + b'{"Price": "\xff"}\n',
         r"data row 2 \(its line begins at byte 35\): byte 0 of a text is not UTF-8"),
        ("a.ndjson.gz", gzip.compress(ROW.encode() * 10_000)[:-200], "is truncated"),
    ],
)  # fmt: skip
def test_refused_with_name_and_place(read: Read, name: str, content: bytes | str, says: str) -> None:
    with pytest.raises(BadDataError, match=rf"^{name}: (?s:.*)({says})"):
        read(name, content)


def test_every_message_is_one_short_line(read: Read) -> None:
    with pytest.raises(BadDataError) as caught:
        read("a.csv", PLAIN + "x" * 100_000 + ",2\n\n3," + "y" * 100_000 + ",4\n")
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_sheet_that_is_not_there(read: Read) -> None:
    with pytest.raises(BadDataError, match=r"has no sheet 'T' \(sheets: S\)"):
        read("a.xlsx", workbook([["Date", "Price"]]), "sheet: T")


@pytest.mark.parametrize("name", ["a.txt", "a.xls", "a", "a.gz", "a.parquet.gz", "a.csv.zip"])
def test_an_extension_nobody_knows(read: Read, name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name}: its format is not known"):
        read(name, PLAIN)


def test_quotes_that_are_no_defect(read: Read) -> None:
    mapping = entry("a.csv", "volume: Note")
    content = 'Date,Price,Note\n2020-04-20,1,12" pipe\n"2020-04-21",2,"say ""hi"",\nthen go"\n'
    assert [r["volume"] for r in read("a.csv", content, mapping=mapping)] == ['12" pipe', 'say "hi",\nthen go']


def test_decompression_is_bounded(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_DECOMPRESSED", 2**20)
    bomb = gzip.compress(PLAIN.encode() + b"2020-04-21,1\n" * 200_000)
    for name in ("a.csv.gz", "a.ndjson.gz"):
        with pytest.raises(BadDataError, match="decompresses to more than 1 MiB"):
            read(name, bomb if "csv" in name else gzip.compress(ROW.encode() * 100_000))


def test_documents_lines_and_tables_are_bounded(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsontext, "MAX_DOCUMENT", 2**20)
    with pytest.raises(BadDataError, match="JSON document of more than 1 MiB"):
        read("a.json", " " * (2**20 + 1))
    monkeypatch.setattr(jsontext, "_MAX_LINE", 2**20)
    with pytest.raises(BadDataError, match="has a line of more than 1 MiB"):
        read("a.ndjson", '{"Date": "' + "x" * 5 * 2**20)
    monkeypatch.setattr(columnar, "MAX_ROWS", 9)
    with pytest.raises(BadDataError, match="claims 10 rows"):
        read("a.parquet", parquet(10), mapping=entry("a.parquet"))
    monkeypatch.setattr(columnar, "MAX_ROWS", 10)
    monkeypatch.setattr(columnar, "MAX_CHUNK", 10)
    with pytest.raises(BadDataError, match="bytes in a column of a row group: more than is read"):
        read("a.parquet", parquet(10), mapping=entry("a.parquet"))
    monkeypatch.setattr(spreadsheet, "MAX_XML", 100)
    with pytest.raises(BadDataError, match="decompresses to more than"):
        read("a.xlsx", workbook([["Date", "Price"]]))


def test_a_zip_of_many_members(read: Read) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(spreadsheet.MAX_MEMBERS + 1):
            archive.writestr(f"{number}.xml", "")
    with pytest.raises(BadDataError, match="10000 members"):
        read("a.xlsx", content.getvalue())


def test_a_position_across_two_blocks_is_seen(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = workbook([["Date", "Price"]], raw='<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>')
    for block in (1, 7, 64, 100):
        monkeypatch.setattr(spreadsheet, "_BLOCK", block)
        with pytest.raises(BadDataError, match="spans 1048576 rows and 16384 columns"):
            read("a.xlsx", bomb)


def columns_of(path: Path) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="latin-1").splitlines()[0].replace('"', "").removeprefix("ï»¿").split(","))


@pytest.mark.parametrize(
    ("name", "gives"),
    [
        ("bad", r"data row 1 \(line 2\) has 4 values, not 3"),
        ("blanks", 1),
        ("date_like_number", 1),
        ("empty", "no row of names"),
        ("mac_newlines", 2),
        ("no_header_row", 0),
        ("null_byte", "NUL byte near byte 6"),
        ("test_latin1", "byte 16 is not utf-8 text"),
        ("test_locale", 1),
        ("test_utf8_bom", 2),
    ],
)
def test_csvkit(shared_data: Path, name: str, gives: int | str) -> None:
    path = shared_data / "bad" / "csvkit" / f"{name}.csv"
    layout = Layout(columns=columns_of(path) if name not in ("empty", "mac_newlines") else ("a", "b", "c"))
    if isinstance(gives, str):
        with pytest.raises(BadDataError, match=gives):
            list(read(path, name, layout))
    else:
        assert sum(len(table) for table in read(path, name, layout)) == gives


def test_csv_spectrum(shared_data: Path) -> None:
    paths = sorted((shared_data / "bad" / "csv-spectrum" / "csvs").glob("*.csv"))
    assert len(paths) == 11
    for path in paths:
        expected = json.loads((path.parents[1] / "json" / f"{path.stem}.json").read_text(encoding="utf-8"))
        tables = read(path, path.name, Layout(columns=tuple(expected[0])))
        got = [row for table in tables for row in table.to_pylist()]
        # The checkout has LF in the files that expect CRLF.
        wanted = [{key: value.replace("\r\n", "\n") for key, value in row.items()} for row in expected]
        assert got == wanted, path.name


def test_json_test_suite(shared_data: Path) -> None:
    """Whatever is no JSON is refused, whatever is JSON is read or refused for its shape, and nothing crashes."""
    paths = sorted((shared_data / "bad" / "JSONTestSuite" / "test_parsing").glob("*.json"))
    assert len(paths) > 140
    for path in paths:
        outcome: Any
        try:
            outcome = jsontext.decode(path.read_bytes(), ("a",), path.name)
        except BadDataError as error:
            outcome = str(error)
            assert outcome.startswith(path.name)
        if path.name.startswith("n_"):
            assert isinstance(outcome, str), path.name
        elif path.name.startswith("y_") and isinstance(outcome, str):
            assert "is JSON of another shape" in outcome, outcome


def test_json_test_suite_inside_a_record(shared_data: Path) -> None:
    """The same as a value that is asked for, and as one that is skipped: skipping does not mean overlooking."""
    for path in sorted((shared_data / "bad" / "JSONTestSuite" / "test_parsing").glob("[ny]_*.json")):
        value = path.read_bytes().strip()
        for column in ("a", "b"):
            content = b'[{"a": ' + value + b"}]"
            if path.name.startswith("y_"):
                assert len(jsontext.decode(content, (column,), path.name)) == 1
            else:
                with pytest.raises(BadDataError):
                    jsontext.decode(content, (column,), path.name)


def test_yfinance(shared_data: Path) -> None:
    paths = sorted((shared_data / "bad" / "yfinance").glob("*.csv"))
    assert len(paths) == 10
    for path in paths:
        layout = Layout(columns=("Date", "Close", "Volume"))
        lines = path.read_text().strip().splitlines()
        assert sum(len(table) for table in read(path, path.name, layout)) == len(lines) - 1


def test_naughty_strings_go_through_unchanged(shared_data: Path, read: Read) -> None:
    naughty = [
        text for text in json.loads((shared_data / "bad" / "blns.json").read_text(encoding="utf-8")) if "\0" not in text
    ]
    lines = "".join(json.dumps({"Date": "2020-04-20", "Price": text}) + "\n" for text in naughty)
    assert [r["price"] for r in read("a.ndjson", lines)] == naughty
    quoted = "".join('2020-04-20,"' + text.replace('"', '""') + '"\n' for text in naughty)
    taken = read("a.csv", "Date,Price\n" + quoted, mapping=entry("a.csv"))
    assert [r["price"] for r in taken] == naughty
    dates = "".join(json.dumps({"Date": text, "Price": "1"}) + "\n" for text in naughty)
    kept = read("b.ndjson", dates, mapping=entry("b.ndjson"))
    assert date(2020, 4, 20).isoformat() not in {r["event_time"] for r in kept}
    assert len(kept) == len(naughty)
