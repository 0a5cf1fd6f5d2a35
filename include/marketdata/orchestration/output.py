"""What a command says on its way and leaves at its end: log lines made readable, its result, its last words."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from marketdata.errors import NO_RETRY

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

LARGEST_RESULT = 4096
"""In bytes, what Kubernetes keeps of a container's termination message. A result is a URI and a few counts."""

SHOWN_LINES = 10_000
"""After so many lines only warnings and errors reach the task's log."""

_LAST_LINES = 50

_CONTEXT = frozenset({
    "timestamp", "level", "logger", "message", "job_name", "exchange", "layer", "tenant", "dataset",
    "dag_id", "task_id", "run_id", "try_number", "pod_name", "taskName",
    "exc_info", "stack_info",
})  # fmt: skip
"""Fields of a JSON log line that a task's log page knows already, or that are shown apart."""

_MEANING = {
    64: "wrong use, not retried",
    65: "bad data, not retried",
    69: "a dependency is down",
    70: "a defect of ours",
    75: "try later",
    137: "killed",
    143: "ended from outside",
}


@dataclass(frozen=True)
class Outcome:
    """How a container ended.

    Args:
        exit_code: as a shell says it: 128 + number for a signal.
        result: what the command handed over, None for nothing.
        why: the reason in one line; empty after a success.
    """

    exit_code: int
    result: Any = None
    why: str = ""


class Transcript:
    """Everything a command says, into the task's log.

    Args:
        log: the task's log.
        secrets: values to strike out.
    """

    def __init__(self, log: Logger, secrets: Collection[str]) -> None:
        self._log = log
        self._secrets = sorted(secrets, key=len, reverse=True)
        self._lines = 0
        self._last: deque[str] = deque(maxlen=_LAST_LINES)

    @property
    def last(self) -> list[str]:
        """The last lines, as the command said them."""
        return list(self._last)

    def say(self, line: str) -> None:
        for secret in self._secrets:
            line = line.replace(secret, "***")
        self._last.append(line)
        level, text = readable(line)
        self._lines += 1
        if self._lines == SHOWN_LINES + 1:
            self._log.warning(
                "The command has written %d lines; from here on only warnings and errors are shown.", SHOWN_LINES
            )
        if self._lines <= SHOWN_LINES or level >= logging.WARNING:
            self._log.log(level, "%s", text)


def result(text: str) -> Any:
    """What a command handed over, None for nothing.

    Raises:
        AirflowException: it is too large, or no JSON.
    """
    if len(text.encode()) >= LARGEST_RESULT:
        raise AirflowException(
            f"the command's result is not smaller than {LARGEST_RESULT} bytes; results name data, batches carry it"
        )
    try:
        return json.loads(text) if text.strip() else None
    except ValueError as error:
        raise AirflowException(f"the command's result is no JSON: {error}") from None


def readable(line: str) -> tuple[int, str]:
    """Level and text of a line a command wrote; JSON log lines lose what the log page says anyway."""
    try:
        event = json.loads(line)
        level = logging.getLevelNamesMapping()[event["level"]]
        text = str(event["message"])
    except (ValueError, KeyError, TypeError):
        return (logging.ERROR if line.lstrip().startswith(("error: ", "fix: ")) else logging.INFO), line
    fields = [f"{name}={value}" for name, value in event.items() if name not in _CONTEXT and value is not None]
    if fields:
        text = f"{text} ({', '.join(fields)})"
    return level, "\n".join(filter(None, (text, event.get("exc_info"))))


def last_words(lines: Iterable[str]) -> str:
    """Why a command failed, by its own account: its last `error:` line and the remedy under it, else its last line."""
    said = [line.strip() for line in lines if line.strip()]
    for index in range(len(said) - 1, -1, -1):
        if said[index].startswith("error: "):
            remedy = said[index + 1] if said[index + 1 : index + 2] and said[index + 1].startswith("fix: ") else ""
            return f"{said[index].removeprefix('error: ')}{f' ({remedy})' if remedy else ''}"
    return readable(said[-1])[1] if said else "it said nothing"


def failure(command: str, exit_code: int, why: str) -> AirflowException:
    """The exception of a failed command; its kind decides whether there is another try."""
    meaning = f": {_MEANING[exit_code]}" if exit_code in _MEANING else ""
    kind = AirflowFailException if exit_code in NO_RETRY else AirflowException
    return kind(f"marketdata {command} failed (exit {exit_code}{meaning}): {why}")
