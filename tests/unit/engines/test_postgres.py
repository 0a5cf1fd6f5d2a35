"""What a start as root makes for PostgreSQL, which refuses to run as root."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from marketdata.engines import postgres


def test_two_starts_at_once_make_its_account_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second `useradd` would give it another number, after the first start has given its files away."""
    accounts: list[str] = []

    def useradd(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        time.sleep(0.1)  # as long as the real one needs
        accounts.append(command[-1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(postgres, "_exists", lambda user: user in accounts)
    monkeypatch.setattr(subprocess, "run", useradd)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(postgres._make_account, ["prices", "prices"]))
    assert accounts == ["prices"]
