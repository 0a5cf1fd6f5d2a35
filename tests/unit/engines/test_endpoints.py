"""The endpoint file and the secrets beside it."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from marketdata.engines import endpoints, secrets
from marketdata.engines.endpoints import Endpoints, EngineRecord
from marketdata.settings import ENDPOINTS_VARIABLE, Settings

RECORD = EngineRecord("127.0.0.1:20001", "4.3.1", "/log", 12, 3.5)


def test_settings_read_what_was_written_and_nobody_else_can(
    tmp_path: Path, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_for()
    file = tmp_path / "endpoints.json"
    endpoints.write(file, Endpoints({"kafka_brokers": RECORD.address}, {"kafka": RECORD}))
    monkeypatch.setenv(ENDPOINTS_VARIABLE, str(file))

    assert endpoints.read(file) == Endpoints({"kafka_brokers": RECORD.address}, {"kafka": RECORD})
    assert Settings().kafka_brokers == RECORD.address
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"engines": {"kafka": {"colour": 1}}}', '{"engines": 7}'])
def test_a_damaged_file_says_nothing(tmp_path: Path, content: str) -> None:
    file = tmp_path / "endpoints.json"
    file.write_text(content)
    assert endpoints.read(file) == Endpoints()


def test_a_stopped_engine_has_an_address_and_no_process(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.json"
    endpoints.write(file, Endpoints({}, {"kafka": EngineRecord("127.0.0.1:1", "4", "/log")}))
    assert endpoints.read(file).engines["kafka"].process is None
    assert json.loads(file.read_text())["engines"]["kafka"]["address"] == "127.0.0.1:1"


def test_a_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret"
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: secrets.kept(path, 64), range(32)))) == 1
    assert len(path.read_text()) >= 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
