"""JSON logs: one formatter for every command, one line per event, the same context on each line."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from marketdata.settings import Settings

_context: ContextVar[Mapping[str, Any]] = ContextVar("log_context", default=MappingProxyType({}))


def bind(**fields: Any) -> None:
    """Add fields to every following line of this process: batch_id, dataset, records, …"""
    _context.set({**_context.get(), **fields})


class _WithContext(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in _context.get().items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def configure(settings: Settings, job_name: str, file: Path | None = None) -> None:
    """Send the logs of this process to standard error, or to `file`, as JSON lines.

    Args:
        job_name: the command, e.g. ``publish``.
        file: for commands whose terminal belongs to a person.
    """
    handler: logging.Handler
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file)
    handler.setFormatter(
        JsonFormatter(
            "{asctime}{levelname}{message}{name}",
            style="{",
            rename_fields={"asctime": "timestamp", "levelname": "level", "name": "logger"},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    )
    handler.addFilter(_WithContext())
    bind(
        job_name=job_name,
        exchange=None,
        layer=None,
        batch_id=None,
        tenant=settings.tenant,
        dag_id=os.environ.get("MARKETDATA_DAG_ID"),
        task_id=os.environ.get("MARKETDATA_TASK_ID"),
        run_id=os.environ.get("MARKETDATA_RUN_ID"),
        try_number=os.environ.get("MARKETDATA_TRY_NUMBER"),
        pod_name=socket.gethostname(),
    )
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    for chatty in ("urllib3", "botocore", "great_expectations", "pyiceberg", "py4j"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
