"""Trino and the catalog's PostgreSQL are killed in the middle of a load; what then, and how soon.

One seed a fault in the suite of real engines; ``FAULT_SEEDS=5`` runs five and more. What was measured is written to
``build/faults/``.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from marketdata import engines
from marketdata.batches import Batch
from marketdata.datasets import COMMODITY_PRICES
from marketdata.engines.process import end, free_port
from marketdata.errors import TryLaterError, UnavailableError
from marketdata.lakehouse import Loaded, open_lakehouse
from marketdata.lakehouse import trino as through_trino
from marketdata.lakehouse.embedded import EmbeddedLakehouse
from marketdata.lakehouse.trino import TrinoLakehouse
from marketdata.settings import ENDPOINTS_VARIABLE, Settings
from tests.contract.prices import EARLY, LATE, batch_of, price
from tests.contract.test_lakehouse import by_record, contents, counts, new_schema
from tests.engines.trino import Lake
from tests.engines.trino import trino as run_trino
from tests.faults import figures
from tests.waiting import until

pytestmark = pytest.mark.engines

SEEDS = range(int(os.environ.get("FAULT_SEEDS", "1")))
LIMIT_SECONDS = 120.0
"""R5.9: from the kill until the batch is in the table, the start of what was killed included."""

ROWS = 3000


class Postgres:
    """The embedded PostgreSQL under a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.start()

    def start(self) -> None:
        with self._mine():
            self.settings = engines.up(Settings(), ["postgres"])

    def kill(self) -> None:
        with self._mine():
            (postgres,) = [engine for engine in engines.status(self.settings) if engine.name == "postgres"]
        assert postgres.pid
        server = psutil.Process(postgres.pid)
        end([server, *server.children(recursive=True)])

    def stop(self) -> None:
        with self._mine():
            engines.down(self.settings)

    def _mine(self) -> Any:
        mine = pytest.MonkeyPatch()
        mine.setenv("MARKETDATA_HOME", str(self.home))
        mine.setenv(ENDPOINTS_VARIABLE, str(self.home / "engines" / "endpoints.json"))
        for name in ("POSTGRES_DSN", "LAKE_URI"):
            mine.delenv(name, raising=False)
        leaving = ExitStack()
        leaving.callback(mine.undo)
        return leaving


class Trino:
    """A Trino that is killed and started again on its port."""

    def __init__(self, postgres: Postgres, folder: Path) -> None:
        self._postgres = postgres
        self._folder = folder
        self._starts = 0
        self.port = free_port()
        self.start()

    def start(self) -> None:
        self._starts += 1
        self._running = ExitStack()
        settings = self._postgres.settings
        lakes = {"iceberg": Lake(settings.require("lake_uri"))}
        folder = self._folder / f"server-{self._starts}"
        self._running.enter_context(run_trino(settings.require("postgres_dsn"), lakes, folder, self.port))
        (self._pid,) = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.laddr[1:] == (self.port,) and connection.status == psutil.CONN_LISTEN
        }

    def kill(self) -> None:
        assert self._pid
        os.kill(self._pid, signal.SIGKILL)
        self._running.close()

    def stop(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def postgres(new_home: Callable[[str], Path]) -> Iterator[Postgres]:
    server = Postgres(new_home("catalog"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def trino(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trino]:
    server = Trino(postgres, tmp_path_factory.mktemp("trino"))
    yield server
    server.stop()


@pytest.fixture
def embedded_settings(postgres: Postgres, settings_for: Callable[..., Settings]) -> Settings:
    known, schema = postgres.settings, new_schema()
    lake_uri = f"{known.require('lake_uri')}/{schema}"  # what is staged there is this test's own
    return settings_for(postgres_dsn=known.require("postgres_dsn"), lake_uri=lake_uri, trino_schema=schema)


@pytest.fixture
def settings(embedded_settings: Settings, trino: Trino) -> Settings:
    return embedded_settings.model_copy(update={"trino_host": "127.0.0.1", "trino_port": trino.port})


T = TypeVar("T")


def insisting(work: Callable[[], T]) -> T:
    """Do work as often as it takes, as a scheduler's retries would."""
    started = time.monotonic()
    while True:
        try:
            return work()
        except (UnavailableError, TryLaterError):
            if time.monotonic() - started > LIMIT_SECONDS:
                raise


class Drill:
    """A table with a batch, a second batch that revises half of it and adds as much, and somebody who never looks away.

    The reader is pyiceberg's, which reads on while Trino is dead.
    """

    def __init__(self, settings: Settings, chance: random.Random) -> None:
        self.settings = settings
        first = datetime(2024, 1, 1, tzinfo=UTC)

        def rows(days: range, batch: str, as_of: datetime) -> list[dict[str, Any]]:
            return [
                price(first + timedelta(hours=hour), f"{chance.randrange(1, 10**12)}E-6", batch=batch, as_of=as_of)
                for hour in days
            ]

        self.before = rows(range(ROWS), "b1", EARLY)
        self.rows = rows(range(ROWS // 2, ROWS + ROWS // 2), "b2", LATE)
        self.after = self.before[: ROWS // 2] + self.rows
        started = time.monotonic()
        open_lakehouse(settings).load(COMMODITY_PRICES, batch_of(settings, self.before, parts=2))
        self.usual_seconds = time.monotonic() - started
        self.batch = batch_of(settings, self.rows, parts=2)
        self.tries = 0
        self.seen: set[tuple[int, Decimal]] = set()
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(2)
        self._reading = self._pool.submit(self._read)
        until("a first look", lambda: self.seen or self._reading.done())

    def load(self) -> Loaded:
        def once() -> Loaded:
            self.tries += 1
            return open_lakehouse(self.settings).load(COMMODITY_PRICES, self.batch)

        return insisting(once)

    def during(self, killed: threading.Event, start: Callable[[], None]) -> float:
        """Load, start again what is killed meanwhile, and return the seconds from the kill until it was loaded."""
        return during(self._pool.submit(self.load), killed, start)

    def verify(self) -> None:
        """The table has the batch once, to the last digit; readers saw it whole or not at all."""
        self.end()
        self._reading.result()
        lakehouse = open_lakehouse(self.settings)
        assert insisting(lambda: contents(lakehouse)) == by_record(self.after)
        assert self.seen <= {self._sums(self.before), self._sums(self.after)}
        assert self._sums(self.before) in self.seen
        again = insisting(lambda: lakehouse.load(COMMODITY_PRICES, self.batch))
        assert counts(again) == (0, 0, ROWS, 0, 0)

    def end(self) -> None:
        self._ended.set()
        self._pool.shutdown()

    @staticmethod
    def _sums(rows: list[dict[str, Any]]) -> tuple[int, Decimal]:
        return len(rows), sum((row["price"] for row in rows), Decimal(0))

    def _read(self) -> None:
        reader = EmbeddedLakehouse(self.settings.model_copy(update={"trino_host": None}))
        while not self._ended.is_set():
            try:
                (row,) = reader.query("SELECT count(*) AS n, sum(price) AS total FROM commodity_prices").to_pylist()
            except UnavailableError:
                continue
            self.seen.add((row["n"], row["total"]))


@pytest.fixture
def drill_on() -> Iterator[Callable[[Settings, random.Random], Drill]]:
    """Makes drills, which end with the test."""
    made: list[Drill] = []

    def make(settings: Settings, chance: random.Random) -> Drill:
        made.append(Drill(settings, chance))
        return made[-1]

    yield make
    for drill in made:
        drill.end()


DrillOn = Callable[[Settings, random.Random], Drill]


def during(work: Future[Any], killed: threading.Event, start: Callable[[], None]) -> float:
    """Start again what is killed while somebody works; the seconds from the kill until the work was done."""
    until("the kill", killed.is_set)
    began = time.monotonic()
    start()
    work.result(timeout=2 * LIMIT_SECONDS)
    return time.monotonic() - began


def killing(seconds: float, kill: Callable[[], None], killed: threading.Event) -> threading.Timer:
    """Kills so many seconds after it is started."""

    def strike() -> None:
        kill()
        killed.set()

    return threading.Timer(seconds, strike)


def when(
    monkeypatch: pytest.MonkeyPatch, words: str, chance: random.Random, seconds: float, kill: Callable[[], None]
) -> threading.Event:
    """Kill once, at a moment while Trino runs the first statement with these words."""
    killed, execute = threading.Event(), TrinoLakehouse._execute
    armed = [killing(chance.random() * seconds, kill, killed)]

    def watched(self: TrinoLakehouse, statement: str, *rest: Any, **more: Any) -> Any:
        if words in statement and armed:
            armed.pop().start()
        return execute(self, statement, *rest, **more)

    monkeypatch.setattr(TrinoLakehouse, "_execute", watched)
    return killed


def usual(monkeypatch: pytest.MonkeyPatch, words: str, work: Callable[[], Drill]) -> tuple[Drill, float]:
    """Do work, and say how long Trino's statement with these words takes in it."""
    took, execute = [0.1], TrinoLakehouse._execute

    def timed(self: TrinoLakehouse, statement: str, *rest: Any, **more: Any) -> Any:
        started = time.monotonic()
        try:
            return execute(self, statement, *rest, **more)
        finally:
            if words in statement:
                took.append(time.monotonic() - started)

    with monkeypatch.context() as patch:
        patch.setattr(TrinoLakehouse, "_execute", timed)
        return work(), took[-1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("words", ["EXECUTE add_files", "MERGE INTO"])
def test_trino_is_killed_in_the_middle_of_a_load(
    words: str, seed: int, settings: Settings, trino: Trino, drill_on: DrillOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(f"{words} {seed}")  # noqa: S311
    drill, seconds = usual(monkeypatch, words, lambda: drill_on(settings, chance))
    killed = when(monkeypatch, words, chance, seconds, trino.kill)
    recovered = drill.during(killed, trino.start)
    drill.verify()
    monkeypatch.setattr(through_trino, "STALE_AFTER", timedelta(0))  # the killed load's own age is seconds
    open_lakehouse(settings).maintain(COMMODITY_PRICES, timedelta(days=30))
    assert staged(settings) == []
    statement = words.split()[-1 if "EXECUTE" in words else 0]
    figures.record(
        f"Trino is killed in {statement}", seed, recovered_seconds=recovered, apart_seconds=0.0, batches=2,
        tries=drill.tries,
    )  # fmt: skip
    assert recovered < LIMIT_SECONDS


@pytest.mark.parametrize("seed", SEEDS)
def test_the_catalog_is_killed_while_trino_merges(
    seed: int,
    settings: Settings,
    postgres: Postgres,
    trino: Trino,
    drill_on: DrillOn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(f"catalog {seed}")  # noqa: S311
    drill, seconds = usual(monkeypatch, "MERGE INTO", lambda: drill_on(settings, chance))
    killed = when(monkeypatch, "MERGE INTO", chance, seconds, postgres.kill)
    recovered = drill.during(killed, postgres.start)
    drill.verify()
    # Trino's pool still hands out connections of then, each of which fails once: the next test's statements would.
    trino.kill()
    trino.start()
    figures.record(
        "PostgreSQL is killed while Trino loads", seed, recovered_seconds=recovered, apart_seconds=0.0, batches=2,
        tries=drill.tries,
    )  # fmt: skip
    assert recovered < LIMIT_SECONDS


@pytest.mark.parametrize("seed", SEEDS)
def test_the_catalog_is_killed_while_pyiceberg_loads(
    seed: int, embedded_settings: Settings, postgres: Postgres, drill_on: DrillOn
) -> None:
    chance = random.Random(f"embedded catalog {seed}")  # noqa: S311
    drill = drill_on(embedded_settings, chance)
    killed = threading.Event()
    killing(chance.random() * drill.usual_seconds, postgres.kill, killed).start()
    recovered = drill.during(killed, postgres.start)
    drill.verify()
    figures.record(
        "PostgreSQL is killed while pyiceberg loads", seed, recovered_seconds=recovered, apart_seconds=0.0, batches=2,
        tries=drill.tries,
    )  # fmt: skip
    assert recovered < LIMIT_SECONDS


@pytest.mark.parametrize("seed", SEEDS)
def test_trino_is_killed_while_it_merges_files(
    seed: int, settings: Settings, trino: Trino, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(f"optimize {seed}")  # noqa: S311
    rows = [price(datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=hour)) for hour in range(1200)]
    for number in range(6):
        batch = batch_of(settings, [{**row, "batch_id": f"b{number}"} for row in rows[number::6]])
        # PostgreSQL was killed beside Trino, whose pool hands out connections of then, each of which fails once.
        insisting(lambda batch=batch: open_lakehouse(settings).load(COMMODITY_PRICES, batch))
    before = contents(open_lakehouse(settings))
    killed = when(monkeypatch, "EXECUTE optimize", chance, 1.0, trino.kill)

    lakehouse = open_lakehouse(settings)
    with ThreadPoolExecutor(1) as pool:
        maintaining = pool.submit(insisting, lambda: lakehouse.maintain(COMMODITY_PRICES, timedelta(0)))
        recovered = during(maintaining, killed, trino.start)
    assert contents(lakehouse) == before
    done = lakehouse.maintain(COMMODITY_PRICES, timedelta(0))
    assert done
    assert (done.files_before, done.files_after) == (2, 2)
    assert contents(lakehouse) == before
    figures.record(
        "Trino is killed in optimize", seed, recovered_seconds=recovered, apart_seconds=0.0, batches=6, tries=1
    )
    assert recovered < LIMIT_SECONDS


def test_of_two_merges_of_one_key_the_later_decides_anew(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    lakehouse = open_lakehouse(settings)
    lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price(value="1")]))
    revisions = [price(value=str(n), as_of=LATE + timedelta(hours=n), batch=f"r{n}") for n in (2, 3)]
    batches: list[Batch] = [batch_of(settings, [row]) for row in revisions]
    together, execute, merges = threading.Barrier(2), TrinoLakehouse._execute, []

    def at_once(self: TrinoLakehouse, statement: str, *rest: Any, **more: Any) -> Any:
        if statement.startswith("MERGE"):
            merges.append(statement)
            if len(merges) <= 2:
                together.wait(timeout=60)
        return execute(self, statement, *rest, **more)

    monkeypatch.setattr(TrinoLakehouse, "_execute", at_once)
    with ThreadPoolExecutor(2) as pool:
        loads = list(pool.map(lambda batch: open_lakehouse(settings).load(COMMODITY_PRICES, batch), batches))

    assert contents(lakehouse) == by_record([revisions[1]])
    assert [sum(counts(loaded)) for loaded in loads] == [1, 1]
    assert loads[1].updated == 1
    assert (loads[0].updated, loads[0].superseded) in {(1, 0), (0, 1)}


def staged(settings: Settings) -> list[str]:
    folder = Path(settings.require("lake_uri").removeprefix("file://")) / "staging"
    tables = open_lakehouse(settings).query(f"SHOW TABLES FROM {settings.trino_schema}_staging")
    return [*(str(file) for file in folder.rglob("*") if file.is_file()), *map(str, tables["Table"].to_pylist())]
