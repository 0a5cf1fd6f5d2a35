"""Which sources the settings open."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from marketdata.errors import UsageError
from marketdata.sources import open_sources
from tests.unit.sources.reading import DATASET, EVER, NOW

DATA = Path(__file__).parent / "data"

SettingsFor = Callable[..., Any]


def test_order_is_the_settings_order(settings_for: SettingsFor) -> None:
    settings = settings_for(
        marketdata_sources=" api, files,archive ", marketdata_files=DATA, commodity_api_url="http://localhost:1/prices"
    )
    assert [source.name for source in open_sources(settings, DATASET)] == ["api", "files", "archive"]


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ("archive,web", "no source is named 'web'"),
        ("archive,files,archive", "names archive twice"),
        (" , ", "names no source"),
        ("files", "MARKETDATA_FILES is not set"),
        ("api", "COMMODITY_API_URL is not set"),
    ],
)
def test_what_cannot_be_opened(settings_for: SettingsFor, sources: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_sources(settings_for(marketdata_sources=sources), DATASET)


def test_a_folder_that_is_none(settings_for: SettingsFor, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        open_sources(settings_for(marketdata_sources="files", marketdata_files=tmp_path / "no"), DATASET)


def test_fingerprint_follows_mapping_folder_and_address_but_no_secret(
    settings_for: SettingsFor, tmp_path: Path
) -> None:
    def prints(**overrides: Any) -> list[str]:
        chosen = {
            "marketdata_sources": "files,api",
            "marketdata_files": DATA,
            "commodity_api_url": "https://prices.example.com/v1?token=a",
            "commodity_api_key": "one",
        }
        return [source.fingerprint() for source in open_sources(settings_for(**{**chosen, **overrides}), DATASET)]

    files, api = prints()
    assert prints(commodity_api_key="two", commodity_api_url="https://prices.example.com/v1?token=b") == [files, api]
    assert prints(commodity_api_url="https://other.example.com/v1")[1] != api
    changed = tmp_path / "changed.yaml"
    changed.write_text((DATA / "mapping.yaml").read_text(encoding="utf-8").replace("USD", "EUR"), encoding="utf-8")
    assert prints(marketdata_files_mapping=changed)[0] != files
    assert prints(marketdata_files=tmp_path, marketdata_files_mapping=DATA / "mapping.yaml")[0] != files


def test_the_first_source_that_fails_fails_the_extraction(settings_for: SettingsFor, tmp_path: Path) -> None:
    settings = settings_for(marketdata_sources="files,archive", marketdata_files=tmp_path)
    with pytest.raises(UsageError, match="matches a file"):
        [list(source.fetch(EVER, NOW)) for source in open_sources(settings, DATASET)]


def test_opening_needs_no_heavy_import() -> None:
    code = (
        "import sys; from marketdata.sources import open_sources;"
        "import marketdata.sources.archive, marketdata.sources.api;"
        "print([m for m in ('pyarrow', 'duckdb', 'requests', 'arch', 'pandas', 'msgspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
