"""Three brokers are killed, frozen and cut off while batches are published and read; what then, and how soon.

One seed a fault in the suite of real engines; ``FAULT_SEEDS=5`` runs five and more. What was measured is written to
``build/faults/`` and becomes `docs/reference/faults.md`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from marketdata.datasets import COMMODITY_PRICES
from marketdata.settings import ENDPOINTS_VARIABLE, Settings
from marketdata.streaming.publish import publish
from tests.contract.prices import LATE, batch_of, price
from tests.contract.topic import held, identities, own_topic
from tests.engines import network
from tests.engines.kafka import IDS, Brokers
from tests.engines.kafka import brokers as run_brokers
from tests.faults import figures
from tests.faults.drill import Publisher, Reader, verify
from tests.faults.test_publish import (  # noqa: F401 - here they run on three brokers
    test_a_killed_publish_is_wholly_visible_or_not_at_all_and_the_next_try_completes_it,
    test_publishers_killed_at_random_while_others_publish_lose_and_repeat_nothing,
    test_readers_see_nothing_of_a_killed_try_once_its_transaction_is_ended,
)

pytestmark = pytest.mark.engines

SEEDS = range(int(os.environ.get("FAULT_SEEDS", "1")))
LIMIT_SECONDS = 60.0
"""R5.7, R5.8: production resumes within so long, while the fault lasts."""


@pytest.fixture(scope="module")
def brokers(new_home: Callable[[str], Path]) -> Iterator[Brokers]:
    """Three brokers that nobody else relies on."""
    with run_brokers(new_home("faults")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def kafka(embedded: Settings, brokers: Brokers) -> Settings:
    """Settings of a Kafka and a PostgreSQL: these three brokers, and the embedded PostgreSQL."""
    return embedded.model_copy(update={"kafka_brokers": brokers.addresses})


@pytest.fixture
def settings(kafka: Settings, settings_for: Callable[..., Settings], brokers: Brokers) -> Iterator[Settings]:
    yield own_topic(kafka, settings_for)
    brokers.restore()


def kill_a_leader(brokers: Brokers, settings: Settings, chance: random.Random) -> None:
    brokers.kill(brokers.leader(settings.kafka_topic, chance.randrange(3)))


def kill_the_ledger_s_leader(brokers: Brokers, settings: Settings, chance: random.Random) -> None:
    brokers.kill(brokers.leader(f"{settings.kafka_topic}-ledger"))


def freeze_a_leader(brokers: Brokers, settings: Settings, chance: random.Random) -> None:
    brokers.freeze(brokers.leader(settings.kafka_topic, chance.randrange(3)))


def cut_a_leader_off(brokers: Brokers, settings: Settings, chance: random.Random) -> None:
    brokers.cut(brokers.leader(settings.kafka_topic, chance.randrange(3)))


def make_a_leader_deaf(brokers: Brokers, settings: Settings, chance: random.Random) -> None:
    brokers.cut(brokers.leader(settings.kafka_topic, chance.randrange(3)), speaks=True)


def make_a_leader_mute(brokers: Brokers, settings: Settings, chance: random.Random) -> None:
    brokers.cut(brokers.leader(settings.kafka_topic, chance.randrange(3)), hears=True)


def kill_the_controller(brokers: Brokers, settings: Settings, chance: random.Random) -> None:
    brokers.kill(brokers.controller())


def kill_two_and_start_them(brokers: Brokers, settings: Settings, chance: random.Random) -> None:
    brokers.kill(*chance.sample(IDS, 2))
    brokers.restore()


FAULTS: dict[str, Callable[[Brokers, Settings, random.Random], None]] = {
    "a leader is killed": kill_a_leader,
    "a leader is frozen": freeze_a_leader,
    "a leader is cut off": cut_a_leader_off,
    "a leader hears nobody": make_a_leader_deaf,
    "nobody hears a leader": make_a_leader_mute,
    "the controller is killed": kill_the_controller,
    "two of three are killed and started again": kill_two_and_start_them,
}
NEED_NAMESPACES = ("a leader is cut off", "a leader hears nobody", "nobody hears a leader")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_repeated_or_seen_in_parts(fault: str, seed: int, settings: Settings, brokers: Brokers) -> None:
    if fault in NEED_NAMESPACES and not network.available():
        pytest.skip(network.NEEDS)
    chance = random.Random(f"{fault} {seed}")  # noqa: S311
    reader, publisher = Reader(settings), Publisher(settings, random.Random(seed))  # noqa: S311
    try:
        publisher.wait_for(lambda committed: len(committed) >= 3)
        moment = time.monotonic() + chance.random() / 4
        while time.monotonic() < moment:
            time.sleep(0.001)
        began = time.monotonic()
        FAULTS[fault](brokers, settings, chance)
        publisher.wait_for(lambda committed: committed[-1].begun > began)
        recovered = publisher.committed[-1].done - began
        brokers.restore()
        healed = time.monotonic()
        publisher.wait_for(lambda committed: committed[-1].begun > healed)
    finally:
        publisher.end()
        reader.end(sum(len(one.rows) for one in publisher.committed))
    apart = verify(settings, publisher.committed, reader)
    figures.record(
        fault, seed, recovered_seconds=recovered, apart_seconds=apart, batches=len(publisher.committed),
        tries=max(one.tries for one in publisher.committed),
    )  # fmt: skip
    assert recovered < LIMIT_SECONDS


SLEEP_IN_THE_MIDDLE = """
import os, signal, sys
from marketdata.batches import Lake
from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import MarketdataError
from marketdata.settings import Settings
from marketdata.streaming import publish as publishing

produce = publishing._Transaction.produce
def half(self, keys, values):
    middle = len(keys) // 2
    produce(self, keys[:middle], values[:middle])
    self._producer.flush()
    os.kill(os.getpid(), signal.SIGSTOP)
    produce(self, keys[middle:], values[middle:])
publishing._Transaction.produce = half
settings = Settings()
try:
    publishing.publish(COMMODITY_PRICES, Lake(settings).open(sys.argv[1]), settings)
except MarketdataError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_frozen_publisher_that_wakes_up_after_its_replacement_is_fenced(settings: Settings) -> None:
    rows = [price(f"2024-01-{day:02}", as_of=LATE) for day in range(1, 29)]
    batch = batch_of(settings, rows)
    zombie = subprocess.Popen(
        [sys.executable, "-c", SLEEP_IN_THE_MIDDLE, batch.uri], env=environment(settings), stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while psutil.Process(zombie.pid).status() != psutil.STATUS_STOPPED:
            assert zombie.poll() is None, zombie.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert held(settings) == []
        assert publish(COMMODITY_PRICES, batch, settings).published == 28
        zombie.send_signal(signal.SIGCONT)
        said, _ = zombie.communicate(timeout=60)
    finally:
        zombie.kill()
    assert zombie.returncode == 75, said
    assert "another try has taken over" in said
    assert identities(held(settings)) == {(row["record_id"], row["content_hash"]): 1 for row in rows}


def environment(settings: Settings) -> dict[str, Any]:
    return {
        "PATH": os.environ["PATH"],
        "LAKE_URI": settings.require("lake_uri"),
        "KAFKA_BROKERS": settings.require("kafka_brokers"),
        "KAFKA_TOPIC": settings.kafka_topic,
        "POSTGRES_DSN": settings.require("postgres_dsn"),
        ENDPOINTS_VARIABLE: str(settings.marketdata_home / "no-endpoints.json"),
    }
