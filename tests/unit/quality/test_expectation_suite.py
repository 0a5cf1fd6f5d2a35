"""The suite files: what Great Expectations reads, and what the contract of the dataset says too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marketdata.datasets import COMMODITY_PRICES, DATASETS
from marketdata.datasets.dataset import TEXT
from marketdata.errors import UsageError
from marketdata.quality import load_suite, suite_hash, suite_path
from tests.unit.quality.conftest import use_suite

SUITE = suite_path(COMMODITY_PRICES)


def _rules() -> dict[str, dict[str, Any]]:
    return {one["meta"]["rule"]: one["kwargs"] for one in json.loads(SUITE.read_text())["expectations"]}


def test_every_dataset_has_a_suite() -> None:
    assert DATASETS
    for dataset in DATASETS.values():
        assert load_suite(dataset).name == dataset.name


def test_great_expectations_reads_the_file_as_it_is() -> None:
    import great_expectations as gx

    suite = gx.ExpectationSuite(**json.loads(SUITE.read_text()))

    assert suite.name == COMMODITY_PRICES.name
    assert [one.meta["rule"] for one in suite.expectations] == [rule.id for rule in load_suite(COMMODITY_PRICES).rules]


def test_every_required_column_has_a_rule_that_it_is_given() -> None:
    required = [f"{column.name}_given" for column in COMMODITY_PRICES.raw_columns if column.required]

    assert [rule for rule in _rules() if rule.endswith("_given")] == sorted(required, key=list(_rules()).index)


def test_every_typed_column_has_a_rule_that_it_is_of_its_type() -> None:
    typed = {f"{column.name}_said" for column in COMMODITY_PRICES.raw_columns if column.type != TEXT}
    sets = {kwargs["column"] for kwargs in _rules().values() if "nothing" in (kwargs.get("value_set") or [])[1:]}

    assert sets == typed


@pytest.mark.parametrize("column", ["commodity", "unit", "currency", "frequency"])
def test_sets_are_the_contracts(column: str) -> None:
    assert set(_rules()[f"{column}_known"]["value_set"]) == set(COMMODITY_PRICES.aliases[column].values())


def test_markets_are_the_contracts_ranges() -> None:
    markets = {f"{commodity} in {unit}" for commodity, unit in COMMODITY_PRICES.ranges}

    assert set(_rules()["unit_fits_commodity"]["value_set"]) == markets


def test_the_hash_is_of_the_content_not_of_the_layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = suite_hash(COMMODITY_PRICES)
    document = json.loads(SUITE.read_text())

    use_suite(json.dumps(document, indent=7), monkeypatch, tmp_path)
    assert suite_hash(COMMODITY_PRICES) == before

    document["expectations"][0]["kwargs"]["mostly"] = 0.9
    suite_path(COMMODITY_PRICES).write_text(json.dumps(document))
    assert suite_hash(COMMODITY_PRICES) != before


def test_the_image_s_suite_is_found_where_there_is_no_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("marketdata.quality.suite.CHECKOUT", tmp_path / "site-packages")
    monkeypatch.setattr("marketdata.quality.suite.IMAGE", SUITE.parent)

    assert suite_path(COMMODITY_PRICES) == SUITE


def test_a_missing_suite_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("marketdata.quality.suite.CHECKOUT", tmp_path / "a")
    monkeypatch.setattr("marketdata.quality.suite.IMAGE", tmp_path / "b")

    with pytest.raises(UsageError, match=r"commodity_prices has no expectation suite: neither .*/a/.* nor .*/b/"):
        suite_path(COMMODITY_PRICES)


_META = {"rule": "r", "level": "row", "says": "s", "column": "price"}
_EXPECTATION = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "price"}, "meta": _META}


@pytest.mark.parametrize(
    ("suite", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ({"name": "x", "expectations": []}, "needs a name and a list of expectations"),
        ({"name": "x", "expectations": ["x"]}, "expectation 1 has no meta"),
        ({"name": "x", "expectations": [_EXPECTATION | {"meta": {**_META, "says": ""}}]}, "expectation 1 lacks says"),
        ({"name": "x", "expectations": [_EXPECTATION | {"meta": {**_META, "level": "table"}}]}, "lacks observed"),
        (
            {"name": "x", "expectations": [_EXPECTATION | {"meta": {**_META, "level": "table", "observed": "o"}}]},
            "level 'table' of rule r is unknown",
        ),
        ({"name": "x", "expectations": [_EXPECTATION] * 2}, "names rule r twice"),
        ({"name": "x", "expectations": [_EXPECTATION | {"meta": {**_META, "column": "colour"}}]}, "quotes colour"),
    ],
)
def test_what_is_no_suite_is_refused(suite: Any, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_suite(suite, monkeypatch, tmp_path)

    with pytest.raises(UsageError, match=says):
        load_suite(COMMODITY_PRICES)


def test_what_great_expectations_refuses_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_suite({"name": "x", "expectations": [_EXPECTATION | {"type": "expect_miracles"}]}, monkeypatch, tmp_path)

    with pytest.raises(UsageError, match=r"Great Expectations refuses suite x: .*expect_miracles"):
        load_suite(COMMODITY_PRICES).expectations("row")
