"""What a stranger may put into the topic, among good records: each bad message is one dead letter, as it was."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from marketdata.settings import Settings
from marketdata.streaming.analytics import TopicSinks
from tests.contract.prices import LATE, price
from tests.contract.test_analytics import (  # noqa: F401 - `_soon` is a fixture
    _soon,
    ask,
    at,
    dead_letters,
    encoded,
    feeds,
    own_analytics,
    running,
    told,
    windows,
)
from tests.waiting import until

LARGEST = 1_048_588 - 200
"""Bytes of the largest message a topic takes, less those of its batch, key and headers."""


@cache
def good() -> bytes:
    (value,) = encoded(price(at(0)))
    return value


def changed(**fields: Any) -> bytes:
    """A good message with other values; `...` leaves a field out."""
    message = {**json.loads(good()), **fields}
    return json.dumps({name: value for name, value in message.items() if value is not ...}).encode()


def said(text: str) -> bytes:
    """A good message whose price is this text."""
    return changed(price="PRICE").replace(b'"PRICE"', text.encode())


BAD: dict[str, tuple[bytes | None, str]] = {
    "null, as compaction's tombstones are": (None, "malformed|truncated"),
    "empty": (b"", "truncated"),
    "invalid UTF-8": (changed(series="\u00e9").replace(b"\\u00e9", b"\xff\xfe"), "utf-8"),
    "truncated JSON": (changed()[:-9], "truncated"),
    "two in one": (changed() * 2, "trailing"),
    "NaN": (said("NaN"), "malformed"),
    "Infinity": (said("Infinity"), "malformed"),
    "minus Infinity": (said("-Infinity"), "malformed"),
    "NaN as text": (changed(price="NaN"), "decimal"),
    "a huge exponent": (said("1e999999999"), "decimal|price|number"),
    "a huge exponent as text": (changed(price="1e999999999"), "decimal|price"),
    "a tiny exponent": (said("1e-999999999"), "decimal|price|number"),
    "ten thousand digits": (said("9" * 10_000), "decimal|price|number"),
    "a missing field": (changed(series=...), "series"),
    "another type": (changed(price=[70]), "price"),
    "a number for a name": (changed(series=7), "series"),
    "a renamed field": (changed(price=..., Price="70"), "price"),
    "another time": (changed(timestamp="yesterday"), "timestamp"),
    "a time without a zone": (changed(timestamp="2024-01-02T12:00:00"), "timestamp"),
    "the year 9999": (changed(timestamp="9999-12-31T23:59:59Z"), "timestamp"),
    "a hash that is none": (changed(content_hash="x"), "content_hash"),
    "as long as a message may be": (b"x" * LARGEST, "malformed"),
    "a name as long as a message may be": (changed(series="x" * (LARGEST - 1000)), "200 bytes"),
    "nested a hundred thousand deep": (b"[" * 100_000, "."),
    "not JSON at all": (bytes(range(256)), "malformed"),
}


@pytest.fixture
def settings(embedded: Settings, settings_for: Callable[..., Settings]) -> Settings:
    return own_analytics(embedded, settings_for)


def put(settings: Settings, values: list[bytes | None]) -> list[tuple[int, int, bytes | None]]:
    """Produce messages without a partition of their own; where each came to lie."""
    found: list[tuple[int, int, bytes | None]] = []
    failed: list[Any] = []

    def delivered(error: Any, message: Any) -> None:
        if error:
            failed.append(error)
        found.append((message.partition(), message.offset(), message.value()))

    producer = Producer({"bootstrap.servers": settings.require("kafka_brokers"), "message.max.bytes": 2_000_000})
    for number, value in enumerate(values):
        producer.produce(settings.kafka_topic, value, b"%d" % number, partition=number % 3, on_delivery=delivered)
    assert producer.flush(60) == 0
    assert failed == []
    return found


def check(settings: Settings, bad: list[bytes | None], seed: int) -> dict[bytes | None, str]:
    """Good records in a wild order with bad ones between them; the reasons of the bad ones."""
    chance = random.Random(seed)  # noqa: S311
    rows = [price(at(minute, second), f"{minute}.{second:02}") for minute in range(1, 6) for second in range(0, 60, 3)]
    revised = [{**row, "price": row["price"] + 100, "as_of": LATE, "content_hash": "f" * 64} for row in rows[::5]]
    well = [*encoded(*rows, *revised, *rows[::3]), changed(venue="a field of a later version", volume=...)]
    newest = {row["event_time"]: row["price"] for row in [*rows, *revised, price(at(0))]}
    expected: dict[Any, tuple[int, Decimal]] = {}
    for moment, value in newest.items():
        minute = moment.replace(second=0)
        count, total = expected.get(("WTI", minute), (0, Decimal(0)))
        expected["WTI", minute] = count + 1, total + value

    def state() -> tuple[int, int]:
        return feeds(settings)[:2]

    values = [*well, *bad]
    chance.shuffle(values)
    with running(settings) as member:
        places = put(settings, values)
        until("each message is a record or a letter", lambda: state() == (len(well), len(bad)), but=state)
        until("windows", lambda: {key: of[:2] for key, of in windows(settings).items()} == expected)
        sinks = TopicSinks(settings, lambda: member.consumer.feeds)
        sinks.deliver()
        assert sinks.deliver() == 0
        sinks.close()
        assert member.failed is None
    places_of_bad = Counter(place for place in places if place[2] in set(bad))
    rows_of_letters = ask(settings, f"SELECT partition, message_offset, value, reason {LETTERS}")
    assert Counter((partition, offset, value) for partition, offset, value, _ in rows_of_letters) == places_of_bad
    letters = [(dict(letter.headers() or []), letter.value()) for _, letter in dead_letters(settings)]
    assert {header["topic"] for header, _ in letters} == {settings.kafka_topic.encode()}
    assert all(header["error"] for header, _ in letters)
    assert Counter((int(h["partition"]), int(h["offset"]), value) for h, value in letters) == places_of_bad
    last = {message["window_start"]: message for message in told(settings)}
    assert sum(message["total"] for message in last.values()) == sum(newest.values())
    return {value: reason for *_, value, reason in rows_of_letters}


LETTERS = (
    "FROM marketdata.dead_letters JOIN marketdata.analytics_feeds USING (feed_id) WHERE consumer_group = %(group)s"
)


def test_each_bad_message_is_a_dead_letter_that_says_why_and_the_good_ones_are_counted(settings: Settings) -> None:
    import re

    reasons = check(settings, [value for value, _ in BAD.values()], seed=1)
    for name, (value, says) in BAD.items():
        assert re.search(says, reasons[value], re.IGNORECASE), (name, reasons[value])


def test_no_file_of_the_json_test_suite_stops_the_consumer(settings: Settings, shared_data: Path) -> None:
    files = sorted((shared_data / "bad" / "JSONTestSuite" / "test_parsing").glob("[ni]_*.json"))
    assert len(files) > 100
    check(settings, [file.read_bytes() for file in files], seed=2)


def test_no_naughty_string_stops_the_consumer(settings: Settings, shared_data: Path) -> None:
    strings = json.loads((shared_data / "bad" / "blns.json").read_text())
    assert len(strings) > 400
    check(settings, [*[text.encode() for text in strings], *[changed(content_hash=text) for text in strings]], seed=3)
