"""Time travel to a run, from the load that leaves its mark to the question; `tests/engines` repeats it on Trino."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest

from marketdata.batches import Batch, Lake
from marketdata.datasets import COMMODITY_PRICES, quarantine
from marketdata.errors import MarketdataError, UsageError
from marketdata.lakehouse import open_lakehouse
from marketdata.observability import runs
from marketdata.settings import Settings
from marketdata.tasks.load import load
from marketdata.tasks.query import query, snapshots_after
from tests.contract.prices import LATE, batch_of, price, refused
from tests.contract.test_lakehouse import lakehouse_settings  # noqa: F401

PRICES = "SELECT price FROM commodity_prices ORDER BY price"
REFUSED = "SELECT count(*) AS n FROM commodity_prices_quarantine"


class TestTimeTravel:
    @pytest.fixture
    def settings(self, lakehouse_settings: Settings) -> Settings:  # noqa: F811
        # Runs are on record by tenant, and this one is nobody else's.
        return lakehouse_settings.model_copy(update={"tenant": lakehouse_settings.trino_schema.replace("_", "-")})

    @pytest.fixture
    def ask(self, settings: Settings, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[Any]]:
        """Values an answer has in its only column."""

        def ask(sql: str, run_id: str | None = None) -> list[Any]:
            capsys.readouterr()
            at = snapshots_after(settings, COMMODITY_PRICES, run_id) if run_id else None
            query(settings, sql, "json", at)
            return [value for row in json.loads(capsys.readouterr().out) for value in row.values()]

        return ask

    def test_every_table_is_as_the_run_left_it(self, settings: Settings, ask: Callable[..., list[Any]]) -> None:
        run(settings, "one", [price(value="70")], [1])
        run(settings, "two", [price(value="80", as_of=LATE, batch="b2"), price("2024-01-03", "90", batch="b2")], [])
        run(settings, "nothing new", [], [2, 3])

        assert [ask(PRICES, run_id) for run_id in ("one", "two", "nothing new")] == [
            ["70.000000"],
            ["80.000000", "90.000000"],
            ["80.000000", "90.000000"],
        ]
        assert [ask(REFUSED, run_id) for run_id in ("one", "two", "nothing new")] == [[1], [1], [3]]

    def test_a_run_outlives_maintenance_until_its_snapshot_is_expired(
        self, settings: Settings, ask: Callable[..., list[Any]]
    ) -> None:
        run(settings, "one", [price(value="70")], [])
        run(settings, "two", [price(value="80", as_of=LATE, batch="b2")], [])
        lakehouse = open_lakehouse(settings)
        lakehouse.maintain(COMMODITY_PRICES, timedelta(days=30))
        assert ask(PRICES, "one") == ["70.000000"]
        lakehouse.maintain(COMMODITY_PRICES, timedelta(0))
        with pytest.raises(UsageError, match="no longer kept") as refusal:
            ask(PRICES, "one")
        assert "without --as-of-run" in str(refusal.value)
        assert ask(PRICES) == ["80.000000"]

    def test_runs_that_left_no_mark_are_named(self, settings: Settings, ask: Callable[..., list[Any]]) -> None:
        run(settings, "one", [price(value="70")], [])
        with runs.recorded(settings, COMMODITY_PRICES.name, "not so far", "extract"):
            pass
        with (
            pytest.raises(MarketdataError),
            runs.recorded(settings, COMMODITY_PRICES.name, "failed", "load"),
        ):
            raise MarketdataError("no")
        for run_id, says in (("nobody", "no run 'nobody'"), ("not so far", "not reached"), ("failed", "is failed")):
            with pytest.raises(UsageError, match=says) as refusal:
                ask(PRICES, run_id)
            assert refusal.value.remedy

    def test_a_table_the_run_did_not_find_is_named(self, settings: Settings, ask: Callable[..., list[Any]]) -> None:
        run(settings, "one", [price(value="70")], [])
        run(settings, "two", [], [1])
        with pytest.raises(UsageError, match=r"commodity_prices_quarantine was then is not on record"):
            ask(REFUSED, "one")


def run(settings: Settings, run_id: str, rows: list[dict[str, Any]], refusals: list[int]) -> None:
    """Load a batch of these records, of whose extraction these rows were refused, as a run does."""
    with runs.recorded(settings, COMMODITY_PRICES.name, run_id, "load") as record:
        record.result = load(settings, COMMODITY_PRICES, judged(settings, run_id, rows, refusals))


def judged(settings: Settings, run_id: str, rows: list[dict[str, Any]], refusals: list[int]) -> Batch:
    schema = quarantine(COMMODITY_PRICES).arrow_schema()
    lake = Lake(settings)
    records = batch_of(settings.model_copy(update={"tenant": "default"}), rows)
    verdict = lake.writer(COMMODITY_PRICES.name, records.manifest.interval, f"verdict-{run_id.replace(' ', '-')}")
    listed = pa.Table.from_pylist([refused(number) for number in refusals], schema)
    verdict.add(listed.append_column("row_index", pa.array(range(len(listed)), pa.int64())))
    described = replace(
        records.manifest, batch_id=f"verdict-{run_id.replace(' ', '-')}", step="validate", tenant=settings.tenant
    )
    return replace(records, lake=lake, manifest=replace(records.manifest, parent=verdict.commit(described).uri))
