"""Three brokers are killed, frozen and cut off while batches are published and read; what then, and how soon.

One seed a fault in the suite of real engines; ``FAULT_SEEDS=5`` runs five and more. What was measured is written to
``build/faults/`` and becomes `docs/reference/faults.md`.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaException

from marketdata.batches import Batch
from marketdata.datasets import COMMODITY_PRICES
from marketdata.datasets.commodity_aggregates import COMMODITY_AGGREGATES
from marketdata.errors import TryLaterError, UnavailableError
from marketdata.settings import Settings
from marketdata.streaming import window_sinks
from marketdata.streaming.publish import Published, publish
from tests.contract.prices import LATE, batch_of, price
from tests.contract.test_analytics import own_analytics, send
from tests.contract.topic import held, identities
from tests.engines import network
from tests.engines.kafka import IDS, Brokers
from tests.engines.kafka import brokers as run_brokers
from tests.faults import disks, figures
from tests.faults.children import environment
from tests.faults.disks import Disk, small_disk
from tests.faults.drill import PATIENCE, SEEDS, Committed, Members, Publisher, Reader, all_consume, counted, verify
from tests.faults.test_analytics import owners
from tests.faults.test_publish import (  # noqa: F401 - here they run on three brokers
    test_a_killed_publish_is_wholly_visible_or_not_at_all_and_the_next_try_completes_it,
    test_publishers_killed_at_random_while_others_publish_lose_and_repeat_nothing,
    test_readers_see_nothing_of_a_killed_try_once_its_transaction_is_ended,
)
from tests.waiting import until

pytestmark = pytest.mark.engines

BOUND_SECONDS = {"consumer": 15.0, "broker": 20.0}
"""What is published after a fault is counted within so long, while the fault lasts, on a machine with nothing else to
do. The specification asks for `LIMIT_SECONDS` (R5.7 to R5.9), which is what fails a run."""

LIMIT_SECONDS = {"consumer": 30.0, "broker": 60.0}


SMALL = 3
"""The broker whose disk can be filled."""


@pytest.fixture(scope="module")
def disk(new_home: Callable[[str], Path]) -> Iterator[Disk | None]:
    home = new_home("faults")
    with small_disk(home / str(SMALL), 256) if disks.available() else nullcontext() as disk:
        yield disk or Disk(home / str(SMALL))


@pytest.fixture(scope="module")
def brokers(disk: Disk) -> Iterator[Brokers]:
    """Three brokers that nobody else relies on."""
    with run_brokers(disk.folder.parent) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def kafka(embedded: Settings, brokers: Brokers) -> Settings:
    """Settings of a Kafka and a PostgreSQL: these three brokers, and the embedded PostgreSQL."""
    return embedded.model_copy(update={"kafka_brokers": brokers.addresses})


@pytest.fixture
def settings(kafka: Settings, settings_for: Callable[..., Settings], brokers: Brokers) -> Iterator[Settings]:
    yield own_analytics(kafka, settings_for)
    brokers.restore()


@dataclass(frozen=True)
class Drill:
    """What a fault is done to."""

    brokers: Brokers
    disk: Disk
    members: Members
    settings: Settings
    chance: random.Random
    partition: int
    """One that records go to."""

    def leader(self) -> int:
        return self.brokers.leader(self.settings.kafka_topic, self.partition)

    def consumer(self) -> str:
        return owners(self.settings)[self.partition]


def kill_two_and_start_them(drill: Drill) -> None:
    drill.brokers.kill(*drill.chance.sample(IDS, 2))
    drill.brokers.restore()


def fill_a_disk(drill: Drill) -> None:
    drill.disk.fill()
    until("a broker without disk ends itself", lambda: drill.brokers.processes[SMALL].poll() is not None)


FAULTS: dict[str, Callable[[Drill], None]] = {
    "a leader is killed": lambda drill: drill.brokers.kill(drill.leader()),
    "a leader is frozen": lambda drill: drill.brokers.freeze(drill.leader()),
    "a leader is slow": lambda drill: drill.brokers.slow(drill.leader()),
    "a leader is cut off": lambda drill: drill.brokers.cut(drill.leader()),
    "a leader hears nobody": lambda drill: drill.brokers.cut(drill.leader(), speaks=True),
    "nobody hears a leader": lambda drill: drill.brokers.cut(drill.leader(), hears=True),
    "the controller is killed": lambda drill: drill.brokers.kill(drill.brokers.controller()),
    "two of three are killed and started again": kill_two_and_start_them,
    "the disk of a broker is full": fill_a_disk,
    "a consumer is killed and replaced": lambda drill: drill.members.kill(drill.consumer()),
    "a consumer is killed for good": lambda drill: drill.members.kill(drill.consumer(), for_good=True),
}
NEED_NAMESPACES = ("a leader is cut off", "a leader hears nobody", "nobody hears a leader")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_repeated_or_seen_in_parts(
    fault: str, seed: int, settings: Settings, brokers: Brokers, disk: Disk
) -> None:
    if fault in NEED_NAMESPACES and not network.available():
        pytest.skip(network.NEEDS)
    if FAULTS[fault] is fill_a_disk and not disks.available():
        pytest.skip(disks.NEEDS)
    chance = random.Random(f"{fault} {seed}")  # noqa: S311
    poison = [b'{"poison": %d}' % number for number in range(20)]
    members = Members(settings)
    reader, publisher = Reader(settings), Publisher(settings, random.Random(seed))  # noqa: S311
    try:
        send(settings, *poison[:10])
        publisher.wait_for(lambda committed: len(committed) >= 3)
        until("all three consume", lambda: all_consume(settings), PATIENCE)
        until("the first batches are counted", lambda: counted(settings, publisher.committed[2].offsets))
        moment = time.monotonic() + chance.random() / 4
        while time.monotonic() < moment:
            time.sleep(0.001)
        partition = chance.choice(publisher.committed[0].offsets).partition
        began = time.monotonic()
        FAULTS[fault](Drill(brokers, disk, members, settings, chance, partition))

        def after(committed: list[Committed]) -> Committed | None:
            """The first batch that needs the partition, and was begun after the fault."""
            spans = ((one, {span.partition for span in one.offsets}) for one in committed if one.begun > began)
            return next((one for one, touched in spans if partition in touched), None)

        publisher.wait_for(lambda committed: after(committed) is not None)
        first = after(publisher.committed)
        assert first
        until("what came after is counted", lambda: counted(settings, first.offsets), PATIENCE)
        published, consumed = first.done - began, time.monotonic() - began
        disk.free()
        brokers.restore()
        healed = time.monotonic()
        publisher.wait_for(lambda committed: committed[-1].begun > healed)
        send(settings, *poison[10:])
        publisher.end()
        committed = publisher.committed
        apart = verify(settings, committed, reader, poison)
    finally:
        disk.free()
        publisher.end()
        members.end()
    of = "consumer" if "consumer" in fault else "broker"
    figures.record(
        fault, seed, published_seconds=published, counted_seconds=consumed, bound_seconds=BOUND_SECONDS[of],
        apart_seconds=apart, batches=len(committed), tries=max(one.tries for one in committed),
        restarts=len(members.exits),
    )  # fmt: skip
    assert max(published, consumed) < LIMIT_SECONDS[of]


def test_a_leader_that_comes_back_has_nothing_published_twice(settings: Settings, brokers: Brokers) -> None:
    """Until it learns of its successor it tells whoever asks it an old end of the ledger, which lacks the batch."""
    if not network.available():
        pytest.skip(network.NEEDS)
    first, second = (
        [price(f"2024-0{month}-{day:02}", as_of=LATE, batch=f"b{month}") for day in range(1, 29)] for month in (1, 2)
    )
    publish(COMMODITY_PRICES, batch_of(settings, first), settings)
    ledger = f"{settings.kafka_topic}-ledger"
    old = brokers.leader(ledger)
    brokers.cut(old, hears=True)
    batch = batch_of(settings, second)
    until("it is published elsewhere", lambda: _tried(batch, settings), PATIENCE)
    at_old = settings.model_copy(update={"kafka_brokers": brokers.places[old].address})
    brokers.heal(old)
    other = next(broker for broker in IDS if broker != old)
    learned = False
    while not learned:
        learned = brokers.leader(ledger, told_by=other) == brokers.leader(ledger, told_by=old)
        published = _tried(batch, at_old)
        assert published is None or published.repeated
    assert identities(held(settings)) == {(row["record_id"], row["content_hash"]): 1 for row in [*first, *second]}


def test_a_coordinator_that_comes_back_has_nothing_told_twice(settings: Settings, brokers: Brokers) -> None:
    """Until it learns of its successor it tells whoever asks it the marker it had."""
    if not network.available():
        pytest.skip(network.NEEDS)
    tell(settings, 1)
    group = f"{settings.analytics_group}.told"
    old = brokers.coordinator(group)
    brokers.cut(old, hears=True)
    until("more is told elsewhere", lambda: _told(settings, 2), PATIENCE)
    brokers.heal(old)
    at_old = settings.model_copy(update={"kafka_brokers": brokers.places[old].address})
    told: list[int] = []

    def nine_were_told() -> bool:
        line = window_sinks._Line(at_old, settings.kafka_topic, 0)
        with suppress(KafkaException, SystemError, UnavailableError):  # it says that it is not the coordinator
            told.append(line.take_over())
        line.close()
        return len(told) == 9

    until("nine were told", nine_were_told, PATIENCE)
    assert set(told) == {2}


def tell(settings: Settings, upto: int) -> None:
    """A transaction of the aggregates' producer that carries its marker alone."""
    line = window_sinks._Line(settings, settings.kafka_topic, 0)
    try:
        line.take_over()
        line.tell(COMMODITY_AGGREGATES.arrow_schema().empty_table(), [], upto)
    finally:
        line.close()


def _told(settings: Settings, upto: int) -> bool:
    with suppress(KafkaException, SystemError, UnavailableError):
        tell(settings, upto)
        return True
    return False


def _tried(batch: Batch, settings: Settings) -> Published | None:
    with suppress(UnavailableError, TryLaterError):
        return publish(COMMODITY_PRICES, batch, settings)
    return None


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
        sleeper = psutil.Process(zombie.pid)
        until("it sleeps", lambda: zombie.poll() is not None or sleeper.status() == psutil.STATUS_STOPPED)
        assert zombie.poll() is None, zombie.communicate()
        assert held(settings) == []
        assert publish(COMMODITY_PRICES, batch, settings).published == 28
        zombie.send_signal(signal.SIGCONT)
        said, _ = zombie.communicate(timeout=60)
    finally:
        zombie.kill()
    assert zombie.returncode == 75, said
    assert "another try has taken over" in said
    assert identities(held(settings)) == {(row["record_id"], row["content_hash"]): 1 for row in rows}
