from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from marketdata.datasets import COMMODITY_PRICES
from marketdata.datasets.conform import canonical, connect, digest, projection

SAID = {
    "commodity": "Oil", "series": "WTI", "frequency": "daily", "price": "25.56", "currency": "USD", "unit": "bbl",
    "volume": None, "source": "eia", "event_time": "1986-01-02", "as_of": "2026-08-18",
}  # fmt: skip


def typed(**said):
    row = {**SAID, **said}
    connection = connect()
    connection.execute(
        "CREATE TEMP TABLE said AS SELECT " + ", ".join(f"CAST(${name} AS VARCHAR) AS {name}" for name in row), row
    )
    answer = connection.sql(f"SELECT {projection(COMMODITY_PRICES)} FROM said").to_arrow_table()
    return answer.to_pylist()[0]


@pytest.mark.parametrize(
    ("said", "price"),
    [
        ("25.56", "25.56"), ("-36.98", "-36.98"), ("1,720.80", "1720.8"), ("63.48999786376953", "63.489998"),
        ("26", "26"), (" 26 ", "26"), ("2.5e1", "25"), ("123456789012.123456", "123456789012.123456"),
        ("1,72", None), ("NaN", None), ("inf", None), ("1e400", None), ("", None), ("12.5K", None), ("abc", None),
    ],
)  # fmt: skip
def test_prices(said, price):
    assert typed(price=said)["price"] == (None if price is None else Decimal(price))


@pytest.mark.parametrize(
    ("said", "volume"),
    [("160.03K", "160030"), ("1.2M", "1200000"), ("2B", "2000000000"), ("79385", "79385"), ("", None), ("K", None)],
)
def test_volumes(said, volume):
    assert typed(volume=said)["volume"] == (None if volume is None else Decimal(volume))


@pytest.mark.parametrize(
    ("said", "moment"),
    [
        ("1833-01-01", datetime(1833, 1, 1, tzinfo=UTC)),
        ("2020-01-02T03:04:05+02:00", datetime(2020, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2020-01-02T03:04:05.123456Z", datetime(2020, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        ("02/01/2020", None),
        ("2020-02-30", None),
        ("yesterday", None),
        ("infinity", None),
        ("epoch", None),
        ("0022-01-01", None),
    ],
)
def test_times_are_utc_or_nothing(said, moment):
    assert typed(event_time=said)["event_time"] == moment


def test_names_are_normalised_and_unknown_ones_kept_as_said():
    row = typed(commodity=" CRUDE OIL ", unit="barrel", currency="usd", frequency="D")
    assert (row["commodity"], row["unit"], row["currency"], row["frequency"]) == ("Oil", "bbl", "USD", "daily")
    assert typed(commodity="Unobtainium")["commodity"] == "Unobtainium"
    assert typed(commodity="  ")["commodity"] is None


def test_the_content_hash_sees_values_not_their_spelling():
    def hashed(**said):
        connection = connect()
        row = {**SAID, **said}
        connection.execute(
            "CREATE TEMP TABLE said AS SELECT " + ", ".join(f"CAST(${name} AS VARCHAR) AS {name}" for name in row), row
        )
        expression = digest(*(canonical(column) for column in COMMODITY_PRICES.business_columns))
        return connection.execute(
            f"SELECT {expression} FROM (SELECT {projection(COMMODITY_PRICES)} FROM said)"
        ).fetchone()[0]

    assert hashed(price="25.560000", event_time="1986-01-02T00:00:00Z", as_of="1999-01-01") == hashed()
    assert hashed(price="25.57") != hashed()
    assert hashed(volume="0") != hashed(volume=None)
    assert hashed(series="A", frequency="daily") != hashed(series="Ad", frequency="aily")
