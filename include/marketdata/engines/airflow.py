"""Airflow on this machine: three processes on the embedded PostgreSQL, and the environment every run here shares."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from marketdata.engines import endpoints, secrets
from marketdata.engines.process import LOOPBACK, environment_of, one_line, port_of
from marketdata.errors import UnavailableError
from marketdata.settings import CHECKOUT, ENDPOINTS_VARIABLE, Settings, endpoint_file

API_SERVER = "airflow-api-server"
POOLS = CHECKOUT / "include" / "marketdata" / "orchestration" / "pools.json"


def airflow_environment(settings: Settings) -> dict[str, str]:
    """The variables that make any Airflow command work on the embedded installation.

    Raises:
        UsageError: there is no PostgreSQL for its metadata.
    """
    home = settings.marketdata_home.resolve() / "airflow"
    metadata = (
        urlsplit(settings.require("postgres_dsn"))._replace(scheme="postgresql+psycopg", path="/airflow").geturl()
    )
    variables = {
        ENDPOINTS_VARIABLE: str(endpoint_file().resolve()),
        "MARKETDATA_HOME": str(home.parent),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(CHECKOUT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(CHECKOUT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",  # as many workers are forked at the start; the default is 32
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
        "AIRFLOW__CORE__FERNET_KEY": secrets.kept(home / "fernet-key") + "=",
        # Whoever reaches the UI is an administrator: it listens on the loopback interface alone.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata,
        # Said twice, or Airflow asks for a second driver for its asynchronous half.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": metadata,
        "AIRFLOW__API__HOST": LOOPBACK,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": secrets.kept(home / "secret-key"),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.kept(home / "jwt-secret", size=64),
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "30",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "GX_ANALYTICS_ENABLED": "False",
    }
    if server := endpoints.read(endpoint_file()).engines.get(API_SERVER):
        variables |= {
            "AIRFLOW__API__PORT": str(port_of(server.address)),
            "AIRFLOW__API__BASE_URL": f"http://{server.address}",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{server.address}/execution/",
        }
    return variables


def migrate_airflow(settings: Settings, say: Callable[[str], None] = lambda _: None) -> None:
    """Bring Airflow's metadata to this version, and its pools to those of `pools.json`; at once if nothing has changed.

    Raises:
        UnavailableError: Airflow could not do it.
    """
    from filelock import FileLock

    home = settings.marketdata_home.resolve() / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    stamp = home / "migrated.json"
    with FileLock(home / "migrate.lock"):
        pools = POOLS.read_bytes() if POOLS.exists() else b""
        target = {"airflow": version("apache-airflow"), "pools": hashlib.sha256(pools).hexdigest()}
        revision = _revision(settings)
        done = json.loads(stamp.read_text()) if stamp.exists() else {}
        if revision is not None and done == {**target, "revision": revision}:
            return
        say("preparing Airflow's metadata")
        _airflow(settings, "db", "migrate")
        if pools:
            _airflow(settings, "pools", "import", str(POOLS))
        stamp.write_text(json.dumps({**target, "revision": _revision(settings)}))


def _revision(settings: Settings) -> str | None:
    import psycopg

    metadata = urlsplit(settings.require("postgres_dsn"))._replace(path="/airflow").geturl()
    try:
        with psycopg.connect(metadata, connect_timeout=5) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except psycopg.errors.UndefinedTable:
        return None
    except psycopg.OperationalError as error:
        raise UnavailableError(
            f"database `airflow` cannot be reached: {str(error).splitlines()[0]}",
            "the server of POSTGRES_DSN needs a database named airflow that its user owns",
        ) from None
    return str(row[0]) if row else None


def _airflow(settings: Settings, *arguments: str) -> None:
    home = settings.marketdata_home.resolve() / "airflow"
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *arguments], env={**environment_of(home), **airflow_environment(settings)},
        cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        log = home / f"{'-'.join(arguments[:2])}.log"
        log.write_text(done.stdout + done.stderr)
        raise UnavailableError(
            f"airflow {' '.join(arguments)} failed: {one_line(done.stderr or done.stdout)}", f"the whole output: {log}"
        )


class AirflowProcess:
    """One of Airflow's processes; they share the API server's address, through which tasks report."""

    at = API_SERVER
    host = LOOPBACK
    field: str | None = None
    needs: tuple[str, ...] = ("postgres",)
    seconds_to_start = 180.0
    # The scheduler lets running tasks end on the first SIGTERM, and no longer on the second.
    stop_signals = ((signal.SIGTERM, 15.0), (signal.SIGTERM, 5.0))
    user: str | None = None

    def __init__(self, folder: Path, name: str, arguments: tuple[str, ...], settings: Callable[[], Settings]) -> None:
        self.folder = folder
        self.name = name
        self.arguments = arguments
        self.settings = settings
        self.version = version("apache-airflow")
        self._since = datetime.now(UTC)

    def command(self, port: int, say: Callable[[str], None]) -> list[str]:  # noqa: ARG002 - the environment says it
        """What to run; migrates the metadata before."""
        migrate_airflow(self.settings(), say)
        self._since = datetime.now(UTC)
        return [sys.executable, "-m", "airflow", *self.arguments]

    def environment(self) -> dict[str, str]:
        # Without SPT_NOENV, Airflow's process titles overwrite the environment its orphans are found by.
        return {**environment_of(self.folder), **airflow_environment(self.settings()), "SPT_NOENV": "1"}

    def ready(self, address: str) -> bool:
        """The API server: the UI answers. The others: it has heard of them since they were started."""
        try:
            if self.name == API_SERVER:
                with urllib.request.urlopen(f"http://{address}/", timeout=5) as page:
                    return bool(page.status == 200)
            part = self.name.removeprefix("airflow-").replace("-", "_")
            with urllib.request.urlopen(f"http://{address}/api/v2/monitor/health", timeout=5) as answer:
                health: dict[str, Any] = json.load(answer)[part]
            heard = health[f"latest_{part}_heartbeat"]
            return heard is not None and datetime.fromisoformat(heard) >= self._since
        except OSError:
            return False

    def value(self, address: str) -> str:
        return address


def processes(folder: Path, settings: Callable[[], Settings]) -> list[AirflowProcess]:
    """Airflow's processes; `settings` gives the current ones, once PostgreSQL runs."""
    return [
        AirflowProcess(folder / name, f"airflow-{name}", arguments, settings)
        for name, arguments in {
            "api-server": ("api-server",),
            # Task logs are read from the disk; a log server would only open one more port.
            "scheduler": ("scheduler", "--skip-serve-logs"),
            "dag-processor": ("dag-processor",),
        }.items()
    ]
