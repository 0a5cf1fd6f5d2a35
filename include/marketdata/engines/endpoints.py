"""The endpoint file: the addresses that tasks read, and the processes that only the engines' own commands read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from marketdata.engines.process import ProcessId


@dataclass(frozen=True)
class EngineRecord:
    """What is known of one engine; after a stop it stays, without its process: the next start takes the same port."""

    address: str
    version: str
    log: str
    pid: int | None = None
    created: float | None = None

    @property
    def process(self) -> ProcessId | None:
        return None if self.pid is None or self.created is None else ProcessId(self.pid, self.created)


@dataclass(frozen=True)
class Endpoints:
    """Contents of the endpoint file: values of settings by field name, and engines by name."""

    values: dict[str, str] = field(default_factory=dict)
    engines: dict[str, EngineRecord] = field(default_factory=dict)


def read(path: Path) -> Endpoints:
    """What the file says; a missing or damaged file says nothing."""
    try:
        content = json.loads(path.read_text())
        engines = {name: EngineRecord(**record) for name, record in content.pop("engines", {}).items()}
        return Endpoints({name: str(value) for name, value in content.items()}, engines)
    except (OSError, ValueError, TypeError, AttributeError):
        return Endpoints()


def write(path: Path, endpoints: Endpoints) -> None:
    """Replace the file at once; only its owner can read it, because it holds a password."""
    temporary = path.with_suffix(f".{os.getpid()}.new")
    content = {**endpoints.values, "engines": {name: asdict(record) for name, record in endpoints.engines.items()}}
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
