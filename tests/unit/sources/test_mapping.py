"""Mappings that are refused, and how the message leads to the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from marketdata.datasets import get
from marketdata.errors import UsageError
from marketdata.sources.mapping import CONSTANTS, PACKAGED, From, load
from tests.unit.sources.reading import entry


def said(folder: Path, text: str | bytes) -> Path:
    path = folder / "m.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("name", ["archive.yaml", "commodities.yaml"])
def test_packaged_mappings_speak_the_dataset_s_language(name: str) -> None:
    dataset = get("commodity_prices")
    for item in load(PACKAGED / name).entries:
        for prices in item.prices:
            values = prices.values
            assert (values["commodity"], values["unit"]) in dataset.ranges
            assert values["frequency"] in set(dataset.aliases["frequency"].values())
            assert values["currency"] == "USD"


def test_every_constant_is_a_raw_column() -> None:
    raw = {column.name for column in get("commodity_prices").raw_columns}
    assert raw == {*CONSTANTS, "price", "volume", "event_time", "as_of"}


def test_scalars_stay_text(tmp_path: Path) -> None:
    text = f"entries:{entry('a.csv', 'as_of: 2020-06-02')}".replace("Oil", "no").replace("WTI", "{column: 2020}")
    (item,) = load(said(tmp_path, text)).entries
    assert item.as_of == "2020-06-02"
    assert item.prices[0].values["commodity"] == "no"
    assert item.prices[0].values["series"] == From("2020")
    assert item.layout.columns == ("Date", "Price", "2020")


def test_comments_do_not_change_the_digest(tmp_path: Path) -> None:
    first = load(said(tmp_path, f"entries:{entry('a.csv')}")).digest
    assert load(said(tmp_path, f"# a comment\nentries:{entry('a.csv')}")).digest == first
    assert load(said(tmp_path, f"entries:{entry('b.csv')}")).digest != first


GOOD = f"entries:{entry('a.csv')}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"the mapping m\.yaml is not valid: None is not of type 'object'"),
        ("entries: []", r"entries: \[\] (should be non-empty|is too short)"),
        (GOOD + "\n    colour: red\n", r"entries\[0\] \(a.csv\): .*'colour' was unexpected"),
        (GOOD.replace("source: test", ""), r"entries\[0\] \(a.csv\) does not say the source"),
        (GOOD.replace("price: Price", ""), r"entries\[0\] \(a.csv\): says neither price nor prices, or both"),
        (GOOD + "\n    prices: {A: {series: A}}\n", r"entries\[0\] \(a.csv\): says neither price nor prices, or both"),
        (GOOD.replace("%Y-%m-%d", "%Q"), r"entries\[0\] \(a.csv\).date.format: '%Q' is not a format"),
        (GOOD.replace("column: Date", "colum: Date"), r"entries\[0\] \(a.csv\).date: .*'colum' was unexpected"),
        (GOOD.replace("series: WTI", "series: {col: x}"), r"entries\[0\] \(a.csv\).series: .*(column|col)"),
        (GOOD + "\n    encoding: utf-9\n", r"entries\[0\] \(a.csv\).encoding: 'utf-9' is not known as an encoding"),
        (GOOD + "\n    encoding: rot13\n", r"entries\[0\] \(a.csv\).encoding: 'rot13' is not known"),
        (GOOD + "\n    skip_rows: many\n", r"entries\[0\] \(a.csv\).skip_rows: 'many' does not match"),
        (GOOD + "\n    delimiter: ab\n", r"entries\[0\] \(a.csv\).delimiter: 'ab' is too long"),
        (GOOD + "\n    as_of: June 2026\n", r"entries\[0\] \(a.csv\).as_of: 'June 2026' does not match"),
        (GOOD.replace("a.csv", "../a.csv"), r"entries\[0\] \(\.\./a.csv\).files leaves the folder"),
        (GOOD.replace("a.csv", "/etc/passwd"), r"entries\[0\] \(/etc/passwd\).files leaves the folder"),
        (GOOD.replace("a.csv", "sub/../../a.csv"), "leaves the folder"),
        ("entries: [", "is not valid YAML at line 1"),
        (GOOD + "\n    unit: lb\n", "is not valid YAML at line .*: a key is no text or is there twice"),
        ("entries: &a [*a]", "is not valid YAML at line 1.*aliases are not allowed"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nentries: [*b,*b]", "aliases are not allowed"),
        ("entries: !!python/object/apply:os.system [id]", "not valid"),
        (b"entries: \xff\xfe", "is not valid YAML"),
        ("[" * 100_000, "is not valid YAML"),
        ("# " + "x" * 300_000, "is larger than 256 KiB"),
        ("? [a]\n: b", "a key is no text"),
    ],
)  # fmt: skip
def test_what_is_wrong_and_where(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load(said(tmp_path, text))


def test_a_wide_series_that_lacks_a_value(tmp_path: Path) -> None:
    text = GOOD.replace("price: Price", "prices: {A: {series: A}, B: {series: B}}").replace("unit: bbl", "")
    with pytest.raises(UsageError, match=r"\(a.csv\).prices.A does not say the unit"):
        load(said(tmp_path, text))


def test_a_mapping_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the mapping .*No such file"):
        load(tmp_path / "no.yaml")
