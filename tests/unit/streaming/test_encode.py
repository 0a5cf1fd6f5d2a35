"""Messages against the json module, row by row."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.datasets import COMMODITY_PRICES
from marketdata.streaming import encode
from marketdata.streaming.fold import workspace

INSTANT = datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
instants = st.datetimes(datetime(1800, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
by_type = {
    "string": texts,
    "timestamp": instants,
    "date": st.dates(date(1800, 1, 1), date(2200, 1, 1)),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "decimal(18,6)": st.integers(-(10**18) + 1, 10**18 - 1).map(lambda digits: Decimal(digits).scaleb(-6)),
    "decimal(18,4)": st.integers(-(10**18) + 1, 10**18 - 1).map(lambda digits: Decimal(digits).scaleb(-4)),
}
rows = st.fixed_dictionaries(
    {
        column.name: digests
        if column.name in encode.DIGESTS
        else by_type[column.type]
        if column.required
        else st.none() | by_type[column.type]
        for column in COMMODITY_PRICES.columns
    }
)


def encoded(table: pa.Table) -> list[tuple[bytes, bytes]]:
    with workspace() as connection:
        return [
            pair
            for keys, values in encode.messages(connection, COMMODITY_PRICES, table)
            for pair in zip(keys, values, strict=True)
        ]


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, COMMODITY_PRICES.arrow_schema())


def row(**other: Any) -> dict[str, Any]:
    return {
        "record_id": "a" * 64, "tenant": "default", "commodity": "Gold", "series": "LBMA", "frequency": "daily",
        "price": Decimal("2000.5"), "currency": "USD", "unit": "troy_oz", "volume": None, "source": "test",
        "event_time": INSTANT, "price_date": INSTANT.date(), "as_of": INSTANT, "ingested_at": INSTANT, "run_id": "r",
        "batch_id": "b", "content_hash": "b" * 64, "schema_version": 1, **other,
    }  # fmt: skip


def expected(row: dict[str, Any]) -> dict[str, Any]:
    """What json.loads(parse_float=Decimal) must give."""
    message: dict[str, Any] = {}
    for column in COMMODITY_PRICES.columns:
        value = row[column.name]
        if isinstance(value, datetime):
            value = value.strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
        elif isinstance(value, date):
            value = value.isoformat()
        message[column.message_name] = value
    return message


@settings(max_examples=60)
@given(st.lists(rows, min_size=1, max_size=8))
def test_a_message_is_its_row_to_the_last_digit_and_character(many: list[dict[str, Any]]) -> None:
    pairs = encoded(table_of(many))
    assert [key.decode() for key, _ in pairs] == [one["commodity"] for one in many]
    for one, (_, value) in zip(many, pairs, strict=True):
        message = json.loads(value, parse_float=Decimal)
        assert message == expected(one)
        assert list(message) == [column.message_name for column in COMMODITY_PRICES.columns]


@pytest.mark.parametrize(
    ("price", "text"),
    [
        ("2000.5", b'"price":2000.500000,'),
        ("0.000001", b'"price":0.000001,'),
        ("123456789012.123457", b'"price":123456789012.123457,'),
        ("999999999999.999999", b'"price":999999999999.999999,'),
        ("-36.98", b'"price":-36.980000,'),
    ],
)
def test_a_price_keeps_every_digit_of_its_scale(price: str, text: bytes) -> None:
    assert text in encoded(table_of([row(price=Decimal(price))]))[0][1]


def test_a_missing_volume_is_null_among_volumes_and_alone() -> None:
    volumes = [None, Decimal("1.5"), None]
    many = table_of([row(volume=volume) for volume in volumes])
    assert [json.loads(value)["volume"] for _, value in encoded(many)] == [None, 1.5, None]
    assert json.loads(encoded(table_of([row()]))[0][1])["volume"] is None


def test_slices_join_to_the_whole_whatever_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that repeat for a while and then don't, more rows than one slice, and a sliced chunked table."""
    many = [
        row(record_id=f"{i:064x}", commodity=f"C{i // 1500}", run_id=f"run {i}", price=Decimal(i) / 8)
        for i in range(4000)
    ]
    whole = table_of(many)
    pieces = pa.concat_tables([whole.slice(0, 1777), whole.slice(1777)]).slice(3)
    monkeypatch.setattr(encode, "ROWS_AT_ONCE", 700)
    messages = [json.loads(value, parse_float=Decimal) for _, value in encoded(pieces)]
    assert messages == [expected(one) for one in many[3:]]


def test_naughty_strings_arrive_as_they_are(shared_data: Path) -> None:
    naughty = json.loads((shared_data / "bad" / "blns.json").read_text("utf-8"))
    assert len(naughty) > 400
    many = [row(series=text, source=text[::-1]) for text in naughty]
    for one, (_, value) in zip(many, encoded(table_of(many)), strict=True):
        message = json.loads(value)
        assert (message["series"], message["source"]) == (one["series"], one["source"])


def test_a_consumer_can_check_the_content_hash_from_the_message_alone() -> None:
    from marketdata.datasets.conform import canonical, digest

    one = row(price=Decimal("70.1"), volume=Decimal("12.5"), series='W"TI')
    with workspace() as connection:
        connection.register("one", table_of([one]))
        expression = digest(*(canonical(column) for column in COMMODITY_PRICES.business_columns))
        wanted = connection.sql(f"SELECT {expression} FROM one").fetchall()[0][0]
    message = json.loads(encoded(table_of([one]))[0][1], parse_float=str)
    said = [message[column.message_name] for column in COMMODITY_PRICES.business_columns]
    assert hashlib.sha256("\x1f".join("" if text is None else text for text in said).encode()).hexdigest() == wanted


def test_a_message_fits_the_schema_of_the_topic() -> None:
    import jsonschema

    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    assert {"date", "date-time"} <= set(checker.checkers), "jsonschema would take anything for them"
    validator = jsonschema.Draft202012Validator(COMMODITY_PRICES.message_schema(), format_checker=checker)
    validator.validate(json.loads(encoded(table_of([row(event_time=INSTANT - timedelta(days=1))]))[0][1]))


def test_publishing_s_own_work_imports_no_pandas() -> None:
    """Arrow imports it for a Python list, text or NumPy array: a fifth of a second of every publish."""
    made = subprocess.run([sys.executable, "-c", ENCODE], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["3", "False"]


ENCODE = """
import sys
from marketdata.datasets import COMMODITY_PRICES
from marketdata.datasets.conform import connect
from marketdata.streaming.encode import messages
from marketdata.streaming.fold import delta_rows

with connect() as connection:
    schema = COMMODITY_PRICES.arrow_schema()
    types = {"string": "VARCHAR", "int32": "INTEGER", "date32[day]": "DATE", "timestamp[us, tz=UTC]": "TIMESTAMPTZ"}
    columns = ", ".join(
        f"sha256('{field.name}' || i) AS {field.name}" if field.name in ("record_id", "content_hash")
        else f"CAST(i AS VARCHAR) AS {field.name}" if str(field.type) == "string"
        else f"CAST(NULL AS {types.get(str(field.type), 'DECIMAL(18,6)')}) AS {field.name}"
        for field in schema
    )
    rows = connection.sql(f"SELECT {columns} FROM range(3) AS numbers(i)").to_arrow_table()
    delta_rows(rows)
    print(sum(len(values) for _, values in messages(connection, COMMODITY_PRICES, rows)), "pandas" in sys.modules)
"""
