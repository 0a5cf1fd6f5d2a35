"""The suite of every lakehouse on real Trino and S3, and what one engine makes of the other's tables."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import UnavailableError, UsageError
from marketdata.lakehouse import open_lakehouse
from marketdata.lakehouse import trino as through_trino
from marketdata.settings import Settings
from tests.contract import test_lakehouse, test_time_travel
from tests.contract.prices import LATE, batch_of, price
from tests.contract.test_lakehouse import contents, counts, new_schema

WRITERS = ["trino", "trino_s3", "pyiceberg_s3"]


SettingsOf = Callable[[str], Settings]


@pytest.fixture
def settings_of(trino: dict[str, Any], trino_s3: dict[str, Any], settings_for: Callable[..., Settings]) -> SettingsOf:
    """Settings of a writer, one of `WRITERS` or ``pyiceberg``, with a schema of their own."""

    def build(writer: str) -> Settings:
        overrides = dict(trino_s3 if writer.endswith("s3") else trino)
        if writer.startswith("pyiceberg"):
            overrides["trino_host"] = None
        return settings_for(**overrides, trino_schema=new_schema())

    return build


@pytest.fixture(params=WRITERS)
def lakehouse_settings(request: pytest.FixtureRequest, settings_of: SettingsOf) -> Settings:
    return settings_of(request.param)


class TestEveryLakehouse(test_lakehouse.TestLakehouse):
    pass


class TestTimeTravel(test_time_travel.TestTimeTravel):
    pass


@pytest.mark.parametrize("store", ["", "_s3"])
@pytest.mark.parametrize(("writer", "reader"), [("trino", "pyiceberg"), ("pyiceberg", "trino")])
def test_the_other_engine_reads_and_refuses_to_write(
    writer: str, reader: str, store: str, settings_of: SettingsOf
) -> None:
    trino = settings_of("trino" + store)
    settings = {"trino": trino, "pyiceberg": trino.model_copy(update={"trino_host": None})}
    writing, reading = open_lakehouse(settings[writer]), open_lakehouse(settings[reader])
    rows = [price("1833-01-31"), price("2024-01-02"), price("2024-01-03"), price("2024-02-01")]
    writing.load(COMMODITY_PRICES, batch_of(trino, rows))
    # A row-level MERGE: Trino marks the old row as deleted by position, pyiceberg writes the file anew.
    revision = price("2024-01-03", "71", as_of=LATE, batch="b2")
    assert counts(writing.load(COMMODITY_PRICES, batch_of(trino, [revision]))) == (0, 1, 0, 0, 0)
    before = contents(writing)

    assert contents(reading) == before
    assert reading.query("SELECT count(*) AS n FROM commodity_prices")["n"].to_pylist() == [4]
    wanted = batch_of(trino, [price(batch="b3"), revision | {"batch_id": "b3"}])
    assert len(reading.current(COMMODITY_PRICES, next(wanted.tables()))) == 2
    assert reading.history(COMMODITY_PRICES) == writing.history(COMMODITY_PRICES)
    with pytest.raises(UsageError, match=writer) as refusal:
        reading.load(COMMODITY_PRICES, batch_of(trino, [price(value="99", as_of=LATE, batch="b4")]))
    assert reader in str(refusal.value)
    assert contents(writing) == before


def test_the_merge_is_found_by_its_query_id(settings_of: SettingsOf) -> None:
    settings = settings_of("trino")
    lakehouse = open_lakehouse(settings)
    loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price()]))

    (snapshot,) = [s for s in lakehouse.history(COMMODITY_PRICES) if s.snapshot_id == loaded.snapshot_after]
    assert snapshot.summary["trino_query_id"] == loaded.query_id
    assert snapshot.parent_id == loaded.snapshot_before


def test_what_a_dead_load_staged_is_cleaned_up(settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("trino")
    lakehouse = through_trino.TrinoLakehouse(settings)
    staging = Path(settings.require("lake_uri").removeprefix("file://")) / "staging"

    def staged() -> set[str]:
        return {folder.name for folder in staging.iterdir()} if staging.exists() else set()

    before = staged()
    monkeypatch.setattr(through_trino.TrinoLakehouse, "_drop", lambda *_: None)  # as if the process had died before
    lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price()]))
    left = staged() - before
    assert left
    monkeypatch.undo()

    lakehouse.maintain(COMMODITY_PRICES, timedelta(days=30))
    assert left <= staged(), "a load that may be running is left alone"
    monkeypatch.setattr(through_trino, "STALE_AFTER", timedelta(0))
    lakehouse.maintain(COMMODITY_PRICES, timedelta(days=30))
    assert not left & staged()
    assert len(contents(lakehouse)) == 1


def test_a_load_is_not_failed_by_what_it_cannot_clean_up(
    settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of("trino")
    lakehouse = through_trino.TrinoLakehouse(settings)

    run = through_trino.TrinoLakehouse._run

    def drops_nothing(self: through_trino.TrinoLakehouse, statement: str, *parameters: Any) -> list[Any]:
        if statement.startswith("DROP TABLE"):
            raise UnavailableError("Trino has restarted", "")
        return run(self, statement, *parameters)

    monkeypatch.setattr(through_trino.TrinoLakehouse, "_run", drops_nothing)
    assert lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price()])).inserted == 1
    assert "staged rows stay until maintenance" in caplog.text


def test_a_first_load_brings_forty_years_of_months(settings_of: SettingsOf) -> None:
    settings = settings_of("trino")
    lakehouse = open_lakehouse(settings)
    loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, forty_years()))

    assert loaded.inserted == len(contents(lakehouse)) == 480


def test_too_few_partitions_of_a_writer_are_named(settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("trino")
    connect = through_trino.TrinoLakehouse._connect
    as_trino_comes = {"iceberg.max_partitions_per_writer": "100"}
    monkeypatch.setattr(
        through_trino.TrinoLakehouse, "_connect", lambda self, **_: connect(self, session=as_trino_comes)
    )
    lakehouse = open_lakehouse(settings)
    with pytest.raises(UsageError, match=r"iceberg\.max-partitions-per-writer"):
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, forty_years()))
    assert contents(lakehouse) == {}


def forty_years() -> list[dict[str, Any]]:
    return [price(f"{year}-{month:02}-01") for year in range(1986, 2026) for month in range(1, 13)]
