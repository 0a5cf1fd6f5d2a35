"""Processes that outlive their starter: start, recognise, wait for, stop."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from marketdata.engines.launch import started_at
from marketdata.errors import UnavailableError

MARK = "MARKETDATA_ENGINE"
"""Variable in the environment of each process of an engine, its folder: it finds what no record names any more."""

LOOPBACK = "127.0.0.1"

PORTS = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections, so that none of those takes ours between two starts."""

_turns = itertools.count(random.randrange(len(PORTS)))  # noqa: S311 - a port is no secret
"""From here on each port has its turn before any has a second one: who was given one may not listen on it yet."""


@dataclass(frozen=True)
class ProcessId:
    """A process for sure: the system gives a pid again, but not with the same time of creation."""

    pid: int
    created: float

    def find(self) -> psutil.Process | None:
        """The process, if it is alive and still this one."""
        try:
            process = psutil.Process(self.pid)
            same = abs(started_at(process) - self.created) < 0.5
            return process if same and not ended(process) else None
        except psutil.Error:
            return None


def environment_of(engine: Path) -> dict[str, str]:
    """This process's environment for an engine's process: marked, and without what slows every start of Python."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, MARK: str(engine)}


def launch(command: Sequence[str], environment: Mapping[str, str], log: Path, user: str | None) -> ProcessId:
    """Start a program in a session of its own, its output appended to `log`.

    Raises:
        UnavailableError: it could not be started.
    """
    launcher = Path(__file__).with_name("launch.py")
    started = subprocess.run(
        [sys.executable, "-P", str(launcher), str(log), user or "-", *command],
        env=environment, cwd=log.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if started.returncode:
        raise UnavailableError(f"{Path(command[0]).name} could not be started: {one_line(started.stderr)}")
    return ProcessId(**json.loads(started.stdout))


def wait_until(ready: Callable[[], bool], process: ProcessId, *, seconds: float, what: str, log: Path) -> None:
    """Ask until an engine answers.

    Raises:
        UnavailableError: it died, or did not answer in time; the message ends with the last lines of its log.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if process.find() is None:
            raise UnavailableError(f"{what} died while starting: {last_words(log)}", f"the whole log: {log}")
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"{what} has not answered for {seconds:.0f} s: {last_words(log)}", f"the whole log: {log}"
            )
        time.sleep(0.05)


def last_words(log: Path) -> str:
    """The last lines of a log, as one, without stack frames."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return "it wrote no log"
    return one_line(text) or "its log is empty"


def one_line(output: str) -> str:
    """The end of a program's output for an error message, without stack frames."""
    said = [line.strip() for line in output.splitlines()]
    return " | ".join([line for line in said if line and not line.startswith(("at ", "... "))][-6:])[-800:]


def stop(identity: ProcessId | None, engine: Path, signals: Sequence[tuple[signal.Signals, float]]) -> bool:
    """Stop an engine: each signal in turn with the seconds it is given, then kill whatever carries its mark.

    Returns:
        whether there was anything to stop.
    """
    process = identity.find() if identity else None
    if process:
        for number, seconds in signals:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                break
            if not _still_alive([process], seconds):
                break
    ran = process is not None
    while left := _marked(engine):  # one of them may have started another a moment before it was killed
        ran = True
        end(left)
    return ran


def end(processes: Sequence[psutil.Process]) -> None:
    """Kill processes and see them gone.

    Raises:
        UnavailableError: one does not end.
    """
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if alive := _still_alive(processes, 20.0):
        raise UnavailableError(f"process {alive[0].pid} does not end, even killed", "look at its state with ps")


def _still_alive(processes: Sequence[psutil.Process], seconds: float) -> Sequence[psutil.Process]:
    """Wait for their end; a zombie has ended, whenever the system's first process gets round to noticing."""
    deadline = time.monotonic() + seconds
    while processes := [process for process in processes if not ended(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return processes


def ended(process: psutil.Process) -> bool:
    """Whether a process holds nothing any more.

    The first thread of a killed process may be a zombie while others still give back its memory; until the last has
    gone, its ports and its locks on files are taken.
    """
    try:
        return not process.is_running() or (process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1)
    except psutil.NoSuchProcess:
        return True


def _marked(engine: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(engine):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def free_port(preferred: int | None = None, host: str = LOOPBACK) -> int:
    """A port nobody listens on at an address of this machine, the preferred one if it can be had.

    Raises:
        UnavailableError: there is none.
    """
    others = (PORTS[turn % len(PORTS)] for turn in itertools.islice(_turns, 50))
    for port in itertools.chain([preferred] if preferred else [], others):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                return port
            except OSError:
                continue
    raise UnavailableError(f"no free port on {host} in {PORTS.start}-{PORTS.stop}", "stop what listens there")


def port_of(address: str) -> int:
    """The port of host:port."""
    return int(address.rpartition(":")[2])


def listens(address: str) -> bool:
    """Whether somebody listens at host:port."""
    try:
        with socket.create_connection((address.rpartition(":")[0], port_of(address)), timeout=1):
            return True
    except OSError:
        return False
