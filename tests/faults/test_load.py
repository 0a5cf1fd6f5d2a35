"""A load that is killed at any moment, and a catalog that is: what stands in the table, and what the next try does."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from marketdata import engines
from marketdata.datasets import COMMODITY_PRICES
from marketdata.engines.process import end
from marketdata.errors import UnavailableError
from marketdata.lakehouse import open_lakehouse
from marketdata.settings import ENDPOINTS_VARIABLE, Settings
from tests.contract.prices import LATE, batch_of, price, table
from tests.contract.test_lakehouse import by_record, contents, counts, new_schema
from tests.faults.children import environment

LOAD_AND_DIE = """
import os, signal, sys
from datetime import timedelta
from pyiceberg.catalog.sql import SqlCatalog
from marketdata.batches import Lake
from marketdata.datasets import COMMODITY_PRICES
from marketdata.lakehouse import embedded, open_lakehouse
from marketdata.settings import Settings

step, batch = sys.argv[1:]
commit_table, commits = SqlCatalog.commit_table, []

def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def then_die(original):
    def call(*args, **kwargs):
        original(*args, **kwargs)
        die()
    return call

if step == "data files written":
    embedded._Write.commit = die
elif step == "manifests written":
    SqlCatalog.commit_table = die
elif step == "metadata written":
    SqlCatalog._write_metadata = staticmethod(then_die(SqlCatalog._write_metadata))
elif step == "committed":
    SqlCatalog.commit_table = then_die(SqlCatalog.commit_table)
elif step == "snapshots expired":
    def second_commit(*args, **kwargs):
        commits.append(commit_table(*args, **kwargs))
        if len(commits) == 2:
            die()
        return commits[-1]
    SqlCatalog.commit_table = second_commit
elif step == "files listed":
    embedded.sweep = die
settings = Settings()
lakehouse = open_lakehouse(settings)
if batch:
    lakehouse.load(COMMODITY_PRICES, Lake(settings).open(batch))
else:
    lakehouse.maintain(COMMODITY_PRICES, timedelta(0))
"""


def child(settings: Settings, step: str, batch_uri: str) -> int:
    return subprocess.run(
        [sys.executable, "-c", LOAD_AND_DIE, step, batch_uri],
        env=environment(settings),
        timeout=60,
        check=False,
    ).returncode


@pytest.mark.parametrize("step", ["data files written", "manifests written", "metadata written", "committed"])
def test_a_killed_load_is_wholly_there_or_not_at_all_and_the_next_try_completes_it(
    step: str, embedded: Settings, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(postgres_dsn=embedded.require("postgres_dsn"), trino_schema=new_schema())
    lakehouse = open_lakehouse(settings)
    old = [price("2024-01-02"), price("2024-01-03"), price("2024-02-01")]
    new = [price("2024-01-03", "71", as_of=LATE, batch="b2"), price("1833-01-31", "2", as_of=LATE, batch="b2")]
    lakehouse.load(COMMODITY_PRICES, batch_of(settings, old))
    batch = batch_of(settings, new)
    before, after = by_record(table(old)), by_record(table([old[0], old[2], *new]))

    assert child(settings, step, batch.uri) == -signal.SIGKILL
    assert contents(lakehouse) == (after if step == "committed" else before)

    loaded = lakehouse.load(COMMODITY_PRICES, batch)
    assert counts(loaded) == ((0, 0, 2, 0, 0) if step == "committed" else (1, 1, 0, 0, 0))
    assert loaded.from_this_batch == 2
    assert contents(lakehouse) == after
    assert len(lakehouse.history(COMMODITY_PRICES)) == 2


@pytest.mark.parametrize(
    "step",
    ["data files written", "manifests written", "metadata written", "committed", "snapshots expired", "files listed"],
)
def test_killed_maintenance_leaves_the_rows_and_the_next_one_completes_it(
    step: str, embedded: Settings, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(postgres_dsn=embedded.require("postgres_dsn"), trino_schema=new_schema())
    lakehouse = open_lakehouse(settings)
    for day in range(1, 5):
        rows = [price(f"2024-{month:02}-{day:02}", batch=f"b{day}") for month in (1, 2)]
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, rows))
    before = contents(lakehouse)
    assert len(before) == 8

    assert child(settings, step, "") == -signal.SIGKILL
    assert contents(lakehouse) == before
    lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price("2024-01-09", batch="b9")]))
    done = lakehouse.maintain(COMMODITY_PRICES, timedelta(0))
    assert done
    assert done.files_after == 2
    assert {row: contents(lakehouse)[row] for row in before} == before
    assert len(contents(lakehouse)) == 9
    assert len(lakehouse.history(COMMODITY_PRICES)) == 1


def test_a_dead_catalog_is_named_and_the_load_completes_when_it_is_back(
    new_home: Callable[[str], Path], settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_for()  # clears the environment
    home = new_home("catalog")
    monkeypatch.setenv("MARKETDATA_HOME", str(home))
    monkeypatch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
    settings = engines.up(Settings(), ["postgres"])
    try:
        lakehouse = open_lakehouse(settings)
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price()]))
        batch = batch_of(settings, [price("2024-01-03", batch="b2")])
        (postgres,) = [engine for engine in engines.status(settings) if engine.name == "postgres"]
        assert postgres.pid
        server = psutil.Process(postgres.pid)
        end([server, *server.children(recursive=True)])  # sessions outlive the server for a moment

        for use in (
            lakehouse.check,
            lambda: lakehouse.load(COMMODITY_PRICES, batch),
            lambda: open_lakehouse(settings).query("SELECT * FROM commodity_prices"),
        ):
            with pytest.raises(UnavailableError, match=str(postgres.address)) as failure:
                use()
            assert settings.require("postgres_dsn").split(":")[2].split("@")[0] not in str(failure.value)

        again = open_lakehouse(engines.up(Settings(), ["postgres"]))
        first, second = again.load(COMMODITY_PRICES, batch), again.load(COMMODITY_PRICES, batch)
        assert counts(first) == (1, 0, 0, 0, 0)
        assert counts(second) == (0, 0, 1, 0, 0)
        assert second.snapshot_after == first.snapshot_after
        assert len(contents(again)) == 2
    finally:
        engines.down(Settings())
