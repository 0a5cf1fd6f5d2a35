"""What every test may use; the folder a test lies in is its marker."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
MARKERS = ("unit", "dags", "contract", "engines", "integration", "faults", "security", "kubernetes", "scans")

NO_SHARED_DATA = "no shared data folder beside the checkout"

# How fast a machine is decides no test.
hypothesis_settings.register_profile("marketdata", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("marketdata")

os.environ.setdefault("AIRFLOW_HOME", str(ROOT / "build" / "tests" / "airflow"))


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: tests/{marker}")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes don't name a test: archives made at collection differ from process to process."""
    return "bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder not in MARKERS:
            raise pytest.UsageError(f"{item.nodeid}: tests live in one of {MARKERS}")
        item.add_marker(folder)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """In CI a test that could have run and did not is a failure: nothing passes by being skipped."""
    if not os.environ.get("CI"):
        return
    skipped = {str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])}
    if unexpected := sorted(reason for reason in skipped if not _may_skip(reason)):
        terminalreporter.section("skipped in CI without need", red=True)
        for reason in unexpected:
            terminalreporter.line(reason)
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _may_skip(reason: str) -> bool:
    return NO_SHARED_DATA in reason and not SHARED.is_dir()


@pytest.fixture
def shared_data() -> Path:
    """The folder of real public data; the tests that read it are skipped where it is not there."""
    if not SHARED.is_dir():
        pytest.skip(NO_SHARED_DATA)
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
def new_home() -> Iterator[Callable[[str], Path]]:
    """Makes folders for engines to live in, removed at the end.

    They lie outside pytest's own temporary folder, which another session may close to PostgreSQL's account.
    """
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(Path(tempfile.mkdtemp(prefix=f"marketdata-{name}-")))
        return made[-1]

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def embedded(new_home: Callable[[str], Path]) -> Iterator[Any]:
    """Settings of embedded engines that run for this session: real Kafka, real PostgreSQL, a lake on disk."""
    from marketdata import engines
    from marketdata.settings import ENDPOINTS_VARIABLE, Settings

    home = new_home("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARKETDATA_HOME", str(home))
        patch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
        engines.up(Settings(), ["kafka", "postgres"])
        try:
            yield Settings()
        finally:
            engines.down(Settings())
