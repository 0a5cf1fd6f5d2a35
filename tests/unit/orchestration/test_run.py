"""Who does a run: the scheduler that would take it up anyway, or this process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from marketdata.errors import UsageError
from marketdata.orchestration import run, scheduler

AT = datetime(2019, 1, 3, 9, tzinfo=UTC)
RUN_ID = "manual__2019-01-03T09:00:00+00:00"


class Here:
    """A DAG that notes that it was run in this process."""

    def __init__(self, state: str = "success") -> None:
        self.asked: list[dict[str, Any]] = []
        self.tasks = [SimpleNamespace(retry_delay=timedelta(minutes=1), retry_exponential_backoff=2)]
        self._state = state

    def test(self, **asked: Any) -> SimpleNamespace:
        self.asked.append(asked)
        return SimpleNamespace(state=self._state)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    dag = Here()
    monkeypatch.setattr(run, "load_dag", lambda _: dag)
    monkeypatch.setattr(run.time, "sleep", lambda _: None)
    return dag


def scheduled(monkeypatch: pytest.MonkeyPatch, *states: str, alive: int = 100) -> list[tuple[Any, ...]]:
    """A scheduler that answers with these states, and is there for so many questions."""
    left = list(states)
    lives = iter([True] * alive)
    triggered: list[tuple[Any, ...]] = []
    monkeypatch.setattr(scheduler, "works_on", lambda _: next(lives, False))
    monkeypatch.setattr(scheduler, "trigger", lambda *asked: triggered.append(asked))
    monkeypatch.setattr(scheduler, "state_of", lambda *_: left.pop(0) if len(left) > 1 else left[0])
    return triggered


@pytest.mark.parametrize(("state", "green"), [("success", True), ("failed", False)])
def test_no_scheduler(here: Here, monkeypatch: pytest.MonkeyPatch, state: str, green: bool) -> None:
    scheduled(monkeypatch, "", alive=0)
    here._state = state
    assert run.run("a-dag", {"start": "2019-01-01"}, AT) is green
    assert here.asked == [{"logical_date": AT, "run_after": AT, "run_conf": {"start": "2019-01-01"}}]
    assert here.tasks == [SimpleNamespace(retry_delay=run.RETRY_DELAY, retry_exponential_backoff=0)]


@pytest.mark.parametrize(("state", "green"), [("success", True), ("failed", False)])
def test_a_scheduler_does_it(here: Here, monkeypatch: pytest.MonkeyPatch, state: str, green: bool) -> None:
    triggered = scheduled(monkeypatch, "queued", "running", "running", state)
    assert run.run("a-dag", {}, AT) is green
    assert triggered == [("a-dag", RUN_ID, AT, {})]
    assert here.asked == []


def test_a_scheduler_that_dies_is_replaced(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled(monkeypatch, "queued", alive=3)
    assert run.run("a-dag", {}, AT)
    assert len(here.asked) == 1


def test_a_dag_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="does not exist"):
        run.load_dag("no-such-dag")


@pytest.mark.parametrize("text", ["2019-01-03T09:00:00+00:00", "2019-01-03T09:00:00", "2019-01-03T09:00:00Z"])
def test_moments_are_utc_unless_they_say_otherwise(text: str) -> None:
    assert run._moment(text) == AT
