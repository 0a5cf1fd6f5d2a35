"""What every test may use; the folder a test lies in is its marker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
MARKERS = ("unit", "dags", "contract", "engines", "integration", "faults")

os.environ.setdefault("AIRFLOW_HOME", str(ROOT / "build" / "tests" / "airflow"))


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: tests/{marker}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder not in MARKERS:
            raise pytest.UsageError(f"{item.nodeid}: tests live in one of {MARKERS}")
        item.add_marker(folder)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real public data; the tests that read it are skipped where it is not there."""
    if not SHARED.is_dir():
        pytest.skip("no shared data folder beside the checkout")
    return SHARED


@pytest.fixture
def settings_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Settings from these overrides alone: no variable of this machine, no embedded engine."""
    from marketdata.settings import ENDPOINTS_VARIABLE, Settings

    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(ENDPOINTS_VARIABLE, str(tmp_path / "no-endpoints.json"))

    def build(**overrides: Any) -> Settings:
        return Settings(**{"lake_uri": f"file://{tmp_path}/lake", "marketdata_home": tmp_path, **overrides})

    return build


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Settings of embedded engines that run for this session: real Kafka, real PostgreSQL, a lake on disk."""
    from marketdata import engines
    from marketdata.settings import ENDPOINTS_VARIABLE, Settings

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARKETDATA_HOME", str(home))
        patch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
        engines.up(Settings(), ["kafka", "postgres"])
        try:
            yield Settings()
        finally:
            engines.down(Settings())
