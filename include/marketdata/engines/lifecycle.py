"""Start, find and stop the embedded engines."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Literal, Protocol

from pydantic import SecretStr

from marketdata import settings as settings_module
from marketdata.engines import endpoints
from marketdata.engines.endpoints import Endpoints, EngineRecord
from marketdata.engines.kafka import Kafka
from marketdata.engines.postgres import Postgres
from marketdata.engines.process import ProcessId, answers, free_port, launch, recorded, stop, wait_until
from marketdata.errors import TryLaterError, UnavailableError, UsageError
from marketdata.settings import Settings, endpoint_file

Say = Callable[[str], None]


class Engine(Protocol):
    """A program this module can start; `command` and `ready` are called in a thread."""

    name: str
    version: str
    field: str | None
    needs: tuple[str, ...]
    seconds_to_start: float
    stop_signals: tuple[tuple[Signals, float], ...]
    user: str | None
    folder: Path

    def command(self, port: int, say: Say) -> list[str]: ...
    def environment(self) -> Mapping[str, str]: ...
    def ready(self, address: str) -> bool: ...
    def value(self, address: str) -> str: ...


@dataclass(frozen=True)
class EngineStatus:
    """One line of `marketdata engines`."""

    name: str
    state: Literal["running", "dead", "stopped", "external"]
    pid: int | None
    address: str | None
    version: str
    log: Path | None


def up(settings: Settings, names: Iterable[str] = ("kafka", "postgres"), say: Say = lambda line: None) -> Settings:
    """Start what does not run yet and wait until it answers.

    Args:
        settings: where everything lies (`marketdata_home`).
        names: engines; one whose address is in the environment is not started.
        say: told what is being done, for progress.

    Returns:
        the settings with the addresses of the engines that now run.
    """
    wanted = [engine for engine in _engines(settings, names) if not _external(engine)]
    file = endpoint_file()
    known = endpoints.read(file)
    if not all(_running(engine, known) for engine in wanted) or "lake_uri" not in known.values:
        with _lock(file, say):
            known = _Starter(file, say).start(wanted, settings)
    return _with_addresses(settings, known)


def down(settings: Settings, names: Iterable[str] | None = None, say: Say = lambda line: None) -> list[str]:
    """Stop engines that run, politely first; their data stays. Returns their names."""
    file = endpoint_file()
    stopped = []
    with _lock(file, say):
        for engine in reversed(_engines(settings, names)):
            known = endpoints.read(file)
            processes = {_known(engine, known), recorded(_record(engine))} - {None}
            if any([stop(process, engine.stop_signals) for process in processes if process]):
                stopped.append(engine.name)
            _record(engine).unlink(missing_ok=True)
            if record := known.engines.get(engine.name):
                values = {name: value for name, value in known.values.items() if name != engine.field}
                engines = {**known.engines, engine.name: replace(record, pid=None, created=None)}
                endpoints.write(file, Endpoints(values, engines))
    settings_module.load.cache_clear()
    return stopped


def status(settings: Settings) -> list[EngineStatus]:
    """Every engine, whether it runs or not."""
    known = endpoints.read(endpoint_file())
    lines = []
    for engine in _engines(settings, None):
        record = known.engines.get(engine.name)
        if _external(engine):
            lines.append(EngineStatus(engine.name, "external", None, None, "", None))
        elif record is None or record.pid is None:
            lines.append(EngineStatus(engine.name, "stopped", None, None, engine.version, None))
        else:
            state: Literal["running", "dead"] = "running" if _running(engine, known) else "dead"
            lines.append(EngineStatus(engine.name, state, record.pid, record.address, record.version, Path(record.log)))
    return lines


class _Starter:
    """Starts engines side by side and keeps the endpoint file true while it does."""

    def __init__(self, file: Path, say: Say) -> None:
        self.file = file
        self.say = say
        self.writing = threading.Lock()

    def start(self, engines: Sequence[Engine], settings: Settings) -> Endpoints:
        lake = settings.marketdata_home.resolve() / "lake"
        self._write(lambda known: replace(known, values={**known.values, "lake_uri": lake.as_uri()}))
        with ThreadPoolExecutor(max_workers=max(1, len(engines))) as pool:
            results = [pool.submit(self._ensure, engine) for engine in engines]
        for result in results:
            result.result()
        settings_module.load.cache_clear()
        return endpoints.read(self.file)

    def _ensure(self, engine: Engine) -> None:
        known = endpoints.read(self.file)
        if _running(engine, known):
            return
        for process in (_known(engine, known), recorded(_record(engine))):
            if process:
                stop(process, engine.stop_signals)
        engine.folder.mkdir(parents=True, exist_ok=True)
        before = known.engines.get(engine.name)
        port = free_port(int(before.address.rpartition(":")[2]) if before else None)
        address = f"127.0.0.1:{port}"
        log = engine.folder / f"{engine.name}.log"
        self.say(f"starting {engine.name} {engine.version}")
        command = engine.command(port, self.say)
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        process = launch(command, engine.environment(), _record(engine), log, user=engine.user)
        wait_until(
            lambda: engine.ready(address), lambda: process.find() is not None,
            seconds=engine.seconds_to_start, what=engine.name, log=log,
        )  # fmt: skip
        record = EngineRecord(address, engine.version, str(log), process.pid, process.created)
        values = {engine.field: engine.value(address)} if engine.field else {}
        self._write(lambda known: Endpoints({**known.values, **values}, {**known.engines, engine.name: record}))
        self.say(f"{engine.name} answers on {address}")

    def _write(self, change: Callable[[Endpoints], Endpoints]) -> None:
        with self.writing:
            endpoints.write(self.file, change(endpoints.read(self.file)))


def _engines(settings: Settings, names: Iterable[str] | None) -> list[Engine]:
    folder = settings.marketdata_home.resolve() / "engines"
    known: dict[str, Engine] = {"postgres": Postgres(folder / "postgres"), "kafka": Kafka(folder / "kafka")}
    wanted = list(known) if names is None else list(names)
    if unknown := set(wanted) - set(known):
        raise UsageError(f"no engine named {', '.join(sorted(unknown))}", f"engines: {', '.join(known)}")
    return [engine for name, engine in known.items() if name in wanted]


def _external(engine: Engine) -> bool:
    return engine.field is not None and any(name.lower() == engine.field and value for name, value in os.environ.items())


def _record(engine: Engine) -> Path:
    return engine.folder / f"{engine.name}.process.json"


def _known(engine: Engine, known: Endpoints) -> ProcessId | None:
    record = known.engines.get(engine.name)
    return record.process if record else None


def _running(engine: Engine, known: Endpoints) -> bool:
    process = _known(engine, known)
    return process is not None and process.find() is not None and answers(known.engines[engine.name].address)


def _with_addresses(settings: Settings, known: Endpoints) -> Settings:
    fields: dict[str, object] = {
        name: SecretStr(value) if name == "postgres_dsn" else value
        for name, value in known.values.items()
        if name in Settings.model_fields and not os.environ.get(name.upper())
    }
    return settings.model_copy(update=fields)


def _lock(file: Path, say: Say):  # type: ignore[no-untyped-def]
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(file.parent / "lock", timeout=300)
