"""Following a backfill: one line per change, and an exit code that tells how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta

import pytest

from marketdata.errors import TryLaterError
from marketdata.orchestration import backfill
from marketdata.orchestration.backfill import Run

DAY, NEXT = date(2019, 1, 2), date(2019, 1, 3)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[Run]]:
    """What Airflow says of the backfill's runs, one list per question; the last one is repeated."""
    answers: list[list[Run]] = []

    def runs(_: int) -> list[Run]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr(backfill, "runs", runs)
    monkeypatch.setattr(backfill.time, "sleep", lambda _: None)
    return answers


def follow(limit: timedelta = timedelta(minutes=1)) -> Iterator[Run]:
    return backfill.follow(1, limit)


def test_every_change_is_told_once(told: list[list[Run]]) -> None:
    told += [
        [Run(DAY, "queued"), Run(NEXT, "queued")],
        [Run(DAY, "running"), Run(NEXT, "queued")],
        [Run(DAY, "running"), Run(NEXT, "queued")],
        [Run(DAY, "success"), Run(NEXT, "failed")],
    ]
    assert [(run.day, run.state) for run in follow()] == [
        (DAY, "queued"), (NEXT, "queued"), (DAY, "running"), (DAY, "success"), (NEXT, "failed"),
    ]  # fmt: skip


def test_a_day_that_is_left_as_it_is_has_ended(told: list[list[Run]]) -> None:
    told += [[Run(DAY, "", "already exists")]]
    assert [str(run) for run in follow()] == ["2019-01-02  left as it is: already exists"]


def test_the_wait_is_bounded(told: list[list[Run]]) -> None:
    told += [[Run(DAY, "running")]]
    with pytest.raises(TryLaterError, match="1 runs have not ended"):
        list(follow(timedelta(0)))


@pytest.mark.parametrize(
    ("last", "code"),
    [([Run(DAY, "success"), Run(NEXT, "", "in flight")], 0), ([Run(DAY, "success"), Run(NEXT, "failed")], 1)],
)
def test_the_exit_code(
    told: list[list[Run]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    last: list[Run],
    code: int,
) -> None:
    told += [last]
    monkeypatch.setattr(backfill, "_require_unpaused", lambda _: None)
    monkeypatch.setattr(backfill, "create", lambda *_, **__: 1)
    assert backfill.main(["--from", "2019-01-02", "--to", "2019-01-03"]) == code
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_another_one_that_is_running_is_try_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object, **__: object) -> int:
        raise TryLaterError("another backfill is running")

    monkeypatch.setattr(backfill, "_require_unpaused", lambda _: None)
    monkeypatch.setattr(backfill, "create", busy)
    assert backfill.main(["--from", "2019-01-02", "--to", "2019-01-03"]) == 75
