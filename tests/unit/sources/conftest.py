"""Reading one file through a mapping written in the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marketdata.batches import Interval
from marketdata.sources.files import FilesSource
from marketdata.sources.mapping import load
from tests.unit.sources.reading import DATASET, EVER, NOW, Read, entry, rows


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes one file and reads it: columns Date and Price unless `mapping` says otherwise."""

    def run(
        name: str, content: bytes | str, more: str = "", mapping: str | None = None, interval: Interval = EVER
    ) -> list[dict[str, Any]]:
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        said = tmp_path / "said.yaml"
        said.write_text(f"entries:{mapping or entry(name, more)}", encoding="utf-8")
        return rows(FilesSource(folder, load(said), DATASET).fetch(interval, NOW))

    return run
