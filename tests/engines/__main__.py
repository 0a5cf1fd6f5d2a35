"""`make engines-up` and `make engines-down`: the real engines of the tests, for people.

Three Kafka brokers, PostgreSQL, an S3-compatible store, Trino on both, and a schema registry. They belong to one keeper
process that runs detached; when it ends, however it does, they end. They begin empty and leave nothing but logs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator

from marketdata import engines
from marketdata.engines.process import ProcessId, environment_of, last_words, launch, stop
from marketdata.errors import MarketdataError, UnavailableError
from marketdata.settings import CHECKOUT, ENDPOINTS_VARIABLE, Settings
from tests.engines.kafka import brokers
from tests.engines.registry import registry
from tests.engines.s3proxy import s3proxy
from tests.engines.trino import Lake, trino

FOLDER = CHECKOUT / "build" / "real-engines"
ENVIRONMENT, KEEPER, LOG = (FOLDER / name for name in ("environment", "keeper.json", "keeper.log"))
DATA = FOLDER / "data"
_HOME = {"MARKETDATA_HOME": str(DATA), ENDPOINTS_VARIABLE: str(DATA / "engines" / "endpoints.json")}
SECRETS = ("POSTGRES_DSN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
START_SECONDS = 600.0
"""The first start downloads 0.8 GB."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engines", description=__doc__)
    parser.add_argument("what", choices=["up", "down", "keep"])
    what = parser.parse_args().what
    try:
        {"up": up, "down": down, "keep": keep}[what]()
    except MarketdataError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def up() -> None:
    """Start everything that does not run, wait until it answers, and say how to use it."""
    if (keeper := _keeper()) is None or keeper.find() is None:
        _end_postgres()
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        print("starting Kafka ×3, PostgreSQL, S3, Trino and the schema registry", flush=True)
        environment = {**environment_of(FOLDER), **_HOME, "PYTHONPATH": str(CHECKOUT)}
        keeper = launch([sys.executable, "-m", "tests.engines", "keep"], environment, LOG, None)
        KEEPER.write_text(json.dumps({"pid": keeper.pid, "created": keeper.created}))
    deadline = time.monotonic() + START_SECONDS
    while not ENVIRONMENT.exists():
        if keeper.find() is None or time.monotonic() > deadline:
            raise UnavailableError(f"the engines could not be started: {last_words(LOG)}", f"the whole log: {LOG}")
        time.sleep(0.1)
    for line in ENVIRONMENT.read_text().splitlines():
        name = line.partition("=")[0]
        print(f"{name}=…" if name in SECRETS else line)
    here = shlex.quote(str(ENVIRONMENT.relative_to(CHECKOUT)))
    print(f"\nuse them:  (set -a; . {here}; make run)\nend them:  make engines-down")


def down() -> None:
    """End everything that `up` started."""
    keeper = _keeper()
    ran = stop(keeper, FOLDER, [(signal.SIGTERM, 60.0)])
    ENVIRONMENT.unlink(missing_ok=True)
    _end_postgres()
    shutil.rmtree(DATA, ignore_errors=True)
    print("stopped" if ran else "nothing was running")


def keep() -> None:
    """Run the engines until SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with _running() as environment:
        content = "".join(f"{name}={shlex.quote(value)}\n" for name, value in environment.items())
        temporary = ENVIRONMENT.with_suffix(".new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(content)
        temporary.replace(ENVIRONMENT)
        ended.wait()


@contextlib.contextmanager
def _running() -> Iterator[dict[str, str]]:
    """Everything, as environment variables."""
    with contextlib.ExitStack() as started:
        for name in ("s3", "kafka", "registry", "trino"):
            (DATA / name).mkdir(parents=True)
        started.callback(_end_postgres)
        postgres = engines.up(Settings(), ["postgres"]).require("postgres_dsn")
        store = started.enter_context(s3proxy(DATA / "s3"))
        lake = f"s3://{store.bucket}/lake"
        kafka = started.enter_context(brokers(DATA / "kafka"))
        schemas = started.enter_context(registry(DATA / "registry"))
        host, port = started.enter_context(trino(postgres, {"iceberg": Lake(lake, store)}, DATA / "trino" / "server"))
        yield {
            "KAFKA_BROKERS": kafka.addresses,
            "SCHEMA_REGISTRY_URL": schemas,
            "POSTGRES_DSN": postgres,
            "TRINO_HOST": host,
            "TRINO_PORT": str(port),
            "LAKE_URI": lake,
            **{name.upper(): value for name, value in store.settings().items()},
        }


def _end_postgres() -> None:
    """PostgreSQL is started as on a laptop, and survives a keeper that was killed."""
    if DATA.exists():
        os.environ |= _HOME
        engines.down(Settings())


def _keeper() -> ProcessId | None:
    try:
        return ProcessId(**json.loads(KEEPER.read_text()))
    except (OSError, ValueError, TypeError):
        return None


if __name__ == "__main__":
    sys.exit(main())
