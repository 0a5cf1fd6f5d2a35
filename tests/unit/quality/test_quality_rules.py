"""Each rule, broken once: the row is quarantined for that rule, or the run stops for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from marketdata.datasets import COMMODITY_PRICES
from marketdata.quality import Verdict, gate, load_suite, suite_path
from tests.unit.quality.conftest import CONTEXT, GOOD, INGESTED_AT, use_suite

Judge = Callable[..., Verdict]
Row = Callable[..., dict[str, Any]]

ROW_RULES: dict[str, tuple[dict[str, Any], str, str]] = {
    "commodity_given": ({"commodity": " "}, "commodity_given", "commodity must be given (nothing said)"),
    "commodity_known": (
        {"commodity": "Platinum"},
        "commodity_known",
        "commodity must be Gold, Silver, Copper, Oil or Natural Gas: Platinum",
    ),
    "series_given": ({"series": None}, "series_given", "series must be given (nothing said)"),
    "frequency_given": ({"frequency": ""}, "frequency_given", "frequency must be given (nothing said)"),
    "frequency_known": ({"frequency": "hourly"}, "frequency_known", "frequency must be daily or monthly: hourly"),
    "price_given": ({"price": None}, "price_given", "price must be given (nothing said)"),
    "price_is_number": (
        {"price": "n/a"},
        "price_is_number",
        "price must be a number of at most 12 digits before the point: n/a",
    ),
    "price_positive": ({"price": "0"}, "price_positive,price_not_too_low", "price must be above 0: 0"),
    "price_not_too_low": (
        {"price": "9.999999"},
        "price_not_too_low",
        "price must not be below the plausible range of its commodity and unit: 9.999999 (limit 10)",
    ),
    "price_not_too_high": (
        {"price": "20000.000001"},
        "price_not_too_high",
        "price must not be above the plausible range of its commodity and unit: 20000.000001 (limit 20000)",
    ),
    "currency_given": ({"currency": None}, "currency_given", "currency must be given (nothing said)"),
    "currency_known": (
        {"currency": "EUR"},
        "currency_known",
        "currency must be USD, the ISO 4217 code the plausible ranges are in: EUR",
    ),
    "unit_given": ({"unit": None}, "unit_given", "unit must be given (nothing said)"),
    "unit_known": ({"unit": "kg"}, "unit_known", "unit must be troy_oz, lb, bbl, mmbtu or tonne: kg"),
    "unit_fits_commodity": (
        {"unit": "bbl"},
        "unit_fits_commodity",
        "unit must be one that the commodity is priced in: bbl",
    ),
    "volume_is_number": ({"volume": "many"}, "volume_is_number", "volume, where given, must be a number: many"),
    "volume_not_negative": ({"volume": "-1"}, "volume_not_negative", "volume must not be negative: -1"),
    "source_given": ({"source": None}, "source_given", "source must be given (nothing said)"),
    "event_time_given": ({"event_time": None}, "event_time_given", "event time must be given (nothing said)"),
    "event_time_is_timestamp": (
        {"event_time": "2024-13-01"},
        "event_time_is_timestamp",
        "event time must be an ISO 8601 timestamp: 2024-13-01",
    ),
    "event_time_plausible": (
        {"event_time": "2026-11-01T12:05:01Z"},
        "event_time_plausible",
        "event time must lie between the year 1800 and five minutes after the extraction: 2026-11-01T12:05:01Z",
    ),
    "as_of_given": ({"as_of": None}, "as_of_given", "as-of time must be given (nothing said)"),
    "as_of_is_timestamp": (
        {"as_of": "soon"},
        "as_of_is_timestamp",
        "as-of time must be an ISO 8601 timestamp: soon",
    ),
    "as_of_plausible": (
        {"as_of": "2100-01-01"},
        "as_of_plausible",
        "as-of time must lie between the year 1800 and five minutes after the extraction: 2100-01-01",
    ),
}


def test_every_row_rule_of_the_suite_has_a_case() -> None:
    assert [rule.id for rule in load_suite(COMMODITY_PRICES).of("row")] == list(ROW_RULES)


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    """One gate over a bad row per rule, spread among good ones."""
    rows: list[dict[str, Any]] = []
    for changes, _, _ in ROW_RULES.values():
        rows += [{**GOOD, "series": f"s{len(rows)}"}] * 24 + [{**GOOD, **changes, "origin_row": len(rows)}]
    return _gate(pa.Table.from_pylist(rows, schema=COMMODITY_PRICES.raw_schema()))


@pytest.mark.parametrize("rule", ROW_RULES)
def test_a_row_that_breaks_a_rule_is_quarantined_for_it(rule: str, verdict: Verdict) -> None:
    changes, rules, reason = ROW_RULES[rule]
    place = list(ROW_RULES).index(rule)

    refused = verdict.quarantined.to_pylist()[place]

    assert refused["row_index"] == 25 * place + 24
    assert refused["rules"] == rules
    assert refused["reason"] == reason
    assert refused["value"] == next(iter(changes.values()))
    assert (refused["origin"], refused["origin_row"]) == ("gold.csv", 25 * place)
    assert verdict.reasons[reason] == 1
    breaking = sum(rule in broken.split(",") for _, broken, _ in ROW_RULES.values())
    assert [told["failed"] for told in verdict.rules if told["rule"] == rule] == [breaking]


def test_row_rules_quarantine_exactly_the_bad_rows_and_stop_nothing(verdict: Verdict) -> None:
    assert verdict.passed
    assert len(verdict.quarantined) == len(ROW_RULES)
    assert (verdict.rows, verdict.accepted) == (25 * len(ROW_RULES), 24 * len(ROW_RULES))


@pytest.mark.parametrize("rule", ["commodity_known", "series_given", "price_not_too_high", "as_of_plausible"])
def test_without_its_rule_the_row_passes(
    rule: str, judge: Judge, row: Row, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The suite is what refuses: with the rule taken out of the file, nothing else does it in its place."""
    suite = json.loads(suite_path(COMMODITY_PRICES).read_text())
    suite["expectations"] = [one for one in suite["expectations"] if one["meta"]["rule"] != rule]
    use_suite(suite, monkeypatch, tmp_path)

    assert len(judge([row(), row(series="other") | ROW_RULES[rule][0]]).quarantined) == 0


def test_what_a_source_may_say_passes(judge: Judge, row: Row) -> None:
    good: list[dict[str, Any]] = [
        {},
        {"commodity": "crude oil", "unit": "barrel", "price": "0.5"},
        {"commodity": "natgas", "unit": "mmbtu", "price": "100"},
        {"commodity": "copper", "unit": "mt", "price": "9,876.5"},
        {"price": " 1,234.56 "},
        {"volume": None},
        {"volume": "160.03K"},
        {"currency": "$"},
        {"frequency": "M"},
        {"event_time": "2026-11-01T12:05:00Z"},
        {"event_time": "1833-01-01"},
        {"event_time": "2024-05-01T02:00:00+02:00"},
    ]

    verdict = judge([row(series=f"s{number}", **changes) for number, changes in enumerate(good)])

    assert verdict.quarantined.to_pylist() == []
    assert (verdict.passed, verdict.accepted) == (True, len(good))


def test_a_row_names_all_the_rules_it_breaks_the_first_is_the_reason(judge: Judge, row: Row) -> None:
    verdict = judge([row(), row(commodity="Tin", price="x", source="")])

    (refused,) = verdict.quarantined.to_pylist()
    assert refused["rules"] == "commodity_known,price_is_number,source_given"
    assert refused["reason"].startswith("commodity must be")


def test_missing_columns_stop_the_run(table_of: Any, row: Row) -> None:
    verdict = _gate(table_of([row()]).drop_columns(["unit", "price"]))

    assert [failure["rule"] for failure in verdict.failures] == ["no_missing_columns"]
    assert verdict.failures[0]["observed"] == "missing: price, unit"
    assert (verdict.rows, verdict.accepted, len(verdict.quarantined)) == (1, 0, 0)


def test_unexpected_columns_stop_the_run(table_of: Any, row: Row) -> None:
    table = table_of([row()])

    verdict = _gate(table.append_column("adjusted", table["price"]))

    assert [failure["rule"] for failure in verdict.failures] == ["no_unexpected_columns"]
    assert verdict.failures[0]["observed"] == "unexpected: adjusted (string)"


def test_a_column_that_is_no_text_stops_the_run(table_of: Any, row: Row) -> None:
    table = table_of([row()])

    verdict = _gate(table.set_column(3, "price", pa.array([2000.5])))

    assert verdict.failures[0]["observed"] == "unexpected: price (double)"


def test_a_part_that_drifts_stops_the_run_and_the_other_parts_are_judged(table_of: Any, row: Row) -> None:
    good = table_of([row(), row(price="-1")])

    verdict = _gate(good, good.drop_columns(["unit"]))

    assert [failure["rule"] for failure in verdict.failures] == ["no_missing_columns"]
    assert (verdict.rows, verdict.accepted, len(verdict.quarantined)) == (4, 1, 1)


@pytest.mark.parametrize(("rows", "bad", "stops"), [(20, 1, False), (20, 2, True), (19, 2, False), (40, 2, False)])
def test_more_than_five_percent_of_twenty_rows_stop_the_run(
    rows: int, bad: int, stops: bool, judge: Judge, row: Row
) -> None:
    verdict = judge([row(price="-1" if number < bad else "1900", series=f"s{number}") for number in range(rows)])

    assert [failure["rule"] for failure in verdict.failures] == ["few_rows_quarantined"] * stops
    assert verdict.passed is not stops
    if stops:
        assert verdict.failures[0]["observed"] == "2 of 20 rows quarantined (10.0%)"


def test_no_accepted_row_stops_the_run(judge: Judge, row: Row) -> None:
    verdict = judge([row(price="-1")])

    assert [failure["rule"] for failure in verdict.failures] == ["some_rows_accepted"]
    assert verdict.failures[0]["observed"] == "0 of 1 rows accepted"


def test_rows_of_one_key_that_disagree_stop_the_run_and_are_named(judge: Judge, row: Row) -> None:
    verdict = judge([row(), row(series="other"), row(price="2000.51", origin="more.csv", origin_row=7)])

    assert [failure["rule"] for failure in verdict.failures] == ["no_conflicting_keys"]
    assert verdict.failures[0]["observed"] == (
        "keys that disagree: 1 (GC=F 2024-05-01T00:00:00Z in gold.csv row 1 and more.csv row 7)"
    )


def test_rows_that_do_not_disagree_pass(judge: Judge, row: Row) -> None:
    others = {
        "same row": {"origin": "copy.csv"},
        "same meaning": {"price": "2000.500", "commodity": "gold", "event_time": "2024-05-01"},
        "revision": {"price": "1999", "as_of": "2024-05-03"},
        "other frequency": {"price": "1999", "frequency": "monthly"},
        "other source": {"price": "1999", "source": "archive"},
        "other day": {"price": "1999", "event_time": "2024-05-02"},
        "quarantined": {"price": "-1999"},
    }

    assert judge([row() for _ in range(20)] + [row(**changes) for changes in others.values()]).failures == []


def _gate(*tables: pa.Table) -> Verdict:
    return gate(COMMODITY_PRICES, iter(tables), ingested_at=INGESTED_AT, context=CONTEXT)
