"""The schemas of the topics in a real registry: derived from the datasets, and guarded."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import requests

from marketdata import datasets
from marketdata.datasets import COMMODITY_PRICES, Column, Dataset
from marketdata.errors import UnavailableError, UsageError
from marketdata.streaming import topics
from marketdata.streaming.schemas import register, registered
from marketdata.streaming.topics import Topic


@pytest.fixture
def topic() -> Topic:
    """The topic of the commodity prices, under a name that the registry has not seen."""
    (found,) = [one for one in topics.catalogue() if (one.dataset, one.role) == (COMMODITY_PRICES.name, "records")]
    return replace(found, name=f"prices-{uuid.uuid4().hex[:12]}")


def versions(registry: str, topic: Topic) -> list[dict[str, Any]]:
    subject = f"{registry}/subjects/{topic.name}-value/versions"
    numbers = requests.get(subject, timeout=10).json()
    return [json.loads(requests.get(f"{subject}/{number}", timeout=10).json()["schema"]) for number in numbers]


def test_the_schema_is_the_dataset_s_and_is_registered_once(registry: str, topic: Topic) -> None:
    assert [line.split(":")[0] for line in register(registry, [topic])] == [f"{topic.name}-value"]
    assert register(registry, [topic]) == []
    (schema,) = versions(registry, topic)
    assert schema == registered(COMMODITY_PRICES.message_schema())
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["properties"].keys() == {column.message_name for column in COMMODITY_PRICES.columns}


def without(name: str) -> Dataset:
    return replace(COMMODITY_PRICES, columns=tuple(c for c in COMMODITY_PRICES.columns if c.name != name))


def changed(name: str, **changes: Any) -> Dataset:
    columns = tuple(replace(c, **changes) if c.name == name else c for c in COMMODITY_PRICES.columns)
    return replace(COMMODITY_PRICES, columns=columns)


def added(**of_column: Any) -> Dataset:
    column = Column("venue", "string", "Where it was traded.", **of_column)
    return replace(COMMODITY_PRICES, columns=(*COMMODITY_PRICES.columns, column))


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        (changed("price", type="string"), "/properties/price"),
        (changed("volume", required=True), "required"),
        (added(required=True), "required"),
        (without("volume"), "propert"),
    ],
    ids=["another type", "required from now on", "a new required column", "a column removed"],
)
def test_a_change_that_older_messages_would_break_is_refused(
    dataset: Dataset, why: str, registry: str, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, [topic])
    monkeypatch.setitem(datasets.DATASETS, COMMODITY_PRICES.name, dataset)
    with pytest.raises(UsageError, match=f"{topic.name}-value.*{why}.*not registered") as refusal:
        register(registry, [topic])
    assert "\n" not in str(refusal.value)
    assert len(versions(registry, topic)) == 1


def test_an_optional_column_is_a_new_version(registry: str, topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    register(registry, [topic])
    monkeypatch.setitem(datasets.DATASETS, COMMODITY_PRICES.name, added(required=False))
    assert len(register(registry, [topic])) == 1
    assert ["venue" in schema["properties"] for schema in versions(registry, topic)] == [False, True]


def test_a_registry_out_of_reach_is_named(topic: Topic) -> None:
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1.*did not answer"):
        register("http://127.0.0.1:1", [topic])
