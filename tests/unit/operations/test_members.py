from __future__ import annotations

from pathlib import Path

import pytest

from marketdata.operations import members
from marketdata.operations.members import Member
from marketdata.settings import Settings
from tests.waiting import until


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Member:
    (tmp_path / "ends_at_once.py").write_text("raise SystemExit('error: no use')")
    (tmp_path / "stays.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(members, "MODULE", "ends_at_once")
    return Member(Settings(), "one", tmp_path / "one.log")


def test_one_that_ends_at_once_is_not_said_to_have_ended_so_that_nobody_starts_it_again_at_once(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "AGAIN_SECONDS", 3600)
    member.start()
    until("it has ended", lambda: member._process and member._process.poll() is not None)
    assert member.ended() == ""


def test_after_a_pause_it_is_with_its_last_words(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "AGAIN_SECONDS", 0)
    member.start()
    assert until("it has ended", member.ended) == "consumer one ended with 1: no use"


def test_one_that_was_killed_has_not_ended_by_itself(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "AGAIN_SECONDS", 0)
    monkeypatch.setattr(members, "MODULE", "stays")
    member.start()
    member.kill()
    assert member.ended() == ""
