"""What may change in a topic's schema, judged without a registry; tests/engines/test_registry.py asks a real one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from marketdata import datasets
from marketdata.datasets import COMMODITY_PRICES, Column, Dataset
from marketdata.datasets.raw_trades import BINANCE_RAW_TRADE
from marketdata.settings import CHECKOUT
from marketdata.streaming import schemas, topics
from marketdata.streaming.topics import Topic
from marketdata.tasks import reference

RELEASED = CHECKOUT / "docs" / "reference" / "schemas"


def without(dataset: Dataset, name: str) -> Dataset:
    return replace(dataset, columns=tuple(column for column in dataset.columns if column.name != name))


def changed(dataset: Dataset, name: str, **changes: Any) -> Dataset:
    columns = tuple(replace(column, **changes) if column.name == name else column for column in dataset.columns)
    return replace(dataset, columns=columns)


def added(dataset: Dataset, **of_column: Any) -> Dataset:
    return replace(dataset, columns=(*dataset.columns, Column("venue", "string", "Where it was traded.", **of_column)))


@dataclass(frozen=True)
class Change:
    """A change of a dataset, and what is said of it; nothing where it is allowed."""

    says: str
    after: Dataset

    @property
    def topic(self) -> str:
        return self.after.topic


CHANGES = {
    f"{before.topic}: {what}": Change(says, after)
    for before, column in ((COMMODITY_PRICES, "price"), (BINANCE_RAW_TRADE, "trade_id"))
    for what, says, after in (
        ("nothing", "", before),
        ("another doc", "", changed(before, column, doc="Said better.")),
        ("an optional column more", "", added(before, required=False)),
        ("a required column more", "venue is new and required", added(before)),
        ("a column less", f"{column} is gone", without(before, column)),
        ("another type", f"{column} has changed", changed(before, column, type="string")),
        ("optional from now on", f"{column} has changed", changed(before, column, required=False)),
    )
} | {
    "commodity-prices: required from now on": Change(
        "volume has changed", changed(COMMODITY_PRICES, "volume", required=True)
    ),
    "commodity-prices: an optional column less": Change("volume is gone", without(COMMODITY_PRICES, "volume")),
}


def topic_of(dataset: Dataset) -> Topic:
    return next(topic for topic in topics.catalogue() if topic.dataset == dataset.name and topic.role == "records")


def put(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    """Have the platform define the dataset so."""
    known = datasets.EVENTS if dataset.name in datasets.EVENTS else datasets.DATASETS
    monkeypatch.setitem(known, dataset.name, dataset)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_parts_readers_and_messages_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change = CHANGES[name]
    (before,) = schemas.subjects([topic_of(change.after)])
    put(monkeypatch, change.after)
    (after,) = schemas.subjects([topic_of(change.after)])
    assert schemas.breaks(before.schema, after.schema) == ([change.says] if change.says else [])


def test_a_record_of_another_name_is_another_record() -> None:
    before = BINANCE_RAW_TRADE.avro_schema()
    assert schemas.breaks(before, {**before, "name": "Trade"}) == ["BinanceRawTrade is now Trade"]


def test_every_topic_s_schema_is_as_it_was_released_and_no_other_lies_there() -> None:
    found = {
        path.name: json.loads(path.read_text())
        for path in RELEASED.iterdir()
    }  # fmt: skip
    ending = {"JSON": "json", "AVRO": "avsc"}
    assert found == {
        f"{subject.name.removesuffix('-value')}.{ending[subject.kind]}": subject.schema
        for subject in schemas.subjects(topics.catalogue())
    }
    assert len(found) == 11


@pytest.mark.parametrize("arguments", [[], ["--check"]], ids=["make docs", "make check"])
def test_neither_docs_nor_check_let_a_breaking_change_pass(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, without(BINANCE_RAW_TRADE, "price"))
    before = (RELEASED / "crypto-binance-trades-raw.avsc").read_bytes()
    monkeypatch.setattr("sys.argv", ["reference", *arguments])
    with pytest.raises(SystemExit) as ended:
        reference.main()
    assert ended.value.code == 1
    assert "crypto-binance-trades-raw.avsc: price is gone; no page was written" in capsys.readouterr().err
    assert (RELEASED / "crypto-binance-trades-raw.avsc").read_bytes() == before
