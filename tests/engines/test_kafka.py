"""The brokers and networks of the other tests: do they do what those rely on?"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from marketdata.engines.process import ended
from tests.conftest import ROOT
from tests.engines import network as networks
from tests.engines.kafka import IDS, Brokers
from tests.engines.network import NAMESPACES, Network, network
from tests.waiting import until

needs_namespaces = pytest.mark.skipif(not networks.available(), reason=networks.NEEDS)

TELLS_AND_ANSWERS = """
import socket, sys
here, host = sys.argv[1:]
node = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
node.bind((here, 7000))
print("ready", flush=True)
while True:
    said, sender = node.recvfrom(100)
    print(said.decode(), flush=True)
    node.sendto(b"answer to " + said, sender)
"""


OWN = range(60, 64)
"""Numbers that no other test's network gets: it would clear away what a test here looks at."""


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setattr(networks, "NUMBERS", OWN)
    with network(2) as made:
        yield made


class Listener:
    """A program on node 1 that writes down what it hears, and answers."""

    def __init__(self, net: Network) -> None:
        self.address = (net.address(1), 7000)
        self.process = subprocess.Popen(
            [*net.command(1), sys.executable, "-c", TELLS_AND_ANSWERS, net.address(1), net.address(254)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def ask(self, question: str, seconds: float = 30.0) -> bool:
        """Whether an answer comes."""
        self.client.sendto(question.encode(), self.address)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.client.settimeout(left)
            # An answer to what was asked before may come late.
            with suppress(TimeoutError):
                if self.client.recvfrom(100)[0] == b"answer to " + question.encode():
                    return True
        return False

    def heard(self) -> list[str]:
        self.process.kill()
        assert self.process.stdout
        return self.process.stdout.read().split()


@needs_namespaces
def test_a_node_is_cut_off_in_the_directions_asked_for_and_healed(net: Network) -> None:
    node = Listener(net)
    assert node.ask("open")
    net.cut(1)
    assert not node.ask("cut", seconds=0.5)
    net.cut(1, hears=True)
    assert not node.ask("hears", seconds=0.5)
    net.cut(1, speaks=True)
    assert not node.ask("speaks", seconds=0.5)
    net.heal(1)
    net.heal(1)
    assert node.ask("healed")
    assert node.heard() == ["open", "hears", "healed"]


HOLD_A_NETWORK_AND_DIE = f"""
import os, signal, subprocess, sys
from tests.engines import network as networks
networks.NUMBERS = {OWN}
with networks.network(1) as net:
    left = subprocess.Popen([*net.command(1), "sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
    print(net.number, left.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_namespaces
def test_what_a_killed_process_left_is_cleared_by_the_next_and_the_living_are_left_alone(net: Network) -> None:
    survivor = Listener(net)
    died = subprocess.run(
        [sys.executable, "-c", HOLD_A_NETWORK_AND_DIE], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL
    number, pid = map(int, died.stdout.split())
    left = Network(number, 1)
    assert (NAMESPACES / left.namespace(1)).exists()
    assert number != net.number
    sleeper = psutil.Process(pid)

    with network(1) as mine:
        assert mine.number != net.number
        until("it has gone", lambda: ended(sleeper))
        assert mine.number == number or not (NAMESPACES / left.namespace(1)).exists()
        assert survivor.ask("still there")
    survivor.heard()
    assert not (NAMESPACES / left.namespace(1)).exists()


def knows(brokers: Brokers, asked: int) -> set[int]:
    """Which brokers a broker believes to be alive; none where it does not answer."""
    client = AdminClient({"bootstrap.servers": brokers.places[asked].address, "log_level": 0})
    try:
        return set(client.list_topics(timeout=5).brokers)
    except KafkaException:
        return set()


def test_a_killed_broker_is_missed_and_comes_back(brokers: Brokers) -> None:
    first, second, third = IDS
    brokers.kill(second)
    until("it is missed", lambda: knows(brokers, first) == {first, third})
    brokers.restore()
    for broker in (first, second):
        until("all are known", lambda broker=broker: knows(brokers, broker) == set(IDS))


@needs_namespaces
@pytest.mark.parametrize("speaks", [False, True])
def test_a_broker_that_is_cut_off_is_silent_until_it_is_healed(speaks: bool, brokers: Brokers) -> None:
    brokers.cut(3, speaks=speaks)
    assert knows(brokers, 3) == set()
    until("the others answer", lambda: 1 in knows(brokers, 1))
    brokers.restore()
    until("all are known", lambda: knows(brokers, 3) == set(IDS))


def test_a_frozen_controller_is_replaced(brokers: Brokers) -> None:
    before = brokers.controller()
    brokers.freeze(before)
    until("another one leads", lambda: brokers.controller() != before)
    brokers.restore()
    until("all are known", lambda: knows(brokers, before) == set(IDS))


def test_nobody_is_taken_for_the_controller_while_one_is_elected(tmp_path: Path) -> None:
    def writes(broker: int, epoch: int, leader: int) -> None:
        path = tmp_path / str(broker) / "data" / "__cluster_metadata-0" / "quorum-state"
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".tmp")
        written.write_text(json.dumps({"leaderEpoch": epoch, "leaderId": leader}))
        written.replace(path)

    cluster = Brokers(tmp_path, {}, None)
    writes(1, epoch=7, leader=1)
    writes(2, epoch=8, leader=-1)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(cluster.controller)
        with pytest.raises(TimeoutError):
            asked.result(timeout=0.2)
        writes(3, epoch=8, leader=3)
        assert asked.result(timeout=60) == 3
