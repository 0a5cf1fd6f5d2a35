"""Three real Kafka brokers, each also a controller (KRaft), that tests can kill, freeze, cut off and bring back.

As root each broker runs in a network namespace of its own; otherwise on loopback ports, where nothing can be cut off.
Replication 3, `min.insync.replicas` 2, requests between brokers given up after 10 s and no automatic topics, as in
production; other time-outs are Kafka's defaults.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from marketdata.engines import jars
from marketdata.engines.kafka import VERSION, _java
from marketdata.engines.process import free_port
from tests.engines import network
from tests.engines.lifetime import ending_with_us
from tests.engines.network import Network
from tests.waiting import until

IDS = (1, 2, 3)
HEAP = ("-Xms128m", "-Xmx512m")
QUORUM_STATES = "*/data/__cluster_metadata-0/quorum-state"
START_SECONDS = 240.0
"""Longest start; the usual one takes 4 to 6 seconds, a killed broker's comes on top of its old session's 9."""


@dataclass(frozen=True)
class _Place:
    """Where a broker lives."""

    host: str
    port: int
    controller_port: int
    prefix: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass
class Brokers:
    """A running cluster; brokers are named by their node ids, `IDS`.

    Brokers die with the thread that started them: start and restart them from one that lives as long as the tests.
    """

    folder: Path
    places: dict[int, _Place]
    network: Network | None
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _slowed: dict[int, threading.Event] = field(default_factory=dict)

    @property
    def addresses(self) -> str:
        """Bootstrap servers."""
        return ",".join(place.address for place in self.places.values())

    def start(self, *ids: int) -> None:
        """Start brokers, and wait until all that live know of one another."""
        arguments = [*_java(print), *HEAP, f"-XX:AOTCache={_template() / 'classes.aot'}", "kafka.Kafka"]
        for broker in ids:
            with (self._home(broker) / "log").open("ab") as log:
                command = [*self.places[broker].prefix, *arguments, str(self._home(broker) / "server.properties")]
                self.processes[broker] = subprocess.Popen(
                    ending_with_us(command),
                    cwd=self._home(broker), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
        self.wait()

    def kill(self, *ids: int) -> None:
        """SIGKILL: what was not yet on the disk of another broker is gone."""
        for broker in ids:
            self.processes[broker].kill()
        for broker in ids:
            self.processes.pop(broker).wait()

    def freeze(self, broker: int) -> None:
        """SIGSTOP: connections stay open, and nobody answers."""
        self.processes[broker].send_signal(signal.SIGSTOP)

    def thaw(self, broker: int) -> None:
        if broker in self._slowed:
            self._slowed.pop(broker).set()
        self.processes[broker].send_signal(signal.SIGCONT)

    def slow(self, broker: int) -> None:
        """Let a broker run for a twentieth of the time, until it is thawed."""
        ended = self._slowed[broker] = threading.Event()
        process = self.processes[broker]

        def stutter() -> None:
            while not ended.wait(0.02):
                process.send_signal(signal.SIGSTOP)
                ended.wait(0.38)
                process.send_signal(signal.SIGCONT)

        threading.Thread(target=stutter, name=f"broker {broker} is slow", daemon=True).start()

    def cut(self, broker: int, *, hears: bool = False, speaks: bool = False) -> None:
        """Cut a broker off from the others and from all clients, in both directions or in one."""
        if self.network is None:
            raise RuntimeError(network.NEEDS)
        self.network.cut(broker, hears=hears, speaks=speaks)

    def heal(self, broker: int) -> None:
        if self.network is not None:
            self.network.heal(broker)

    def restore(self) -> None:
        """Undo whatever was done to any broker, and wait until all are in service."""
        for broker in IDS:
            self.heal(broker)
            if broker in self.processes:
                self.thaw(broker)
                if self.processes[broker].poll() is not None:
                    del self.processes[broker]
        self.start(*(broker for broker in IDS if broker not in self.processes))

    def controller(self) -> int:
        """The broker that leads the metadata quorum, by what the brokers wrote down of the last election.

        While one is going on its end is waited for: until then nobody leads, and what they wrote says so.
        """

        def elected() -> int | None:
            found = [json.loads(path.read_text()) for path in self.folder.glob(QUORUM_STATES)]
            _, leader = max((int(state["leaderEpoch"]), int(state["leaderId"])) for state in found)
            return leader if leader in IDS else None

        return int(until("a controller is elected", elected))

    def leader(self, topic: str, partition: int = 0, told_by: int | None = None) -> int:
        """The broker that leads a partition, as one of them, or any, says; waits until there is one."""
        from confluent_kafka.admin import AdminClient

        asked = self.addresses if told_by is None else self.places[told_by].address
        admin = AdminClient({"bootstrap.servers": asked, "log_level": 0})

        def elected() -> int | None:
            leader = int(admin.list_topics(topic, timeout=10).topics[topic].partitions[partition].leader)
            return leader if leader in IDS else None

        return int(until(f"partition {partition} of {topic} has a leader", elected))

    def coordinator(self, group: str) -> int:
        """The broker that keeps a group's offsets."""
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.addresses, "log_level": 0})
        return int(admin.describe_consumer_groups([group])[group].result(10).coordinator.id)

    def wait(self) -> None:
        """Wait until every broker that lives knows every other one, and every partition has its replicas in sync.

        Raises:
            RuntimeError: one died, or it took longer than `START_SECONDS`.
        """
        deadline = time.monotonic() + START_SECONDS
        for broker in self.processes:
            while not self._complete(broker, self.processes):
                dead = [str(one) for one, process in self.processes.items() if process.poll() is not None]
                if dead or time.monotonic() > deadline:
                    last = (self._home(int(dead[0]) if dead else broker) / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"broker {', '.join(dead) or broker} is not in service: {last}")
                time.sleep(0.05)

    def _complete(self, broker: int, wanted: Iterable[int]) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        place = self.places[broker]
        try:
            socket.create_connection((place.host, place.port), timeout=1).close()
            client = AdminClient({"bootstrap.servers": place.address, "log_level": 0})
            metadata = client.list_topics(timeout=2)
        except (OSError, KafkaException):
            return False
        partitions = [one for topic in metadata.topics.values() for one in topic.partitions.values()]
        alive = set(wanted)
        return alive <= metadata.brokers.keys() and all(
            alive & set(one.replicas) <= set(one.isrs) and one.leader in alive for one in partitions
        )

    def _home(self, broker: int) -> Path:
        return self.folder / str(broker)


@contextmanager
def brokers(folder: Path) -> Iterator[Brokers]:
    """Run three brokers until the block ends; `folder` takes their data and logs."""
    template = _template()
    with network.network(len(IDS)) if network.available() else _no_network() as net:
        cluster = Brokers(folder, {broker: _place(net, broker) for broker in IDS}, net)
        for broker in IDS:
            _write(folder / str(broker), template / "data", broker, cluster.places)
        try:
            cluster.start(*IDS)
            yield cluster
        finally:
            cluster.kill(*cluster.processes)


@contextmanager
def _no_network() -> Iterator[None]:
    yield None


def _place(net: Network | None, broker: int) -> _Place:
    if net is None:
        return _Place("127.0.0.1", free_port(), free_port())
    return _Place(net.address(broker), 9092, 9093, tuple(net.command(broker)))


def _write(home: Path, formatted: Path, broker: int, places: dict[int, _Place]) -> None:
    shutil.copytree(formatted, home / "data")
    meta = home / "data" / "meta.properties"
    lines = [line for line in meta.read_text().splitlines() if not line.startswith(("node.id", "directory.id", "#"))]
    # Directory ids are 16 bytes in URL-safe base 64; any will do that no other broker has.
    meta.write_text("\n".join([*lines, f"node.id={broker}", f"directory.id=AAAAAAAAAAAAAAAAAAAA{broker}A"]) + "\n")
    (home / "server.properties").write_text(_properties(home / "data", broker, places))


def _properties(data: Path, broker: int, places: dict[int, _Place]) -> str:
    copies, enough = ("3", "2") if len(places) > 1 else ("1", "1")
    place = places[broker]
    settings = {
        "process.roles": "broker,controller",
        "node.id": str(broker),
        "controller.quorum.voters": ",".join(f"{one}@{at.host}:{at.controller_port}" for one, at in places.items()),
        "listeners": f"PLAINTEXT://{place.address},CONTROLLER://{place.host}:{place.controller_port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "default.replication.factor": copies,
        "min.insync.replicas": enough,
        "request.timeout.ms": "10000",
        "offsets.topic.replication.factor": copies,
        "offsets.topic.num.partitions": "6",
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": enough,
        "transaction.state.log.num.partitions": "6",
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": enough,
        "share.coordinator.state.topic.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _template() -> Path:
    """A formatted data folder, and Kafka's classes as loaded and linked by a start: half of the next one's time."""

    def make(folder: Path) -> None:
        java = [*_java(print), *HEAP]
        alone = {1: _Place("127.0.0.1", free_port(), free_port())}
        properties = folder / "server.properties"
        properties.write_text(_properties(folder / "data", 1, alone))
        tool = ["kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config", str(properties)]
        _check(subprocess.run([*java, *tool], capture_output=True, text=True, check=False))
        shutil.copytree(folder / "data", folder / "trained")
        properties.write_text(_properties(folder / "trained", 1, alone))
        log = folder / "log"
        with log.open("wb") as output:
            training = subprocess.Popen(
                ending_with_us([*java, f"-XX:AOTCacheOutput={folder / 'classes.aot'}", "kafka.Kafka", str(properties)]),
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                Brokers(folder, alone, None, {1: training}).wait()
                training.terminate()
                training.wait(600)
            finally:
                training.kill()
        if not (folder / "classes.aot").exists():
            raise RuntimeError(f"Java wrote no cache of Kafka's classes: {log.read_text(errors='replace')[-2000:]}")
        for leftover in ("trained", "server.properties", "log"):
            path = folder / leftover
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return jars.cached(f"kafka-{VERSION}-three", make)


CLUSTER_ID = "marketdataKafkaThreeXX"


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout)[-2000:])
