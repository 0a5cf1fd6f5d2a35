"""Processes that outlive their starter: start, recognise, wait for, stop."""

from __future__ import annotations

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

PORTS = range(20_000, 32_000)
"""Below the ports the operating system gives to outgoing connections, so that none of those takes ours between two starts."""


@dataclass(frozen=True)
class ProcessId:
    """A process for sure: the operating system gives a pid again, but not with the same time of creation."""

    pid: int
    created: float

    def find(self) -> psutil.Process | None:
        """The process, if it is still this one and alive."""
        try:
            process = psutil.Process(self.pid)
            same = abs(started_at(process) - self.created) < 0.5
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def recorded(record: Path) -> ProcessId | None:
    """The process that `launch` wrote down last."""
    try:
        written = json.loads(record.read_text())
        return ProcessId(int(written["pid"]), float(written["created"]))
    except (OSError, ValueError, KeyError):
        return None


def launch(
    command: Sequence[str], environment: Mapping[str, str], record: Path, log: Path, *, user: str | None = None
) -> ProcessId:
    """Start a program in a session of its own, its output appended to `log`.

    Raises:
        UnavailableError: it could not be started.
    """
    launcher = Path(__file__).with_name("launch.py")
    started = subprocess.run(
        [sys.executable, "-P", str(launcher), str(record), str(log), user or "-", "--", *command],
        env=dict(environment), cwd=record.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        start_new_session=True,
    )  # fmt: skip
    identity = recorded(record)
    if started.returncode or identity is None:
        raise UnavailableError(f"{Path(command[0]).name} could not be started: {started.stderr.strip()[-300:]}")
    return identity


def wait_until(
    ready: Callable[[], bool], alive: Callable[[], bool], *, seconds: float, what: str, log: Path
) -> None:
    """Ask until an engine answers.

    Raises:
        UnavailableError: it died, or did not answer in time; the message ends with the last lines of its log.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if not alive():
            raise UnavailableError(f"{what} died while starting: {last_words(log)}", f"the whole log: {log}")
        if time.monotonic() > deadline:
            raise UnavailableError(f"{what} does not answer after {seconds:.0f} s: {last_words(log)}", f"the whole log: {log}")
        time.sleep(0.05)


def last_words(log: Path, lines: int = 4) -> str:
    """The last lines of a log, as one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            tail = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "it wrote no log"
    return " | ".join(line.strip() for line in tail if line.strip() and not line.startswith("\tat "))[-600:] if tail else "its log is empty"


def stop(identity: ProcessId, signals: Sequence[tuple[signal.Signals, float]]) -> bool:
    """Stop a process: each signal in turn with the seconds it is given, SIGKILL at the end; whether there was one to stop."""
    process = identity.find()
    if process is None:
        return False
    family = _family(process)
    for number, seconds in (*signals, (signal.SIGKILL, 10.0)):
        try:
            process.send_signal(number)
            process.wait(seconds)
            break
        except psutil.NoSuchProcess:
            break
        except psutil.TimeoutExpired:
            continue
    for left in family:
        try:
            left.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)
    return True


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def free_port(preferred: int | None = None) -> int:
    """A loopback port nobody listens on, the preferred one if it can be had."""
    candidates = [preferred] if preferred else []
    candidates += random.sample(PORTS, 50)
    for port in candidates:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UnavailableError("no free port on 127.0.0.1 between 20000 and 32000", "stop what listens there")


def answers(address: str) -> bool:
    """Whether somebody listens at host:port."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False


def clean_environment() -> dict[str, str]:
    """This process's environment without what slows every start of Python."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
