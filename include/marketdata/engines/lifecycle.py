"""Start, find and stop the embedded engines."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Literal, Protocol

from pydantic import SecretStr

from marketdata import settings as settings_module
from marketdata.engines import airflow, endpoints
from marketdata.engines.endpoints import Endpoints, EngineRecord
from marketdata.engines.kafka import Kafka
from marketdata.engines.postgres import Postgres
from marketdata.engines.process import LOOPBACK, free_port, launch, listens, port_of, stop, wait_until
from marketdata.errors import TryLaterError, UnavailableError, UsageError
from marketdata.settings import Settings, endpoint_file

Say = Callable[[str], None]
SECONDS_TO_WAIT_FOR_OTHERS = 300
"""A first start downloads Kafka and creates everything."""


class Engine(Protocol):
    """A program that can be started here. Several are started at once, each in a thread of its own."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def folder(self) -> Path:
        """Its folder: data, configuration, log."""

    @property
    def field(self) -> str | None:
        """The setting that holds its address, which, set in the environment, replaces it."""

    @property
    def host(self) -> str:
        """The address of this machine it listens on."""

    @property
    def at(self) -> str:
        """The engine whose address it uses: itself, or the one it belongs to."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Engines that must answer before it is prepared."""

    @property
    def user(self) -> str | None:
        """The account it runs as, if not the caller's."""

    @property
    def seconds_to_start(self) -> float: ...
    @property
    def stop_signals(self) -> Sequence[tuple[Signals, float]]:
        """How to ask it to stop, and the seconds each way is given."""

    def command(self, port: int, say: Say) -> list[str]:
        """What to run; prepares it before."""

    def environment(self) -> dict[str, str]: ...
    def ready(self, address: str) -> bool: ...
    def value(self, address: str) -> str:
        """What its setting says."""


@dataclass(frozen=True)
class EngineStatus:
    """One line of `marketdata engines status`; external: its address is set in the environment."""

    name: str
    state: Literal["running", "dead", "stopped", "external"]
    pid: int | None
    address: str | None
    version: str
    log: Path | None


def up(
    settings: Settings,
    names: Iterable[str] = ("kafka", "postgres"),
    say: Say = lambda _: None,
    host: str = LOOPBACK,
) -> Settings:
    """Start what does not run yet, and wait until it answers.

    Args:
        settings: they say where everything lies (`marketdata_home`).
        names: `kafka`, `postgres`, `airflow`; what has its address in the environment is not started.
        say: told what is being done, from several threads.
        host: address of this machine that Kafka and PostgreSQL listen on, if not the loopback interface's.

    Returns:
        the settings with the addresses of what now runs.

    Raises:
        UsageError: no engine has such a name.
        UnavailableError: an engine could not be started; the others were, and its data is untouched.
        TryLaterError: somebody else has been starting or stopping engines for minutes.
    """
    file = endpoint_file()
    wanted = [engine for engine in _engines(settings, names, host) if not _external(engine)]
    known = endpoints.read(file)
    if not all(_runs(engine, known) for engine in wanted) or known.values.get("lake_uri") != _lake(settings):
        with _alone(file, say):
            known = _Starter(file, settings, say).start(wanted)
        settings_module.load.cache_clear()
    return _with_addresses(settings, known)


def down(settings: Settings, names: Iterable[str] | None = None, say: Say = lambda _: None) -> list[str]:
    """Stop engines, politely first; their data stays.

    Returns:
        the names of those that ran.
    """
    file = endpoint_file()
    if not file.parent.exists():
        return []
    stopped = []
    with _alone(file, say):
        engines = _engines(settings, names)
        known = endpoints.read(file)
        for wave in (
            [engine for engine in engines if engine.needs],
            [engine for engine in engines if not engine.needs],
        ):
            with ThreadPoolExecutor(max_workers=len(engines)) as pool:
                ran = pool.map(lambda engine: _end(engine, known), wave)
            stopped += [engine.name for engine, did in zip(wave, ran, strict=True) if did]
        for engine in engines:
            if record := known.engines.get(engine.name):
                known = Endpoints(
                    {name: value for name, value in known.values.items() if name != engine.field},
                    {**known.engines, engine.name: replace(record, pid=None, created=None)},
                )
        endpoints.write(file, known)
    settings_module.load.cache_clear()
    return stopped


def status(settings: Settings) -> list[EngineStatus]:
    """Every engine, whether it runs or not."""
    known = endpoints.read(endpoint_file())
    return [_status(engine, known) for engine in _engines(settings, None)]


def _end(engine: Engine, known: Endpoints) -> bool:
    record = known.engines.get(engine.name)
    return stop(record.process if record else None, engine.folder, engine.stop_signals)


def _status(engine: Engine, known: Endpoints) -> EngineStatus:
    record = known.engines.get(engine.name)
    if _external(engine):
        return EngineStatus(engine.name, "external", None, None, "", None)
    if record is None or record.pid is None:
        return EngineStatus(engine.name, "stopped", None, None, engine.version, None)
    state: Literal["running", "dead"] = "running" if _runs(engine, known) else "dead"
    return EngineStatus(engine.name, state, record.pid, record.address, record.version, Path(record.log))


class _Starter:
    """Starts engines side by side; keeps the endpoint file true while it does."""

    def __init__(self, file: Path, settings: Settings, say: Say) -> None:
        self.file = file
        self.settings = settings
        self.say = say
        self.writing = threading.Lock()
        self.started: dict[str, Future[None]] = {}

    def start(self, engines: Sequence[Engine]) -> Endpoints:
        self._write(lambda known: replace(known, values={**known.values, "lake_uri": _lake(self.settings)}))
        idle = [engine for engine in engines if self._make_room(engine)]
        self.started = {engine.name: Future() for engine in idle}
        for engine in idle:
            # Daemons, so that Ctrl-C ends the caller at once; what they leave behind is cleaned up by the next start.
            threading.Thread(target=self._attempt, args=(engine,), name=engine.name, daemon=True).start()
        errors = [error for future in self.started.values() if (error := future.exception())]
        if errors:
            raise errors[0]
        return endpoints.read(self.file)

    def _make_room(self, engine: Engine) -> bool:
        """Unless it runs: end what is left of it, and give it its address, that of the last time if it can be had."""
        known = endpoints.read(self.file)
        if _runs(engine, known):
            return False
        engine.folder.mkdir(parents=True, exist_ok=True)
        before = known.engines.get(engine.name)
        stop(before.process if before else None, engine.folder, engine.stop_signals)
        if engine.at == engine.name:
            address = f"{engine.host}:{free_port(port_of(before.address) if before else None, engine.host)}"
        else:
            address = known.engines[engine.at].address
        record = EngineRecord(address, engine.version, str(engine.folder / f"{engine.name}.log"))
        self._write(lambda known: _with_record(known, engine, record))
        return True

    def _attempt(self, engine: Engine) -> None:
        try:
            for name in engine.needs:
                if name in self.started:
                    self.started[name].result()
            self._run(engine)
        except OSError as error:
            wrapped = UnavailableError(
                f"{engine.name} could not be started: {error}", "see that the disk has room and the folder is yours"
            )
            self.started[engine.name].set_exception(wrapped)
        except BaseException as error:
            self.started[engine.name].set_exception(error)
        else:
            self.started[engine.name].set_result(None)

    def _run(self, engine: Engine) -> None:
        record = endpoints.read(self.file).engines[engine.name]
        self.say(f"starting {engine.name} {engine.version}")
        command = engine.command(port_of(record.address), self.say)
        log = Path(record.log)
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        process = launch(command, engine.environment(), log, engine.user)
        self._write(
            lambda known: _with_record(known, engine, replace(record, pid=process.pid, created=process.created))
        )
        try:
            wait_until(
                lambda: engine.ready(record.address),
                process,
                seconds=engine.seconds_to_start,
                what=engine.name,
                log=log,
            )
        except BaseException:
            stop(process, engine.folder, ())
            raise
        if engine.field:
            value = {engine.field: engine.value(record.address)}
            self._write(lambda known: replace(known, values={**known.values, **value}))
        self.say(f"{engine.name} answers on {record.address}")

    def _write(self, change: Callable[[Endpoints], Endpoints]) -> None:
        with self.writing:
            endpoints.write(self.file, change(endpoints.read(self.file)))


def _with_record(known: Endpoints, engine: Engine, record: EngineRecord) -> Endpoints:
    """A new record of an engine that does not answer yet: nobody is told an address."""
    values = {name: value for name, value in known.values.items() if name != engine.field}
    return Endpoints(values, {**known.engines, engine.name: record})


def _engines(settings: Settings, names: Iterable[str] | None, host: str = LOOPBACK) -> list[Engine]:
    """The engines of these names, or all; each comes after what it needs."""
    folder = settings.marketdata_home.resolve() / "engines"

    def current() -> Settings:
        return _with_addresses(settings, endpoints.read(endpoint_file()))

    known: dict[str, Sequence[Engine]] = {
        "kafka": [Kafka(folder / "kafka", host)],
        "postgres": [Postgres(folder / "postgres", host)],
        "airflow": airflow.processes(folder / "airflow", current),
    }
    wanted = list(known) if names is None else list(names)
    if unknown := set(wanted) - set(known):
        raise UsageError(f"no engine is called {', '.join(sorted(unknown))}", f"there are {', '.join(known)}")
    return [engine for name, engines in known.items() if name in wanted for engine in engines]


def _external(engine: Engine) -> bool:
    return any(name.lower() == engine.field and value for name, value in os.environ.items())


def _runs(engine: Engine, known: Endpoints) -> bool:
    """Whether its process is alive, where it should be, and has answered once."""
    record = known.engines.get(engine.name)
    if record is None or record.process is None or record.process.find() is None:
        return False
    if engine.at != engine.name:
        return record.address == known.engines[engine.at].address
    return (engine.field is None or engine.field in known.values) and listens(record.address)


def _lake(settings: Settings) -> str:
    return (settings.marketdata_home.resolve() / "lake").as_uri()


def _with_addresses(settings: Settings, known: Endpoints) -> Settings:
    """The settings with the addresses of the file, where the environment has none; a lake that is set stays."""
    environment = {name.lower() for name, value in os.environ.items() if value}
    fields: dict[str, object] = {
        name: SecretStr(value) if name == "postgres_dsn" else value
        for name, value in known.values.items()
        if name in Settings.model_fields and name not in environment
    }
    return settings.model_copy(
        update=fields if settings.lake_uri is None else {**fields, "lake_uri": settings.lake_uri}
    )


@contextmanager
def _alone(file: Path, say: Say) -> Iterator[None]:
    """Hold the lock under which engines are started and stopped; the system lets it go when its holder dies."""
    from filelock import FileLock, Timeout

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.parent / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("waiting for another start or stop of the engines")
            lock.acquire(timeout=SECONDS_TO_WAIT_FOR_OTHERS)
    except Timeout:
        raise TryLaterError(
            f"somebody else starts or stops the engines since {SECONDS_TO_WAIT_FOR_OTHERS} s; nothing was changed",
            f"see who holds {file.parent / 'lock'}",
        ) from None
    except OSError as error:
        raise UnavailableError(
            f"{file.parent} cannot be written: {error.strerror or error}; nothing was started",
            "set MARKETDATA_HOME to a folder of yours",
        ) from None
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"{file.parent} cannot be written: {error.strerror or error}; what was started or stopped is not recorded",
            "see that the disk has room, then repeat the command",
        ) from error
    finally:
        lock.release()
