"""Avro messages of the trades, without a registry; tests/engines/test_registry.py has those with one."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from marketdata.datasets import Column, Dataset
from marketdata.datasets.raw_trades import BINANCE_RAW_TRADE, KRAKEN_RAW_TRADE
from marketdata.errors import UsageError
from marketdata.settings import Settings
from marketdata.streaming import avro, topics
from marketdata.streaming.avro import Read
from marketdata.streaming.decode import Raw

INSTANT = datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)
BINANCE: dict[str, Any] = {
    "event_type": "trade",
    "event_time_ms": 1723161255343,
    "symbol": "BTCUSDT",
    "trade_id": 3735683259,
    "price": "61837.63000000",
    "quantity": "0.02000000",
    "trade_time_ms": 1723161255342,
    "is_buyer_maker": True,
    "ingestion_timestamp": INSTANT,
}
KRAKEN: dict[str, Any] = {
    "symbol": "XBT/USD",
    "price": "95873.80000",
    "quantity": "0.00051182",
    "trade_time_seconds": 1740353380.379186,
    "side": "b",
    "order_type": "l",
    "misc": "",
    "ingestion_timestamp": INSTANT,
}


def settings(**other: Any) -> Settings:
    return Settings(schema_registry_url=None, **other)


def topic_of(dataset: Dataset) -> topics.Topic:
    return next(topic for topic in topics.catalogue() if topic.dataset == dataset.name)


def messages(dataset: Dataset, rows: list[dict[str, Any]] | pa.Table) -> list[tuple[bytes, bytes]]:
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, dataset.arrow_schema())
    begins = avro.header(settings(), topic_of(dataset))
    return [pair for keys, values in avro.messages(dataset, table, begins) for pair in zip(keys, values, strict=True)]


def read(dataset: Dataset, values: list[bytes | None]) -> Read:
    return avro.Reader(settings(), dataset).read(Raw(number, 0, b"", value) for number, value in enumerate(values))


def reason(value: bytes | None, dataset: Dataset = BINANCE_RAW_TRADE) -> str:
    found = read(dataset, [value])
    assert len(found.rows) == 0
    (letter,) = found.letters
    assert letter.value == value
    return letter.reason


GOOD = messages(BINANCE_RAW_TRADE, [BINANCE])[0][1]


@pytest.mark.parametrize(("dataset", "row"), [(BINANCE_RAW_TRADE, BINANCE), (KRAKEN_RAW_TRADE, KRAKEN)])
def test_a_trade_comes_back_as_it_was_under_its_symbol(dataset: Dataset, row: dict[str, Any]) -> None:
    ((key, value),) = messages(dataset, [row])
    assert key == row["symbol"].encode()
    found = read(dataset, [value])
    assert found.rows.to_pylist() == [row]
    assert found.rows.schema == dataset.arrow_schema()
    assert (found.offsets, found.letters) == ([0], [])


def test_the_bytes_are_those_of_avro_s_own_specification() -> None:
    # Single-object encoding: two bytes, the CRC-64-AVRO of the schema, then the fields in order: a string is its length
    # as zigzag and its text, a long is zigzag in groups of seven bits, a boolean one byte.
    assert GOOD[:2] == bytes.fromhex("c301")
    assert GOOD[10:16] == bytes([5 << 1]) + b"trade"
    assert GOOD.endswith(b"\x01" + zigzag(int(INSTANT.timestamp()) * 1_000_000 + INSTANT.microsecond))


def zigzag(number: int) -> bytes:
    number <<= 1
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
by_type: dict[str, st.SearchStrategy[Any]] = {
    "string": texts,
    "long": st.integers(-(2**63), 2**63 - 1),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "double": st.floats(allow_nan=False),
    "boolean": st.booleans(),
    "timestamp": st.datetimes(datetime(1800, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    "date": st.dates(),
    "decimal(18,6)": st.decimals(-(10**11), 10**11, places=6),
}
EVERY_TYPE = Dataset(
    name="every_type",
    version=1,
    doc="One column of each type, required and not.",
    columns=(
        Column("symbol", "string", "Key."),
        *(
            Column(f"{name[:7]}_{'must' if required else 'may'}", name, "Any.", required=required)
            for name in by_type
            for required in (True, False)
        ),
    ),
    key=("symbol",),
    event_time="timestam_must",
    topic="every-type",
    message_key="symbol",
)


def rows_of(dataset: Dataset) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(
        st.fixed_dictionaries(
            {
                column.name: by_type[column.type] if column.required else st.none() | by_type[column.type]
                for column in dataset.columns
            }
        ),
        max_size=5,
    )


@pytest.mark.parametrize("dataset", [BINANCE_RAW_TRADE, KRAKEN_RAW_TRADE, EVERY_TYPE], ids=lambda one: one.name)
@given(data=st.data())
def test_whatever_rows_there_are_come_back(dataset: Dataset, data: st.DataObject) -> None:
    rows = data.draw(rows_of(dataset))
    table = pa.Table.from_pylist(rows, dataset.arrow_schema())
    begins = avro.ALONE + avro._fingerprint(dataset.avro_schema())
    values = [value for _, some in avro.messages(dataset, table, begins) for value in some]
    found = read(dataset, values)
    assert found.rows.equals(table)
    assert not found.letters


@given(st.integers(0, len(GOOD) - 1))
def test_a_message_cut_anywhere_is_a_letter_that_says_so(length: int) -> None:
    assert ("truncated" if length else "begins with nothing") in reason(GOOD[:length])


@given(st.binary(max_size=80), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
def test_bytes_of_any_kind_are_a_row_or_a_reason(noise: bytes, first: int, end: int) -> None:
    message = GOOD[:first] + noise + GOOD[end:]
    assume(not message.startswith(b"\x00"))  # of a registry, which is not set here: a setting lacks, not a message
    found = read(BINANCE_RAW_TRADE, [message, GOOD])
    assert len(found.rows) + len(found.letters) == 2
    assert found.rows.to_pylist()[-1] == BINANCE
    assert all(letter.reason for letter in found.letters)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (GOOD + b"\x00", "1 bytes follow the record"),
        (GOOD + GOOD, f"{len(GOOD)} bytes follow the record"),
        (b'{"price": 1}', "begins with 7b22"),
        (b"", "begins with nothing"),
        (None, "begins with nothing"),
        (b"\xc3\x01abc", "truncated: 5 bytes are no header"),
        (b"\x00\x00\x01", "truncated: 3 bytes are no header"),
        (b"\xc3\x01" + b"\x00" * 8 + GOOD[10:], "0000000000000000 is not the fingerprint of today's schema"),
        (GOOD[:11] + b"\xff" + GOOD[12:], "not a record of binance_raw_trade.*utf-8"),
        (GOOD[:-8] + zigzag(2**62), "not a record of binance_raw_trade"),
        (messages(KRAKEN_RAW_TRADE, [KRAKEN])[0][1], "is not the fingerprint of today's schema"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_a_letter_with_its_reason(value: bytes | None, says: str) -> None:
    assert re.search(says, reason(value))


def test_letters_do_not_stop_the_rows_around_them() -> None:
    found = read(BINANCE_RAW_TRADE, [GOOD, GOOD[:20], GOOD, b"", GOOD])
    assert found.offsets == [0, 2, 4]
    assert [letter.offset for letter in found.letters] == [1, 3]
    assert len(found.rows) == 3


def test_a_message_that_needs_the_registry_is_no_letter_where_none_is_set() -> None:
    with pytest.raises(UsageError, match="SCHEMA_REGISTRY_URL"):
        read(BINANCE_RAW_TRADE, [b"\x00\x00\x00\x00\x07" + GOOD[10:]])


def binance_trades(folder: Path) -> list[dict[str, Any]]:
    """Every recorded trade of the three files, each as the exchange sent it."""
    found = []
    for name in ("spot_btcusdt_20240808.gz", "spot_ethusdt_20240808.gz", "cryptofeed_BINANCE-ee25be.0.gz"):
        for line in gzip.decompress((folder / name).read_bytes()).decode().splitlines():
            received, _, text = line.partition(" ")
            says = json.loads(text).get("data", {}) if text.startswith("{") else {}
            if says.get("e") in ("trade", "aggTrade"):
                seconds = float(received.rstrip(":")) / (1 if received.endswith(":") else 1e9)
                found.append(
                    {
                        "event_type": says["e"],
                        "event_time_ms": says["E"],
                        "symbol": says["s"],
                        "trade_id": says["t"] if says["e"] == "trade" else says["a"],
                        "price": says["p"],
                        "quantity": says["q"],
                        "trade_time_ms": says["T"],
                        "is_buyer_maker": says["m"],
                        "ingestion_timestamp": datetime.fromtimestamp(seconds, UTC),
                    }
                )
    return found


def kraken_trades(folder: Path) -> list[dict[str, Any]]:
    """Trades of the websocket and of the REST answer."""
    found = []
    lines = [line.partition(": ")[2] for line in (folder / "cryptofeed_KRAKEN.ws.48.0").read_text().splitlines()]
    lines += (folder / "gocryptotrader_wsAllTrades.json").read_text().splitlines()
    answer = json.loads((folder / "nautilus_http_trades_XBTUSDT.json").read_text())["result"]["XBTUSDT"]
    said = [json.loads(line) for line in lines if line.startswith("[")]
    for trades, symbol in [*((one[1], one[-1]) for one in said if one[2] == "trade"), (answer, "XBTUSDT")]:
        for price, quantity, time, side, order_type, misc, *_ in trades:
            found.append(
                {
                    "symbol": symbol,
                    "price": price,
                    "quantity": quantity,
                    "trade_time_seconds": float(time),
                    "side": side,
                    "order_type": order_type,
                    "misc": misc,
                    "ingestion_timestamp": INSTANT,
                }
            )
    return found


@pytest.mark.parametrize(
    ("dataset", "trades", "folder", "number"),
    [
        (BINANCE_RAW_TRADE, binance_trades, "binance", 9757 + 6106 + 1910),
        (KRAKEN_RAW_TRADE, kraken_trades, "kraken", 10 + 2 + 1000),
    ],
    ids=["binance", "kraken"],
)
def test_real_trades_come_back_to_the_last_digit(
    dataset: Dataset,
    trades: Callable[[Path], list[dict[str, Any]]],
    folder: str,
    number: int,
    shared_data: Path,
) -> None:
    rows = trades(shared_data / "crypto" / folder)
    assert len(rows) == number
    found = read(dataset, [value for _, value in messages(dataset, rows)])
    assert not found.letters
    assert found.rows.to_pylist() == rows
