"""The drill's own consumers: `marketdata analytics` as child processes, as a cluster would run it in pods."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from marketdata.operations import children
from marketdata.settings import Settings

MODULE = "marketdata.tasks.cli"

AGAIN_SECONDS = 2.0
"""Between two starts of one that ends by itself; a cluster waits longer."""

LEAVING_SECONDS = 30.0
"""R4.8: a consumer that is told to end has so long."""


class Member:
    """One consumer.

    Args:
        own: settings of the proving ground.
        name: its name in the group; a restart keeps it, as a pod of a StatefulSet does.
        log: where it writes what it says.
    """

    def __init__(self, own: Settings, name: str, log: Path) -> None:
        self.name = name
        self._own = own
        self._log = log
        self._port = 0
        self._started = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._started = time.monotonic()
        variables = {"ANALYTICS_MEMBER": self.name, "ANALYTICS_PORT": str(self._port)}
        self._process = children.start(self._own, MODULE, ["analytics"], self._log, **variables)

    def ended(self) -> str:
        """How it has ended by itself, with its last words; empty where it runs, was killed, or has only just begun."""
        code = self._process.poll() if self._process is not None else None
        if code is None or code == -signal.SIGKILL or time.monotonic() < self._started + AGAIN_SECONDS:
            return ""
        return f"consumer {self.name} ended with {code}{children.last_words(self._log)}"

    def is_ready(self) -> bool:
        """What a cluster's readiness probe says."""
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health/ready", timeout=2) as answer,
        ):
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """SIGKILL: nothing of it is said or stored any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ask_to_end(self) -> None:
        """SIGTERM: it stores what it has, and leaves."""
        if self._process is not None:
            self._process.terminate()

    def await_end(self, deadline: float) -> None:
        """Wait for its end, and kill it where it has none by then (monotonic clock)."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(deadline - time.monotonic(), 0))
            self.kill()


def end(group: list[Member]) -> None:
    """Ask all to end at once, and see them gone."""
    for member in group:
        member.ask_to_end()
    deadline = time.monotonic() + LEAVING_SECONDS
    for member in group:
        member.await_end(deadline)


@contextlib.contextmanager
def members(own: Settings, number: int) -> Iterator[list[Member]]:
    """So many consumers of the group, started; they are gone after the block."""
    with tempfile.TemporaryDirectory(prefix="marketdata-drill-") as folder:
        group = [Member(own, f"member-{index}", Path(folder) / f"member-{index}.log") for index in range(number)]
        try:
            for member in group:
                member.start()
            yield group
        finally:
            for member in group:
                member.kill()
