"""The drill that cuts a load off from a real Trino, in the middle of its MERGE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from marketdata.lakehouse.trino import TrinoLakehouse
from marketdata.operations import disruptions
from marketdata.operations.scenarios import SCENARIOS, disrupt
from marketdata.settings import Settings


@pytest.fixture
def settings(embedded: Settings, trino: dict[str, Any]) -> Settings:
    return embedded.model_copy(update=trino)


def test_a_load_that_is_cut_off_from_trino_puts_each_record_into_the_table_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How fast it recovers, no busy machine is asked."""
    monkeypatch.setattr(disruptions, "MIDDLE_SECONDS", 300.0)
    scenario = replace(SCENARIOS["trino-down"], within=300)
    outcome = disrupt(settings, scenario, "run-trino", 1, dry_run=True)
    assert outcome.state == "passed", [str(check) for check in outcome.checks if check.fails]
    tries = outcome.figures["tries"]
    assert tries is not None
    assert tries > 1, "it could not go on without Trino"
    schemas = TrinoLakehouse(settings)._run("SHOW SCHEMAS LIKE 'drill%'")
    assert schemas == []
