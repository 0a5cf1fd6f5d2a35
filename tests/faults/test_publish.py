"""A publisher that is killed at any moment, and brokers that are: what readers see, and what the next try does."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from marketdata import engines
from marketdata.datasets import COMMODITY_PRICES
from marketdata.engines.process import end
from marketdata.errors import UnavailableError
from marketdata.settings import ENDPOINTS_VARIABLE, Settings
from marketdata.streaming import brokers, snapshots, topics
from marketdata.streaming import publish as publishing
from marketdata.streaming.publish import publish
from tests.contract.prices import LATE, batch_of, price
from tests.contract.topic import held, held_of, identities, own_topic, state
from tests.faults.children import environment

PUBLISH_AND_DIE = """
import os, signal, sys
from marketdata.batches import Lake
from marketdata.datasets import COMMODITY_PRICES
from marketdata.settings import Settings
from marketdata.streaming import publish as publishing, snapshots

step, batch = sys.argv[1:]
transaction = publishing._Transaction
snapshots.MARKERS = 1

def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def then_die(original):
    def call(*args, **kwargs):
        original(*args, **kwargs)
        die()
    return call

def produce_and_die(self, keys, values):
    # The first half has reached the broker for sure.
    produce(self, keys[:len(keys) // 2], values[:len(values) // 2])
    self._producer.flush()
    die()

insist = transaction._insist
def around_commit(self, request, doing):
    if doing == "committing" and step == "before commit":
        die()
    insist(self, request, doing)
    if doing == "committing" and step == "committed":
        die()

produce = transaction.produce
if step == "fenced":
    transaction.fence = then_die(transaction.fence)
elif step == "decided":
    publishing._diff = then_die(publishing._diff)
elif step == "delta written":
    publishing.write_delta = then_die(publishing.write_delta)
elif step == "half sent":
    transaction.produce = produce_and_die
elif step == "all sent":
    transaction.flush = then_die(transaction.flush)
elif step == "snapshot":
    snapshots.remember = die
transaction._insist = around_commit
settings = Settings()
publishing.publish(COMMODITY_PRICES, Lake(settings).open(batch), settings)
"""
COMMITTED = ("committed", "snapshot")


def child(settings: Settings, step: str, batch_uri: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", PUBLISH_AND_DIE, step, batch_uri],
        env=environment(settings),
        timeout=120,
        check=False,
    ).returncode


@pytest.mark.parametrize(
    "step", ["fenced", "decided", "delta written", "half sent", "all sent", "before commit", *COMMITTED]
)
def test_a_killed_publish_is_wholly_visible_or_not_at_all_and_the_next_try_completes_it(
    step: str, kafka: Settings, settings_for: Callable[..., Settings]
) -> None:
    settings = own_topic(kafka, settings_for)
    old = [price("2024-01-02"), price("2024-01-03")]
    new = [price(f"2024-01-{day:02}", f"{day}.5", as_of=LATE, batch="b2") for day in range(3, 29)]
    publish(COMMODITY_PRICES, batch_of(settings, old), settings)
    batch = batch_of(settings, new, parts=2)
    before = {(row["record_id"], row["content_hash"]): 1 for row in old}
    after = before | {(row["record_id"], row["content_hash"]): 1 for row in new}

    assert child(settings, step, batch.uri) == -signal.SIGKILL
    if step in COMMITTED:
        assert identities(held(settings)) == after

    published = publish(COMMODITY_PRICES, batch, settings)
    assert (published.published, published.already_published, published.superseded) == (26, 0, 0)
    assert published.repeated == (step in COMMITTED)
    assert identities(held(settings)) == after
    mine = held_of(settings, "b2").to_pylist()
    assert {(row["record_id"], row["content_hash"]) for row in mine} == after.keys() - before.keys()
    assert len(mine) == 26


def test_readers_see_nothing_of_a_killed_try_once_its_transaction_is_ended(
    kafka: Settings, settings_for: Callable[..., Settings]
) -> None:
    """Half of the batch is in the log; another batch of the same publisher ends the abandoned transaction."""
    settings = own_topic(kafka, settings_for)
    batch = batch_of(settings, [price(f"2024-02-{day:02}", batch="dead") for day in range(1, 29)])
    assert child(settings, "half sent", batch.uri) == -signal.SIGKILL
    other = [price("2024-03-01", batch="alive")]
    publish(COMMODITY_PRICES, batch_of(settings, other), settings)
    assert identities(held(settings)) == {(other[0]["record_id"], other[0]["content_hash"]): 1}
    assert len(held_of(settings, "dead")) == 0


@pytest.mark.parametrize("moment", ["produce", "flush", "commit"])
def test_a_broker_killed_in_the_middle_is_named_and_the_publish_completes_when_it_is_back(
    moment: str, tmp_path: Path, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_for()  # clears the environment
    home = tmp_path / "home"
    monkeypatch.setenv("MARKETDATA_HOME", str(home))
    monkeypatch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
    settings = engines.up(Settings(), ["kafka"])
    try:
        topics.apply(settings)
        old = [price("2024-01-02")]
        publish(COMMODITY_PRICES, batch_of(settings, old), settings)
        monkeypatch.setattr(publishing, "DELIVERY_SECONDS", 5)
        monkeypatch.setattr(publishing, "ANSWER_SECONDS", 3)
        new = [price(f"2024-01-{day:02}", as_of=LATE, batch="b2") for day in range(3, 29)]
        batch = batch_of(settings, new)
        original = getattr(publishing._Transaction, moment)

        def kill_first(*args: object, **kwargs: object) -> object:
            (kafka,) = [engine for engine in engines.status(settings) if engine.name == "kafka"]
            assert kafka.pid
            end([psutil.Process(kafka.pid)])
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(publishing._Transaction, moment, kill_first)
            began = time.monotonic()
            with pytest.raises(UnavailableError, match=settings.require("kafka_brokers")) as failure:
                publish(COMMODITY_PRICES, batch, settings)
            assert time.monotonic() - began < 40
            assert "\n" not in str(failure.value)
        monkeypatch.setattr(brokers, "REACH_SECONDS", 2)
        with pytest.raises(UnavailableError, match="no broker answered"):
            publish(COMMODITY_PRICES, batch, settings)

        monkeypatch.setattr(brokers, "REACH_SECONDS", 10)
        monkeypatch.setattr(publishing, "DELIVERY_SECONDS", 60)
        monkeypatch.setattr(publishing, "ANSWER_SECONDS", 30)
        again = engines.up(Settings(), ["kafka"])
        assert publish(COMMODITY_PRICES, batch, again).published == 26
        assert publish(COMMODITY_PRICES, batch, again).repeated
        assert identities(held(again)) == {(row["record_id"], row["content_hash"]): 1 for row in [*old, *new]}
    finally:
        engines.down(Settings())


def test_publishers_killed_at_random_while_others_publish_lose_and_repeat_nothing(
    kafka: Settings, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two overlapping backfills whose tries die at every moment, again and again, until each has got through once."""
    monkeypatch.setattr(snapshots, "MARKERS", 2)
    settings = own_topic(kafka, settings_for)
    first = [price(f"2024-01-{day:02}", f"{day}", batch="b1") for day in range(1, 21)]
    second = [price(f"2024-01-{day:02}", f"{day + day % 2}", as_of=LATE, batch="b2") for day in range(11, 29)]
    uris = [batch_of(settings, rows).uri for rows in (first, second)]

    def backfill(uri: str, steps: list[str]) -> None:
        for step in steps:
            child(settings, step, uri)

    workers = [
        threading.Thread(target=backfill, args=(uris[0], ["half sent", "before commit", "all sent"])),
        threading.Thread(target=backfill, args=(uris[1], ["before commit", "fenced", "half sent"])),
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    for rows in (second, first):
        publish(COMMODITY_PRICES, batch_of(settings, rows), settings)

    newest = {row["record_id"]: row for row in [*first, *second]}
    assert state(settings, list(newest.values())).keys() == newest.keys()
    in_topic = identities(held(settings))
    assert set(in_topic.values()) == {1}
    assert {record for record, _ in in_topic} == newest.keys()
    for row in second:
        assert in_topic[row["record_id"], row["content_hash"]] == 1
