"""Starting, finding and stopping, with a toy engine: a program that listens on the port it is given."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from marketdata.engines import airflow, endpoints, lifecycle
from marketdata.engines.endpoints import EngineRecord
from marketdata.engines.kafka import _properties
from marketdata.engines.postgres import _clear_remains
from marketdata.engines.process import environment_of, listens, port_of, stop
from marketdata.errors import TryLaterError, UnavailableError, UsageError
from marketdata.settings import ENDPOINTS_VARIABLE, Settings
from tests.waiting import until

LISTEN = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(60)"


class Toy:
    """Implements `Engine`."""

    name = at = "kafka"
    version = "1"
    host = "127.0.0.1"
    field = "kafka_brokers"
    needs: tuple[str, ...] = ()
    user: str | None = None
    seconds_to_start = 60.0
    stop_signals = ((signal.SIGTERM, 5.0),)
    program = LISTEN
    starts = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, port: int, say: Callable[[str], None]) -> list[str]:
        self.starts += 1
        return [sys.executable, "-c", self.program, str(port)]

    def environment(self) -> dict[str, str]:
        return environment_of(self.folder)

    def ready(self, address: str) -> bool:
        return listens(address)

    def value(self, address: str) -> str:
        return address


@pytest.fixture
def settings(settings_for: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    built = settings_for(lake_uri=None)
    monkeypatch.setenv(ENDPOINTS_VARIABLE, str(tmp_path / "engines" / "endpoints.json"))
    return built


@pytest.fixture
def toy(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    engine = Toy(tmp_path / "engines" / "toy")
    monkeypatch.setattr(lifecycle, "_engines", lambda *_: [engine])
    yield engine
    stop(None, engine.folder, ())


def state() -> EngineRecord:
    return endpoints.read(lifecycle.endpoint_file()).engines["kafka"]


def test_up_starts_once_and_the_settings_know_where(settings: Settings, toy: Toy, tmp_path: Path) -> None:
    first = lifecycle.up(settings)
    second = lifecycle.up(settings)

    assert toy.starts == 1
    assert first.kafka_brokers == second.kafka_brokers == Settings().kafka_brokers
    assert listens(first.require("kafka_brokers"))
    assert first.lake_uri == f"file://{tmp_path}/lake"
    assert [line.state for line in lifecycle.status(settings)] == ["running"]


def test_two_at_once_start_one(settings: Settings, toy: Toy) -> None:
    said: list[str] = []
    callers = [threading.Thread(target=lifecycle.up, args=(settings,), kwargs={"say": said.append}) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert toy.starts == 1
    assert "waiting for another start or stop of the engines" in said


def test_who_waits_too_long_for_another_start_is_told_to_come_back(
    settings: Settings, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "SECONDS_TO_WAIT_FOR_OTHERS", 0.1)
    with lifecycle._alone(lifecycle.endpoint_file(), print), pytest.raises(TryLaterError, match="nothing was changed"):
        lifecycle.up(settings)


def test_down_stops_keeps_the_port_and_hides_the_address(settings: Settings, toy: Toy) -> None:
    address = lifecycle.up(settings).kafka_brokers

    assert lifecycle.down(settings) == ["kafka"]
    assert lifecycle.down(settings) == []
    assert Settings().kafka_brokers is None
    assert [line.state for line in lifecycle.status(settings)] == ["stopped"]
    assert lifecycle.up(settings).kafka_brokers == address


def test_down_before_any_up_leaves_no_trace(settings: Settings, toy: Toy, tmp_path: Path) -> None:
    assert lifecycle.down(settings) == []
    assert not (tmp_path / "engines").exists()


def test_a_killed_engine_is_seen_dead_and_started_again(settings: Settings, toy: Toy) -> None:
    address = lifecycle.up(settings).kafka_brokers
    process = state().process
    assert process is not None
    psutil.Process(process.pid).kill()
    until("it has ended", lambda: process.find() is None)

    assert [line.state for line in lifecycle.status(settings)] == ["dead"]
    assert lifecycle.up(settings).kafka_brokers == address
    assert state().pid != process.pid


def test_a_stolen_port_gives_another_one(settings: Settings, toy: Toy) -> None:
    address = lifecycle.up(settings).require("kafka_brokers")
    lifecycle.down(settings)
    with socket.create_server(("127.0.0.1", port_of(address))):
        moved = lifecycle.up(settings).require("kafka_brokers")
    assert moved != address
    assert listens(moved)


def test_a_stale_file_that_names_a_foreign_process_harms_nobody(settings: Settings, toy: Toy) -> None:
    lifecycle.up(settings)
    lifecycle.down(settings)
    known = endpoints.read(lifecycle.endpoint_file())
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as foreign:
        record = EngineRecord(known.engines["kafka"].address, "1", "/log", foreign.pid, 1.0)
        endpoints.write(
            lifecycle.endpoint_file(), endpoints.Endpoints({"kafka_brokers": record.address}, {"kafka": record})
        )
        assert [line.state for line in lifecycle.status(settings)] == ["dead"]
        lifecycle.up(settings)
        endpoints.write(lifecycle.endpoint_file(), endpoints.Endpoints({}, {"kafka": record}))
        lifecycle.down(settings)
        assert foreign.poll() is None
        foreign.kill()


def test_an_engine_that_was_started_but_not_recorded_is_replaced(settings: Settings, toy: Toy) -> None:
    address = lifecycle.up(settings).require("kafka_brokers")
    orphan = state().process
    endpoints.write(lifecycle.endpoint_file(), endpoints.Endpoints())

    lifecycle.up(settings)
    assert orphan is not None
    assert orphan.find() is None
    assert not listens(address) or state().address == address


def test_an_engine_that_dies_at_its_start_says_why_and_leaves_nothing(settings: Settings, toy: Toy) -> None:
    toy.program = "import sys; sys.exit('disk is full')"
    with pytest.raises(UnavailableError, match="kafka died while starting: disk is full") as caught:
        lifecycle.up(settings)
    assert str(toy.folder / "kafka.log") in caught.value.remedy
    assert Settings().kafka_brokers is None
    toy.program = LISTEN
    assert lifecycle.up(settings).kafka_brokers is not None
    assert "disk is full" in (toy.folder / "kafka.previous.log").read_text()


def test_one_that_does_not_answer_in_time_is_not_left_running(settings: Settings, toy: Toy) -> None:
    toy.program, toy.seconds_to_start = "import time; time.sleep(60)", 0.3
    with pytest.raises(UnavailableError, match="kafka has not answered for 0 s"):
        lifecycle.up(settings)
    process = state().process
    assert process is None or process.find() is None


def test_an_address_in_the_environment_is_used_and_nothing_started(
    settings: Settings, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", "broker.example:9092")
    assert lifecycle.up(Settings(marketdata_home=settings.marketdata_home)).kafka_brokers == "broker.example:9092"
    assert toy.starts == 0
    assert [line.state for line in lifecycle.status(settings)] == ["external"]


def test_a_lake_that_is_set_stays(settings_for: Callable[..., Settings], settings: Settings, toy: Toy) -> None:
    assert lifecycle.up(settings.model_copy(update={"lake_uri": "s3://lake"})).lake_uri == "s3://lake"


def test_a_folder_that_cannot_be_made_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file is in the way")
    with pytest.raises(UnavailableError, match=rf"{tmp_path}/engines cannot be written: .*nothing was started"):
        lifecycle.up(settings)


def test_an_unknown_name_lists_the_known(settings: Settings) -> None:
    with pytest.raises(UsageError, match="no engine is called redis") as caught:
        lifecycle.up(settings, ["redis"])
    assert caught.value.remedy == "there are kafka, postgres, airflow"


def test_every_engine_comes_after_what_it_needs(settings: Settings) -> None:
    names = [engine.name for engine in lifecycle._engines(settings, None)]
    for engine in lifecycle._engines(settings, None):
        assert all(
            names.index(need) < names.index(engine.name) for need in (*engine.needs, engine.at) if need != engine.name
        )


def test_kafkas_configuration(tmp_path: Path) -> None:
    lines = _properties(tmp_path, "192.0.2.1", 20001, 20002).splitlines()
    assert "listeners=PLAINTEXT://192.0.2.1:20001,CONTROLLER://127.0.0.1:20002" in lines
    assert "advertised.listeners=PLAINTEXT://192.0.2.1:20001" in lines
    assert "auto.create.topics.enable=false" in lines
    assert "transaction.max.timeout.ms=900000" in lines
    assert {line for line in lines if "replica" in line and line.split("=")[1] != "1"} == set()


def test_a_pid_file_that_names_another_program_is_forgotten(tmp_path: Path) -> None:
    pid_file = tmp_path / "postmaster.pid"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as foreign:
        pid_file.write_text(f"{foreign.pid}\n/data\n")
        _clear_remains(tmp_path)
        assert not pid_file.exists()
        assert foreign.poll() is None
        foreign.kill()


def test_airflows_environment(settings: Settings, tmp_path: Path) -> None:
    known = settings.model_copy(update={"postgres_dsn": "postgresql://u:p@127.0.0.1:20002/marketdata"})
    environment = airflow.airflow_environment(known)

    address = "postgresql+psycopg://u:p@127.0.0.1:20002/airflow"
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == address
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC"] == address
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert environment["AIRFLOW_HOME"] == str(tmp_path / "airflow")
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert "AIRFLOW__API__PORT" not in environment
    assert airflow.airflow_environment(known) == environment

    server = EngineRecord("127.0.0.1:20003", "3", "/log")
    lifecycle.endpoint_file().parent.mkdir()
    endpoints.write(lifecycle.endpoint_file(), endpoints.Endpoints({}, {"airflow-api-server": server}))
    environment = airflow.airflow_environment(known)
    assert environment["AIRFLOW__API__PORT"] == "20003"
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:20003/execution/"


def test_airflow_without_postgres_is_a_usage_error(settings: Settings) -> None:
    with pytest.raises(UsageError, match="POSTGRES_DSN is not set"):
        airflow.airflow_environment(settings)
