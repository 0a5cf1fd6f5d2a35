"""A pod without a cluster: the base container's command as a local child process.

It gets what the pod would give it and nothing else: the pod's environment, a temporary folder of its own, a deadline;
and it ends as a container does, with everything it has started, also when the process that runs it is killed.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException
from kubernetes.client import models as k8s  # type: ignore[import-untyped]

from marketdata.orchestration import container as first_process
from marketdata.orchestration import output
from marketdata.orchestration.environment import RESULT_FILE, TEMPORARY
from marketdata.orchestration.output import LARGEST_RESULT, Outcome, Transcript, last_words

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

ESSENTIALS = ("PATH", "LANG", "LC_ALL", "TZ", "MARKETDATA_HOME", "MARKETDATA_ENDPOINTS")
"""What an image would bring: taken from the runner's environment where it is there."""

SCRIPTS = Path(sysconfig.get_path("scripts"))
"""Where this environment keeps its executables, `marketdata` among them."""

GRACE_SECONDS = 3.0
"""Between SIGTERM and SIGKILL; Airflow kills a runner that takes longer than 5 s."""

LONGEST_LINE = 64 * 1024
_TICK_SECONDS = 0.2


class LocalContainer:
    """The base container of a pod, run once.

    Args:
        pod: as it would be submitted.
        secrets: values to strike out of everything the command says.
        log: the task's log.
    """

    def __init__(self, pod: k8s.V1Pod, *, secrets: Collection[str], log: Logger) -> None:
        self._container = next(c for c in pod.spec.containers if c.name == "base")
        self._deadline_seconds = float(pod.spec.active_deadline_seconds)
        self._transcript = Transcript(log, secrets)
        self._process: subprocess.Popen[bytes] | None = None
        self._killed_at: float | None = None

    def run(self) -> Outcome:
        """Run the command to its end.

        Raises:
            AirflowException: it succeeded, but what it handed over is no JSON or too large.
        """
        with TemporaryDirectory(prefix="marketdata-", ignore_cleanup_errors=True) as folder:
            own = Path(folder)
            temporary, result = own / "tmp", own / "result" / "result.json"
            temporary.mkdir()
            result.parent.mkdir()
            code, why = self._run(temporary, self._environment({TEMPORARY: temporary, RESULT_FILE: result}))
            if code == 0:
                return Outcome(0, _read(result))
            try:
                return Outcome(code, _read(result), why)
            except AirflowException:
                return Outcome(code, None, why)

    def remove(self) -> None:
        """What a pod needs after a success; here nothing is left: the command's folder went with it."""

    def kill(self) -> None:
        """Ask the command and all it has started to end; `run` sees that they do. A signal handler may call it."""
        if self._killed_at is None:
            self._killed_at = time.monotonic()
            if self._process is not None:
                _signal(self._process, signal.SIGTERM)

    def _environment(self, moved: dict[str, Path]) -> dict[str, str]:
        environment = {name: os.environ[name] for name in ESSENTIALS if name in os.environ}
        environment["PATH"] = os.pathsep.join([str(SCRIPTS), environment.get("PATH", os.defpath)])
        for variable in self._container.env or []:
            if variable.value is not None:
                environment[variable.name] = str(moved.get(variable.value, variable.value))
            elif variable.name in os.environ:
                environment[variable.name] = os.environ[variable.name]
        return environment

    def _run(self, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
        report, reported = os.pipe()
        command = [*(self._container.command or []), *(self._container.args or [])]
        words = [sys.executable, "-I", "-S", first_process.__file__, str(reported), *command]
        started = time.monotonic()
        try:
            process = self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=folder,
                start_new_session=True,
                pass_fds=(reported,),
            )
        finally:
            os.close(reported)
        try:
            code, overdue = self._follow(process, report, started + self._deadline_seconds)
        finally:
            os.close(report)
            _signal(process, signal.SIGKILL)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.wait()
        if overdue:
            return (
                128 + signal.SIGKILL,
                f"it ran longer than its deadline of {self._deadline_seconds:.0f} s and was killed",
            )
        if self._killed_at is not None:
            return 128 + signal.SIGTERM, "it was killed with its task"
        return (code if code >= 0 else 128 - code), last_words(self._transcript.last)

    def _follow(self, process: subprocess.Popen[bytes], report: int, deadline: float) -> tuple[int, bool]:
        """Log what the command says until it and all it started have ended: its exit code, and if it was overdue."""
        code, overdue = -int(signal.SIGKILL), False
        with selectors.DefaultSelector() as selector:
            selector.register(report, selectors.EVENT_READ)
            for stream in (process.stdout, process.stderr):
                assert stream is not None  # noqa: S101 - opened above
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, _Lines(stream))
            while selector.get_map():
                now = time.monotonic()
                if not overdue and now > deadline:
                    overdue = True
                    _signal(process, signal.SIGKILL)
                if self._killed_at is not None and now > self._killed_at + GRACE_SECONDS:
                    _signal(process, signal.SIGKILL)
                for key, _ in selector.select(_TICK_SECONDS):
                    if key.fd == report:
                        # Nothing but the end of the first process ends this pipe without a word in it.
                        code = int(os.read(report, 16) or code)
                        selector.unregister(report)
                        _signal(process, signal.SIGKILL)
                        continue
                    for line in key.data.read():
                        self._transcript.say(line)
                    if key.data.ended:
                        selector.unregister(key.fileobj)
        return code, overdue


class _Lines:
    """Splits a stream into lines, holding no more than `LONGEST_LINE` bytes of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._file = stream.fileno()
        self._rest = b""
        self._skipping = False
        self.ended = False

    def read(self) -> list[str]:
        try:
            chunk = os.read(self._file, LONGEST_LINE)
        except BlockingIOError:
            return []
        if not chunk:
            self.ended = True
            lines, self._rest = ([self._rest] if self._rest else []), b""
        else:
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if self._skipping and lines:
                lines, self._skipping = lines[1:], False
            if len(self._rest) > LONGEST_LINE or self._skipping:
                if not self._skipping:
                    lines.append(self._rest)
                self._rest, self._skipping = b"", True
        return [line[:LONGEST_LINE].decode(errors="replace") for line in lines if line.strip()]


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the group of a process that has not been waited for, so that its id cannot be another's."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:  # macOS says so of a group of zombies
            pass


def _read(path: Path) -> Any:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return output.result(file.read(LARGEST_RESULT).decode(errors="replace"))
