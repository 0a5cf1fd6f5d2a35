"""Processes that outlive their starter."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from marketdata.engines.launch import started_at
from marketdata.engines.process import (
    PORTS,
    ProcessId,
    end,
    environment_of,
    free_port,
    last_words,
    launch,
    listens,
    stop,
    wait_until,
)
from marketdata.errors import UnavailableError
from tests.waiting import until

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "engine"
    folder.mkdir()
    yield folder
    stop(None, folder, ())


def start(command: list[str], engine: Path) -> ProcessId:
    return launch(command, environment_of(engine), engine / "log", None)


def wait_for_log(engine: Path, text: str) -> None:
    until(f"it says {text}", lambda: text in (engine / "log").read_text())


def test_a_launched_program_is_nobodys_child_leads_its_session_and_writes_its_log(engine: Path) -> None:
    identity = start([sys.executable, "-c", "import os, time; print(os.getsid(0), flush=True); time.sleep(60)"], engine)

    wait_for_log(engine, f"{identity.pid}\n")
    process = identity.find()
    assert process is not None
    assert process.ppid() != os.getpid()
    assert os.getsid(identity.pid) == identity.pid


def test_a_program_that_is_not_there_ends_at_once_and_the_log_says_so(engine: Path) -> None:
    identity = start([str(engine / "missing")], engine)

    with pytest.raises(UnavailableError, match=r"toy died while starting: .*missing: \[Errno 2\]") as caught:
        wait_until(lambda: False, identity, seconds=10, what="toy", log=engine / "log")
    assert str(engine / "log") in caught.value.remedy


def test_an_engine_that_never_answers_is_given_up_with_the_end_of_its_log(engine: Path) -> None:
    identity = start([sys.executable, "-c", "print('thinking', flush=True); import time; time.sleep(60)"], engine)
    wait_for_log(engine, "thinking")

    with pytest.raises(UnavailableError, match=r"toy has not answered for 0 s: thinking"):
        wait_until(lambda: False, identity, seconds=0.1, what="toy", log=engine / "log")


def test_a_pid_that_was_given_again_is_not_the_process(engine: Path) -> None:
    identity = start(SLEEP, engine)

    assert identity.find() is not None
    assert ProcessId(identity.pid, identity.created - 5).find() is None


def test_a_zombie_is_dead() -> None:
    with subprocess.Popen(SLEEP) as child:
        identity = ProcessId(child.pid, started_at(psutil.Process(child.pid)))
        assert identity.find() is not None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert identity.find() is None


HOLDING = """
import socket, sys, threading, time
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
memory = b"x" * (256 << 20)
for _ in range(50):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("up", flush=True)
time.sleep(60)
"""


def test_a_process_is_alive_until_its_last_thread_has_let_go_of_its_port() -> None:
    port = free_port()
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", HOLDING, str(port)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"up\n"
            end([psutil.Process(child.pid)])
            assert free_port(port) == port


def test_stop_asks_first_and_kills_the_deaf(engine: Path) -> None:
    identity = start(STUBBORN, engine)
    wait_for_log(engine, "deaf")

    assert stop(identity, engine, [(signal.SIGTERM, 0.2)])
    assert identity.find() is None
    assert not stop(identity, engine, [(signal.SIGTERM, 0.2)])


def test_stop_finds_what_no_record_names_and_leaves_other_engines_alone(engine: Path, tmp_path: Path) -> None:
    orphan = start([sys.executable, "-c", "import os, time; os.fork(); time.sleep(60)"], engine)
    other = tmp_path / "other"
    other.mkdir()
    neighbour = launch(SLEEP, environment_of(other), other / "log", None)

    assert stop(None, engine, ())
    assert orphan.find() is None
    assert neighbour.find() is not None
    assert stop(neighbour, other, [(signal.SIGTERM, 10)])


def test_stop_finds_what_was_started_while_it_looked(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed starter's launcher starts its engine a moment later."""
    start(SLEEP, engine)
    late: list[ProcessId] = []

    def another_has_started(found: Sequence[psutil.Process]) -> None:
        if not late:
            late.append(start(SLEEP, engine))
        end(found)

    monkeypatch.setattr("marketdata.engines.process.end", another_has_started)
    assert stop(None, engine, ())
    assert late[0].find() is None


def test_a_record_of_a_foreign_process_stops_nothing(engine: Path) -> None:
    with subprocess.Popen(SLEEP) as foreign:
        assert not stop(ProcessId(foreign.pid, 1.0), engine, [(signal.SIGTERM, 1)])
        assert foreign.poll() is None
        foreign.kill()


def test_the_preferred_port_is_kept_unless_somebody_has_it() -> None:
    port = free_port()
    assert port in PORTS
    assert free_port(port) == port
    with socket.create_server(("127.0.0.1", port)):
        assert listens(f"127.0.0.1:{port}")
        assert free_port(port) != port
    assert not listens(f"127.0.0.1:{port}")


def test_a_port_that_was_given_is_not_given_again_before_anybody_listens_on_it() -> None:
    given = [free_port() for _ in range(500)]
    assert len(set(given)) == len(given)


def test_last_words_leave_out_stack_frames(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_words(log) == "it wrote no log"
    log.write_text("one\ntwo\nException: no space left\n\tat a.b.C\n\t... 3 more\n\n")
    assert last_words(log) == "one | two | Exception: no space left"
