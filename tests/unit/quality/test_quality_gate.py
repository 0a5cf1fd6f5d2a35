"""The gate as a whole: identity, aggregation, known events, hostile texts, and what is not a pass."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from marketdata.datasets import COMMODITY_PRICES, quarantine
from marketdata.errors import MarketdataError, UsageError
from marketdata.quality import Verdict, gate, suite_path
from tests.unit.quality.conftest import CONTEXT, GOOD, INGESTED_AT, use_suite

Judge = Callable[..., Verdict]
Row = Callable[..., dict[str, Any]]

WTI = {"commodity": "Oil", "series": "WTI", "unit": "bbl", "source": "eia"}
EVENT = "known event 2020-04-20: WTI settled below zero when the May 2020 contract expired with storage full"
NASTY = [
    "",
    " ",
    "\t",
    "NaN",
    "inf",
    "-Infinity",
    "1e400",
    "1e-400",
    "１２",
    "12 34",
    "0x10",
    "💥",
    "\x00",
    "\u202e1900",
]


def test_the_day_oil_was_below_zero_is_named(judge: Judge, row: Row) -> None:
    verdict = judge(
        [row(**WTI, price="20.11", event_time="2020-04-17"), row(**WTI, price="-36.98", event_time="2020-04-20")]
    )

    (refused,) = verdict.quarantined.to_pylist()
    assert refused["reason"] == f"price must be above 0: -36.98 ({EVENT})"
    assert verdict.reasons == {f"price must be above 0: -36.98 ({EVENT})": 1}
    assert verdict.passed


@pytest.mark.parametrize(
    "changes", [{"series": "Brent"}, {"event_time": "2020-04-21"}, {"price": "40", "currency": "EUR"}]
)
def test_another_series_day_or_rule_is_not_that_event(changes: dict[str, Any], judge: Judge, row: Row) -> None:
    bad = row(**WTI | {"price": "-36.98", "event_time": "2020-04-20"} | changes)

    (refused,) = judge([row(), bad]).quarantined.to_pylist()

    assert "known event" not in refused["reason"]


def test_the_history_of_the_eia_loses_that_day_alone(shared_data: Path) -> None:
    file = shared_data / "commodities" / "eia" / "wti-daily.csv"
    rows = duckdb.sql(
        f"""SELECT 'oil' AS commodity, 'WTI' AS series, 'daily' AS frequency, "Price" AS price, 'USD' AS currency,
            'bbl' AS unit, NULL::VARCHAR AS volume, 'eia' AS source, "Date" AS event_time, '2026-10-01' AS as_of,
            'wti-daily.csv' AS origin, row_number() OVER () AS origin_row
            FROM read_csv('{file}', all_varchar = true)"""
    ).to_arrow_table()

    verdict = gate(
        COMMODITY_PRICES, [rows.cast(COMMODITY_PRICES.raw_schema())], ingested_at=INGESTED_AT, context=CONTEXT
    )

    assert verdict.passed
    assert (verdict.rows, verdict.accepted) == (10_226, 10_225)
    (refused,) = verdict.quarantined.to_pylist()
    assert (refused["event_time"], refused["value"]) == ("2020-04-20", "-36.98")
    assert EVENT in refused["reason"]
    assert verdict.by_series == [
        {
            "source": "eia", "commodity": "Oil", "series": "WTI", "frequency": "daily",
            "extracted": 10_226, "accepted": 10_225, "quarantined": 1,
        }
    ]  # fmt: skip


def test_hostile_texts_are_judged_the_same_everywhere(judge: Judge, row: Row, shared_data: Path) -> None:
    texts = [*NASTY, *json.loads((shared_data / "bad" / "blns.json").read_text())]
    columns = ("commodity", "price", "volume", "event_time", "as_of", "unit")
    rows = [row(**{column: text, "series": f"s{n}"}) for column in columns for n, text in enumerate(texts)]

    verdict = judge(rows)
    again = judge([*reversed(rows)])

    assert verdict.rows == len(rows) == verdict.accepted + len(verdict.quarantined)
    ids = verdict.quarantined["quarantine_id"].to_pylist()
    assert sorted(ids) == sorted(again.quarantined["quarantine_id"].to_pylist())
    assert json.loads(json.dumps(verdict.result, allow_nan=False)) == verdict.result
    for refused in verdict.quarantined.to_pylist():
        said = json.loads(refused["row"])
        assert {name: rows[refused["row_index"]][name] for name in said} == said
        assert not any(ord(character) < 32 or character == "\u202e" for character in refused["reason"])


@pytest.mark.parametrize("column", ["price", "volume"])
def test_what_only_looks_like_a_number_is_none(column: str, judge: Judge, row: Row) -> None:
    texts = ["NaN", "inf", "-Infinity", "1e400", "１２", "12 34", "0x10", "💥", "1.2.3", "--1"]

    verdict = judge([row(**{column: text}) for text in texts])

    assert verdict.quarantined["rules"].to_pylist() == [f"{column}_is_number"] * len(texts)


def test_times_beyond_nanoseconds_are_refused_not_wrapped(judge: Judge, row: Row) -> None:
    beyond = ["2262-04-12", "2999-12-31", "1677-09-20", "1000-01-01"]
    strange = ["9999-12-31", "0001-01-01", "infinity", "-infinity", "294000-01-01", "2020-01-01 (BC)"]

    verdict = judge([row(event_time=text) for text in [*beyond, *strange]])

    assert verdict.quarantined["rules"].to_pylist()[: len(beyond)] == ["event_time_plausible"] * len(beyond)
    assert len(verdict.quarantined) == len(beyond) + len(strange)


def test_the_quarantine_table_has_its_contract(judge: Judge, row: Row) -> None:
    table = judge([row(), row(price="x")]).quarantined

    wanted = quarantine(COMMODITY_PRICES).arrow_schema()
    assert table.schema.names == [*wanted.names, "row_index"]
    assert table.drop_columns(["row_index"]).schema == wanted
    (refused,) = table.to_pylist()
    assert refused["quarantined_at"] == INGESTED_AT
    assert {name: refused[name] for name in CONTEXT} == CONTEXT
    assert json.loads(refused["row"])["price"] == "x"
    assert (refused["commodity"], refused["dataset"]) == ("Gold", "commodity_prices")


def test_the_same_bad_row_has_the_same_id_tomorrow(judge: Judge, row: Row) -> None:
    from datetime import timedelta

    def ids(rows: list[dict[str, Any]], **changes: Any) -> list[str]:
        return judge(rows, **changes).quarantined["quarantine_id"].to_pylist()

    bad = row(price="x")
    (today,) = ids([row(), bad])
    tomorrow = {
        "ingested_at": INGESTED_AT + timedelta(days=1),
        "context": {**CONTEXT, "batch_id": "b2", "run_id": "r2"},
    }

    assert ids([row(), row(), bad | {"as_of": "2024-06-01"}], **tomorrow) == [today]
    others = [bad | {"price": "y"}, bad | {"series": "x"}, bad | {"event_time": "2024-05-02"}, bad | {"source": "x"}]
    assert today not in ids([row(), *others])
    assert len(set(ids([row(), *others]))) == len(others)
    assert ids([row(), bad], context={**CONTEXT, "tenant": "acme"}) != [today]


def test_many_chunks_say_what_one_says(table_of: Any, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    def price(number: int) -> str | None:
        return {0: "-1", 7: "n/a", 11: None}.get(number % 97, "1900")

    def minute(number: int) -> str:
        return f"{1900 + number // 300}-01-{number % 28 + 1:02d}T{number % 24:02d}:00Z"

    rows = [
        row(series=f"s{n % 3}", event_time=minute(n), price=price(n), volume=None if n % 2 else "1")
        for n in range(2000)
    ]
    rows += [row(origin_row=1), row(origin_row=2), row(origin_row=3, price="1899")]
    rows[5] = rows[-1] | {"origin": "first.csv"}
    whole = table_of(rows)
    one = gate(COMMODITY_PRICES, [whole], ingested_at=INGESTED_AT, context=CONTEXT)

    monkeypatch.setattr("marketdata.quality.frames.CHUNK_ROWS", 300)
    parts = [whole.slice(first, 100) for first in range(0, len(whole), 100)]
    many = gate(COMMODITY_PRICES, iter(parts), ingested_at=INGESTED_AT, context=CONTEXT)

    assert one.quarantined.equals(many.quarantined)
    assert one.quarantined["row_index"].to_pylist() == [n for n in range(2000) if price(n) != "1900" and n != 5]
    assert one.rules == many.rules
    assert one.by_series == many.by_series
    assert one.reasons == many.reasons
    assert [failure["rule"] for failure in one.failures] == ["no_conflicting_keys"]
    assert one.failures == many.failures
    assert one.result == many.result


def test_lists_of_the_result_are_cut_and_counts_are_not(judge: Judge, row: Row) -> None:
    verdict = judge([row(price="-1", event_time=f"2024-01-01T00:{n // 60:02d}:{n % 60:02d}Z") for n in range(900)])

    result = next(
        one for one in verdict.result["results"] if one["expectation_config"]["meta"]["rule"] == "price_positive"
    )
    assert result["result"]["unexpected_count"] == 900
    assert result["result"]["unexpected_index_list"] == list(range(200))
    assert result["result"]["unexpected_list"] == [-1.0] * 200
    assert result["result"]["partial_unexpected_counts"] == [{"value": -1.0, "count": 20}]
    assert result["result"]["unexpected_percent"] == 100.0


def test_great_expectations_can_read_the_result(judge: Judge, row: Row) -> None:
    from great_expectations.core import ExpectationSuiteValidationResultSchema

    verdict = judge([row(), row(price="x")])

    loaded = ExpectationSuiteValidationResultSchema().load(json.loads(json.dumps(verdict.result, allow_nan=False)))
    assert len(loaded["results"]) == verdict.result["statistics"]["evaluated_expectations"] == len(verdict.rules)
    assert loaded["success"] is False


def test_texts_may_be_dictionary_encoded(table_of: Any, row: Row) -> None:
    plain = table_of([row(), row(price="x"), row(commodity=None), row(series="b")])
    encoded = pa.table({name: plain[name].dictionary_encode() for name in plain.schema.names if name != "origin_row"})
    encoded = encoded.append_column("origin_row", plain["origin_row"])

    one, other = (gate(COMMODITY_PRICES, [t], ingested_at=INGESTED_AT, context=CONTEXT) for t in (plain, encoded))

    assert one.quarantined.equals(other.quarantined)
    assert one.by_series == other.by_series


def test_an_empty_extract_passes_without_great_expectations(tmp_path: Path) -> None:
    script = f"""
import sys
from datetime import UTC, datetime
from marketdata.datasets import COMMODITY_PRICES as D
from marketdata import quality
for tables in ([], [D.raw_schema().empty_table()]):
    verdict = quality.gate(D, tables, ingested_at=datetime.now(UTC), context={CONTEXT!r})
    assert verdict.passed and (verdict.rows, verdict.accepted, len(verdict.quarantined)) == (0, 0, 0)
print("great_expectations" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_the_gate_says_nothing_and_writes_nothing(tmp_path: Path) -> None:
    script = f"""
from datetime import UTC, datetime
import pyarrow as pa
from marketdata.datasets import COMMODITY_PRICES as D
from marketdata import quality
table = pa.Table.from_pylist([{GOOD!r}, {GOOD | {"price": "x"}!r}], schema=D.raw_schema())
assert len(quality.gate(D, [table], ingested_at=datetime.now(UTC), context={CONTEXT!r}).quarantined) == 1
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rule", "change", "error", "says"),
    [
        ("price_positive", {"column": "no_such_column"}, MarketdataError, "no_such_column"),
        ("commodity_known", {"value_set": {"$PARAMETER": "nobody"}}, MarketdataError, "nobody"),
        ("price_positive", {"min_value": None}, UsageError, "min_value"),
    ],
)
def test_an_expectation_that_cannot_be_checked_is_no_pass(
    rule: str, change: dict[str, Any], error: type[MarketdataError], says: str,
    judge: Judge, row: Row, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    suite = json.loads(suite_path(COMMODITY_PRICES).read_text())
    next(one for one in suite["expectations"] if one["meta"]["rule"] == rule)["kwargs"].update(change)
    use_suite(suite, monkeypatch, tmp_path)

    with pytest.raises(error, match=says) as raised:
        judge([row()])

    assert raised.value.exit_code == (64 if error is UsageError else 70)
    assert "\n" not in raised.value.message


def test_a_row_rule_that_names_no_rows_is_refused(
    judge: Judge, row: Row, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    suite = json.loads(suite_path(COMMODITY_PRICES).read_text())
    suite["expectations"][0] |= {"type": "expect_column_to_exist", "kwargs": {"column": "commodity"}}
    use_suite(suite, monkeypatch, tmp_path)

    with pytest.raises(UsageError, match="commodity_given is a expect_column_to_exist, which names no rows"):
        judge([row()])
