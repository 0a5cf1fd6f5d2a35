"""PostgreSQL is killed, frozen, slow, full and loses its connections while batches are published and consumed."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest

from marketdata import engines
from marketdata.engines.process import end
from marketdata.operations.relay import Relay, relay
from marketdata.settings import ENDPOINTS_VARIABLE, Settings
from tests.contract.test_analytics import own_analytics, send
from tests.faults import disks
from tests.faults.disks import Disk, small_disk
from tests.faults.drill import PATIENCE, SEEDS, Members, Publisher, Reader, all_consume, counted, verify
from tests.waiting import until


@dataclass(frozen=True)
class Database:
    """A PostgreSQL of its own on a small disk, reached through a relay."""

    home: Path
    disk: Disk
    way: Relay
    dsn: str

    def start(self) -> None:
        with own_home(self.home):
            engines.up(Settings(), ["postgres"])

    def kill(self) -> None:
        """SIGKILL the server and all its sessions."""
        end(self._family())

    def signal(self, number: signal.Signals) -> None:
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def cut_connections(self) -> int:
        """End every session of the platform; how many there were."""
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.dsn, autocommit=True) as connection:
            ended = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            return ended.rowcount
        return 0

    def restore(self) -> None:
        self.way.delay = 0.0
        self.disk.free()
        self.signal(signal.SIGCONT)
        self.start()

    def _family(self) -> list[psutil.Process]:
        with own_home(self.home):
            (status,) = [engine for engine in engines.status(Settings()) if engine.name == "postgres"]
        if not status.pid or not psutil.pid_exists(status.pid):
            return []
        server = psutil.Process(status.pid)
        return [server, *server.children(recursive=True)]


@contextmanager
def own_home(home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARKETDATA_HOME", str(home))
        patch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
        patch.delenv("POSTGRES_DSN", raising=False)
        yield


@pytest.fixture(scope="module")
def database(new_home: Callable[[str], Path]) -> Iterator[Database]:
    home = new_home("database")
    with small_disk(home, 400) if disks.available() else nullcontext(Disk(home)) as disk:
        with own_home(home):
            dsn = engines.up(Settings(), ["postgres"]).require("postgres_dsn")
        at = urlsplit(dsn)
        try:
            with relay(at.hostname or "", at.port or 0) as way:
                yield Database(home, disk, way, dsn)
        finally:
            with own_home(home):
                engines.down(Settings())


@pytest.fixture
def settings(embedded: Settings, database: Database, settings_for: Callable[..., Settings]) -> Iterator[Settings]:
    at = urlsplit(database.dsn)
    through = database.dsn.replace(f"{at.hostname}:{at.port}", database.way.address)
    yield own_analytics(embedded.model_copy(update={"postgres_dsn": through}), settings_for)
    database.restore()


@dataclass(frozen=True)
class Drill:
    """What a fault is done to."""

    database: Database
    members: Members
    chance: random.Random
    published: Callable[[int], None]
    """Waits until so many more batches have been published."""


def kill_it(drill: Drill) -> None:
    drill.database.kill()
    drill.published(1)
    drill.database.start()


def freeze_it(drill: Drill) -> None:
    drill.database.signal(signal.SIGSTOP)
    drill.published(1)
    drill.database.signal(signal.SIGCONT)


def cut_its_connections(drill: Drill) -> None:
    ended = 0
    while ended < 20:
        ended += drill.database.cut_connections()
        drill.published(drill.chance.randrange(2))


def slow_it_down(drill: Drill) -> None:
    drill.database.way.delay = 0.1


def fill_its_disk(drill: Drill) -> None:
    drill.database.disk.fill()
    until("members give up, and say why", lambda: len(drill.members.exits) >= 3, PATIENCE)
    drill.database.disk.free()
    drill.database.start()


FAULTS: dict[str, Callable[[Drill], None]] = {
    "PostgreSQL is killed and started again": kill_it,
    "PostgreSQL is frozen for a while": freeze_it,
    "PostgreSQL's connections are cut": cut_its_connections,
    "PostgreSQL is slow": slow_it_down,
    "PostgreSQL's disk is full for a while": fill_its_disk,
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_or_repeated(fault: str, seed: int, settings: Settings, database: Database) -> None:
    if FAULTS[fault] is fill_its_disk and not disks.available():
        pytest.skip(disks.NEEDS)
    chance = random.Random(f"{fault} {seed}")  # noqa: S311
    poison = [b'{"poison": %d}' % number for number in range(20)]
    members = Members(settings)
    reader, publisher = Reader(settings), Publisher(settings, random.Random(seed))  # noqa: S311

    def published(more: int) -> None:
        wanted = len(publisher.committed) + more
        publisher.wait_for(lambda committed: len(committed) >= wanted)

    try:
        send(settings, *poison[:10])
        published(3)
        until("all three consume", lambda: all_consume(settings), PATIENCE)
        until("the first batches are counted", lambda: counted(settings, publisher.committed[2].offsets))
        FAULTS[fault](Drill(database, members, chance, published))
        send(settings, *poison[10:])
        published(1)
        publisher.end()
        committed = publisher.committed
        until("what came after is counted", lambda: counted(settings, committed[-1].offsets), PATIENCE)
        database.way.delay = 0.0
        verify(settings, committed, reader, poison)
    finally:
        database.restore()
        publisher.end()
        members.end()
    assert set(members.exits) <= {69, 75}
    if FAULTS[fault] is fill_its_disk:
        assert members.said("PostgreSQL does not answer: .*No space left on device")
