"""The embedded engines are killed in every way; the next start finds everything where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import psycopg
import pytest

from marketdata import engines
from marketdata.engines import endpoints
from marketdata.engines.process import MARK, end, ended
from marketdata.settings import ENDPOINTS_VARIABLE, Settings, endpoint_file
from tests.waiting import until

UP = "from marketdata import engines; from marketdata.settings import Settings; engines.up(Settings(), say=print)"


@pytest.fixture(scope="module")
def home(new_home: Callable[[str], Path]) -> Iterator[Path]:
    folder = new_home("engines-home")
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(name.upper(), raising=False)
        patch.setenv("MARKETDATA_HOME", str(folder))
        patch.delenv(ENDPOINTS_VARIABLE, raising=False)
        try:
            yield folder
        finally:
            engines.down(Settings())


@pytest.fixture
def running(home: Path) -> Settings:
    return engines.up(Settings())


def another_up(**more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-u", "-c", UP], stdout=subprocess.PIPE, text=True, **more)


def pid_of(name: str) -> int:
    pid = endpoints.read(endpoint_file()).engines[name].pid
    assert pid is not None
    return pid


def state_of(name: str) -> str:
    return {line.name: line.state for line in engines.status(Settings())}[name]


def kill(pid: int) -> None:
    end([psutil.Process(pid)])


def processes_of(folder: Path) -> list[str]:
    """Command lines of the live processes that carry the mark of an engine of this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(str(folder)) and not ended(process):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def publish(settings: Settings, topic: str, text: str) -> None:
    from confluent_kafka import Producer

    errors: list[Any] = []
    producer = Producer({"bootstrap.servers": settings.require("kafka_brokers"), "acks": "all", "log_level": 0})
    producer.produce(topic, text, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    assert errors == [None]


def consume(settings: Settings, topic: str) -> str:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {"bootstrap.servers": settings.require("kafka_brokers"), "group.id": str(uuid4()), "log_level": 0}
    )
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        return bytes(message.value()).decode()
    finally:
        consumer.close()


def create_topic(settings: Settings) -> str:
    from confluent_kafka.admin import AdminClient, NewTopic

    topic = f"fault-{uuid4()}"
    admin = AdminClient({"bootstrap.servers": settings.require("kafka_brokers"), "log_level": 0})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    return topic


def query(settings: Settings, statement: str) -> list[Any]:
    with psycopg.connect(settings.require("postgres_dsn"), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def test_two_starts_at_once_start_each_engine_once(home: Path) -> None:
    engines.down(Settings())
    first, second = another_up(), another_up()
    assert [starter.communicate(timeout=180)[0].count("starting kafka") for starter in (first, second)] in (
        [1, 0],
        [0, 1],
    )
    assert (first.returncode, second.returncode) == (0, 0)
    assert sum("kafka.Kafka" in command for command in processes_of(home)) == 1
    assert sum("bin/postgres" in command for command in processes_of(home)) == 1


def test_a_second_start_starts_nothing(running: Settings) -> None:
    before = [pid_of(name) for name in ("kafka", "postgres")]
    assert engines.up(Settings()) == running
    assert [pid_of(name) for name in ("kafka", "postgres")] == before


def test_nothing_listens_beyond_this_machine(running: Settings) -> None:
    for name in ("kafka", "postgres"):
        listening = {
            socket.laddr.ip.removeprefix("::ffff:")
            for socket in psutil.Process(pid_of(name)).net_connections("tcp")
            if socket.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}


def test_a_killed_broker_comes_back_with_what_it_acknowledged(running: Settings) -> None:
    topic = create_topic(running)
    publish(running, topic, "before")
    kill(pid_of("kafka"))
    assert state_of("kafka") == "dead"

    again = engines.up(Settings())
    assert again.kafka_brokers == running.kafka_brokers
    assert consume(again, topic) == "before"


def test_a_killed_postmaster_comes_back_with_what_it_committed(running: Settings) -> None:
    table = f"t{uuid4().hex}"
    query(running, f"CREATE TABLE {table} AS SELECT 1 AS one")
    with psycopg.connect(running.require("postgres_dsn")):  # a server process that its parent leaves behind
        kill(pid_of("postgres"))
        again = engines.up(Settings())
    assert query(again, f"SELECT one FROM {table}") == [(1,)]


def test_a_killed_server_process_of_postgres_is_its_own_affair(running: Settings) -> None:
    with psycopg.connect(running.require("postgres_dsn")) as connection:
        kill(connection.info.backend_pid)

    def answers() -> bool:
        try:
            return query(running, "SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    until("PostgreSQL answers", answers)
    assert engines.up(Settings()) == running


@pytest.mark.parametrize("after", ["starting kafka", "starting postgres", "postgres answers"])
def test_a_start_that_is_killed_is_finished_by_the_next(home: Path, after: str) -> None:
    engines.down(Settings())
    with another_up() as starter:
        assert starter.stdout is not None
        for line in starter.stdout:
            if line.startswith(after):
                break
        starter.kill()

    settings = engines.up(Settings())
    assert query(settings, "SELECT 1") == [(1,)]
    publish(settings, create_topic(settings), "after")
    assert sum("kafka.Kafka" in command for command in processes_of(home)) == 1
    assert sum("bin/postgres" in command for command in processes_of(home)) == 1


def test_the_first_start_of_all_may_be_killed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("MARKETDATA_HOME", str(tmp_path))
    for after in ("creating PostgreSQL", "formatting Kafka"):
        with another_up() as starter:
            assert starter.stdout is not None
            for line in starter.stdout:
                if line.startswith(after):
                    break
            starter.kill()
    try:
        settings = engines.up(Settings())
        assert sorted(query(settings, "SELECT datname FROM pg_database WHERE datname !~ '^(template|postgres)'")) == [
            ("airflow",),
            ("iceberg",),
            ("marketdata",),
        ]
    finally:
        assert engines.down(Settings()) == ["kafka", "postgres"]
    assert processes_of(tmp_path) == []


def test_after_a_reboot_everything_stale_names_somebody_else(running: Settings, home: Path) -> None:
    table = f"t{uuid4().hex}"
    query(running, f"CREATE TABLE {table} AS SELECT 1 AS one")
    for name in ("kafka", "postgres"):
        kill(pid_of(name))
    until("all have gone", lambda: not processes_of(home))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"]) as foreign:
        file = endpoint_file()
        file.write_text(file.read_text().replace(f'"pid": {pid_of("kafka")}', f'"pid": {foreign.pid}'))
        pid_file = home / "engines" / "postgres" / "data" / "postmaster.pid"
        pid_file.write_text("\n".join([str(foreign.pid), *pid_file.read_text().splitlines()[1:]]) + "\n")

        settings = engines.up(Settings())
        assert query(settings, f"SELECT one FROM {table}") == [(1,)]
        assert foreign.poll() is None
        foreign.kill()


def test_an_engine_with_an_address_of_its_own_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines.down(Settings())
    monkeypatch.setenv("KAFKA_BROKERS", "broker.example:9092")
    settings = engines.up(Settings())
    assert settings.kafka_brokers == "broker.example:9092"
    assert not any("kafka.Kafka" in command for command in processes_of(home))
    assert {line.name: line.state for line in engines.status(settings)}["kafka"] == "external"


def test_down_leaves_no_process_and_the_data(running: Settings, home: Path) -> None:
    topic = create_topic(running)
    publish(running, topic, "kept")
    assert engines.down(Settings()) == ["kafka", "postgres"]
    assert processes_of(home) == []
    assert Settings().kafka_brokers is None
    assert "shut down" in (home / "engines" / "postgres" / "postgres.log").read_text().splitlines()[-1]
    assert consume(engines.up(Settings()), topic) == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused by PostgreSQL, and become somebody else")
def test_as_root_postgres_runs_as_somebody_else(running: Settings) -> None:
    assert psutil.Process(pid_of("postgres")).uids().real != 0


@pytest.mark.timeout(400)
def test_a_killed_scheduler_comes_back_and_its_orphans_do_not_stay(running: Settings, home: Path) -> None:
    engines.up(Settings(), ["airflow"])
    before = {name: pid_of(f"airflow-{name}") for name in ("api-server", "scheduler", "dag-processor")}
    os.kill(before["scheduler"], signal.SIGKILL)
    until("it is dead", lambda: state_of("airflow-scheduler") == "dead")
    scheduler = str(home / "engines" / "airflow" / "scheduler")
    orphans = [process for process in psutil.process_iter() if _mark(process) == scheduler]
    assert orphans  # its task workers, which wait for ever

    engines.up(Settings(), ["airflow"])
    after = {name: pid_of(f"airflow-{name}") for name in before}
    assert {name for name in before if before[name] != after[name]} == {"scheduler"}
    assert all(ended(process) for process in orphans)
    assert engines.down(Settings(), ["airflow"]) == ["airflow-api-server", "airflow-scheduler", "airflow-dag-processor"]
    assert not any("airflow" in command for command in processes_of(home))


def _mark(process: psutil.Process) -> str:
    try:
        return process.environ().get(MARK, "") if not ended(process) else ""
    except (psutil.Error, OSError):
        return ""
