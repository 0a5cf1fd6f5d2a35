"""Messages read back: what was written, exactly; what cannot be read, with its reason."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketdata.datasets import COMMODITY_PRICES
from marketdata.datasets.conform import connect
from marketdata.streaming.decode import FUTURE, Raw, Reader
from marketdata.streaming.encode import messages
from marketdata.streaming.windows import Book
from tests.contract.prices import price, table

ARRIVED = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6)
SCHEMA = jsonschema.Draft202012Validator(COMMODITY_PRICES.message_schema())


def encoded(*rows: dict[str, Any]) -> list[bytes]:
    with connect() as connection:
        return [value for _, values in messages(connection, COMMODITY_PRICES, table(rows)) for value in values]


GOOD = json.loads(encoded(price())[0], parse_float=Decimal)


def raw(*values: bytes | None, appended: int = ARRIVED) -> list[Raw]:
    return [Raw(offset, appended, b"Oil", value) for offset, value in enumerate(values)]


def changed(**fields: Any) -> bytes:
    """A good message but for these fields; `...` leaves one out, text stands as it is."""
    kept = {name: value for name, value in {**GOOD, **fields}.items() if value is not ...}
    return json.dumps(kept, default=float).encode()


def test_what_was_encoded_is_read_back_exactly() -> None:
    rows = [
        price("1960-01-01", "0.000001"),
        price(datetime(2024, 2, 3, 4, 5, 6, 789012, tzinfo=UTC), "123456789012.123457", series="Brent"),
        price("2024-01-02", "-36.98", volume=Decimal("1.5")),
    ]
    book = Book()
    found = Reader(COMMODITY_PRICES, book).read(raw(*encoded(*rows)))
    assert found.letters == []
    members = found.records.members
    assert members["price"].tolist() == [1, 123456789012123457, -36980000]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert [epoch + timedelta(microseconds=int(at)) for at in members["event_time"]] == [
        row["event_time"] for row in rows
    ]
    assert [f"{content:016x}" for content in members["content"].tolist()] == [row["content_hash"][:16] for row in rows]
    assert [book.series[number].key[3] for number in found.records.series] == ["WTI", "Brent", "WTI"]
    assert found.records.offsets.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "truncated"),
        (b"", "truncated"),
        (b"\xff\xfe not json", "malformed"),
        (encoded(price())[0][:-20], "truncated"),
        (changed(price=...), "missing required field `price`"),
        (changed(price="70.1 USD"), "price"),
        (changed(price=1e300), "decimal"),
        (changed(price=70.1234567), "decimal"),
        (encoded(price())[0].replace(b"70.100000", b"NaN"), "malformed"),
        (changed(timestamp="yesterday"), "timestamp is not a date and time"),
        (changed(timestamp="2024-01-02T00:00:00"), "timestamp is not a date and time"),
        (changed(timestamp="2126-01-02T00:00:00Z"), "more than 5 minutes after"),
        (changed(timestamp="0001-01-01T00:00:00+01:00"), "before 1677-09-22"),  # in PostgreSQL a year before 1
        (changed(timestamp="0000-01-01T00:00:00Z"), "before 1677-09-22"),
        (changed(as_of=""), "as_of is not"),
        (changed(content_hash="zz" * 32), "content_hash"),
        (changed(content_hash="ab"), "content_hash"),
        (changed(series="x" * 300), "longer than 200 bytes"),
        (changed(series="a\0b"), "U\\+0000"),
        (changed(price="1e-999999999"), "price"),  # Arrow itself dies of it
        (changed(price="NaN"), "price"),
        (changed(price="Infinity"), "price"),
        (changed(schema_version="one"), "schema_version"),
        (b"[" * 100_000, "."),
        (b"[]", "object"),
    ],
)
def test_a_message_that_cannot_be_read_is_a_letter_and_the_others_are_read(value: bytes | None, reason: str) -> None:
    good = encoded(price("2024-01-02"), price("2024-01-03"), price("2024-01-04"))
    found = Reader(COMMODITY_PRICES, Book()).read(raw(good[0], value, *good[1:]))
    (letter,) = found.letters
    assert (letter.offset, letter.key, letter.value, letter.appended) == (1, b"Oil", value, ARRIVED)
    assert re.search(reason, letter.reason, re.IGNORECASE), letter.reason
    assert found.records.offsets.tolist() == [0, 2, 3]


def test_many_letters_among_many_messages_are_told_apart() -> None:
    good, bad = encoded(price())[0], changed(timestamp="never")
    found = Reader(COMMODITY_PRICES, Book()).read(raw(*[bad if number % 7 == 3 else good for number in range(300)]))
    assert [letter.offset for letter in found.letters] == [number for number in range(300) if number % 7 == 3]
    assert len(found.records.offsets) + len(found.letters) == 300


def test_an_event_may_be_five_minutes_ahead_of_its_arrival_and_no_more() -> None:
    at = datetime(2024, 1, 2, tzinfo=UTC)
    limit = int(at.timestamp() * 1e6) - FUTURE
    (value,) = encoded(price(at))
    for appended, letters in ((limit, 0), (limit - 1, 1)):
        assert len(Reader(COMMODITY_PRICES, Book()).read(raw(value, appended=appended)).letters) == letters


def test_an_event_of_the_first_day_that_nanoseconds_hold_is_read_and_none_before() -> None:
    first = changed(timestamp="1677-09-22T00:00:00Z")
    before = changed(timestamp="1677-09-21T23:59:59.999999Z")
    found = Reader(COMMODITY_PRICES, Book()).read(raw(first, before))
    assert [letter.offset for letter in found.letters] == [1]
    (event_time,) = found.records.members["event_time"].tolist()
    assert event_time * 1000 > -(2**63)


@pytest.mark.parametrize("zeros", [37, 45, 75, 200, 100_000])
def test_zeros_after_a_price_change_nothing_however_many_they_are(zeros: int) -> None:
    value = encoded(price())[0].replace(b"70.100000", b"70.1" + b"0" * zeros)
    found = Reader(COMMODITY_PRICES, Book()).read(raw(value, changed(price="0e-999999999")))
    assert found.letters == []
    assert found.records.members["price"].tolist() == [70_100_000, 0]


def test_new_optional_fields_of_a_later_version_are_no_reason_to_refuse() -> None:
    found = Reader(COMMODITY_PRICES, Book()).read(raw(changed(schema_version=2, venue="x", volume=...)))
    assert found.letters == []


values = st.one_of(
    st.none(), st.booleans(), st.text(max_size=5), st.integers(-5, 5), st.just([]), st.just({}), st.just(...)
)


@given(
    st.dictionaries(st.sampled_from([column.message_name for column in COMMODITY_PRICES.columns]), values, max_size=3)
)
def test_what_the_schema_refuses_is_refused(fields: dict[str, Any]) -> None:
    message = changed(**fields)
    found = Reader(COMMODITY_PRICES, Book()).read(raw(message))
    if not SCHEMA.is_valid(json.loads(message)):
        assert len(found.letters) == 1
    assert len(found.letters) + len(found.records.offsets) == 1


def test_no_file_of_the_json_test_suite_stops_the_reader(shared_data: Path) -> None:
    files = sorted((shared_data / "bad" / "JSONTestSuite" / "test_parsing").glob("*.json"))
    assert len(files) > 100
    found = Reader(COMMODITY_PRICES, Book()).read(raw(*[file.read_bytes() for file in files]))
    assert len(found.letters) == len(files)
