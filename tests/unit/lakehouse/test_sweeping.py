from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from marketdata.errors import MarketdataError
from marketdata.lakehouse.contract import ORPHANS_AFTER
from marketdata.lakehouse.sweeping import sweep
from marketdata.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    old = time.time() - ORPHANS_AFTER.total_seconds() - 60
    for name in ("data/month=2024-01/named.parquet", "data/month=2024-01/dead load.parquet", "metadata/old.json"):
        file = tmp_path / "table" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
        os.utime(file, (old, old))
    (tmp_path / "table" / "data" / "running load.parquet").write_text("")
    return tmp_path / "table"


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*") if file.is_file()}


def test_what_is_old_and_named_by_nobody_is_deleted(folder: Path, settings_for: Callable[..., Settings]) -> None:
    named = [f"file://{folder}/data/month=2024-01/named.parquet", "file:///elsewhere/file.parquet"]
    assert sweep(settings_for(), f"file://{folder}", named) == 2
    assert files(folder) == {"named.parquet", "running load.parquet"}
    assert sweep(settings_for(), f"file://{folder}", named) == 0


def test_nothing_is_deleted_where_a_named_file_is_not_found(
    folder: Path, settings_for: Callable[..., Settings]
) -> None:
    before = files(folder)
    with pytest.raises(MarketdataError, match=r"e\.g\. file://.*/data/other\.parquet; nothing was deleted"):
        sweep(settings_for(), f"file://{folder}", [f"file://{folder}/data/other.parquet"])
    assert files(folder) == before


def test_a_folder_that_is_not_there_has_nothing_in_it(tmp_path: Path, settings_for: Callable[..., Settings]) -> None:
    assert sweep(settings_for(), f"file://{tmp_path}/nothing") == 0
