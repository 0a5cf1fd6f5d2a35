from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest

from marketdata.operations.judge import each_once, judge
from marketdata.operations.proof import prove_table

SENT = pa.table(
    {
        "number": [0, 1, 2],
        "record_id": ["a", "b", "c"],
        "price": pa.array([Decimal("1.000001"), Decimal("2"), Decimal("3")], pa.decimal128(18, 6)),
    }
)


@pytest.mark.parametrize(
    ("ids", "prices", "missed"),
    [
        ("abc", "1.000001 2 3", set()),
        ("cab", "3 1.000001 2", set()),
        ("ab", "1.000001 2", {"lost", "price_difference"}),
        ("abcc", "1.000001 2 3 3", {"repeated", "price_difference"}),
        ("abcd", "1.000001 2 3 0", {"foreign"}),
        ("abc", "1 2 3", {"price_difference"}),
        ("", "", {"lost", "price_difference"}),
    ],
)
def test_what_is_not_there_once_to_the_last_digit_is_named(ids: str, prices: str, missed: set[str]):
    decimals = pa.array([Decimal(price) for price in prices.split()], pa.decimal128(18, 6))
    held = pa.table({"record_id": pa.array(list(ids), pa.string()), "price": decimals})
    checks = judge(each_once("table", "Records of the batch"), prove_table(SENT, held))
    assert {check.threshold.figure for check in checks if check.fails} == missed
