"""What a command says on its way: its JSON log lines made readable, and its last words when it fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from marketdata.errors import NO_RETRY

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
    137: "killed, perhaps out of memory",
    143: "ended from outside",
}


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


def formatted(_container: str, line: str) -> str:
    """A line of a pod's log as text, for the provider's log reader."""
    level, text = readable(line)
    return text if level == logging.INFO else f"{logging.getLevelName(level)} {text}"


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
