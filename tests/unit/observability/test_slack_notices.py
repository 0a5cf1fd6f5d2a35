"""The outbox: one process writes a notice, one posts it, and what Slack did not take is posted later, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from marketdata.errors import UnavailableError
from marketdata.observability.notices import (
    ABANDONED_AFTER,
    FAILURE,
    RECOVERY,
    MemoryOutbox,
    Notice,
    NotPostedError,
    PostgresOutbox,
    Receipt,
)
from marketdata.observability.slack import Message

AT = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
NOTICE = Notice(FAILURE, "dag", "run", "0", Message("it failed", ()), run_after=AT, ended_at=AT)


class Clock:
    def __init__(self) -> None:
        self.now = AT

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Slack:
    """Takes what it is not told to refuse."""

    def __init__(self) -> None:
        self.refusals: list[NotPostedError] = []
        self.posted: list[tuple[str, Receipt | None]] = []

    def __call__(self, message: Message, thread: Receipt | None, key: str) -> Receipt:
        if self.refusals:
            raise self.refusals.pop(0)
        self.posted.append((message.text, thread))
        return Receipt("C1", str(len(self.posted)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(clock: Callable[[], datetime]) -> MemoryOutbox:
    return MemoryOutbox(clock)


def test_a_notice_is_posted_once(outbox: MemoryOutbox) -> None:
    slack = Slack()
    assert outbox.add(NOTICE)
    assert not outbox.add(replace(NOTICE, message=Message("it failed, said again", ())))
    assert outbox.deliver(slack) == 1
    assert outbox.deliver(slack) == 0
    assert slack.posted == [("it failed", None)]
    assert not outbox.waiting


def test_a_run_that_was_cleared_and_failed_again_is_another_failure(outbox: MemoryOutbox) -> None:
    assert outbox.add(NOTICE)
    assert outbox.add(replace(NOTICE, episode="1"))


def test_nothing_is_posted_before_slack_allows_it(outbox: MemoryOutbox, clock: Clock) -> None:
    slack = Slack()
    slack.refusals = [NotPostedError("HTTP 429", retry_after=30)]
    outbox.add(NOTICE)
    outbox.add(replace(NOTICE, run_id="second"))
    assert outbox.deliver(slack) == 0
    clock.pass_by(29)
    assert outbox.deliver(slack) == 0
    assert slack.posted == []
    clock.pass_by(2)
    assert outbox.deliver(slack) == 2


def test_waits_grow_and_end(outbox: MemoryOutbox, clock: Clock) -> None:
    slack = Slack()
    slack.refusals = [NotPostedError("reset") for _ in range(10_000)]
    outbox.add(NOTICE)
    tries = 0
    while clock.now - AT <= ABANDONED_AFTER:
        before = len(slack.refusals)
        outbox.deliver(slack)
        tries += before - len(slack.refusals)
        clock.pass_by(10)
    assert 250 < tries < 320, "every five minutes at last, for a day"
    slack.refusals = []
    assert outbox.deliver(slack) == 0
    assert not outbox.waiting


def test_a_recovery_is_posted_in_the_thread_of_its_failure(outbox: MemoryOutbox) -> None:
    slack = Slack()
    outbox.add(NOTICE)
    (failure,) = outbox.open_failures()
    outbox.add(replace(NOTICE, kind=RECOVERY, message=Message("recovered", ()), answers=(failure.id,)))
    assert outbox.open_failures() == []
    outbox.deliver(slack)
    assert slack.posted == [("it failed", None), ("recovered", Receipt("C1", "1"))]


def test_an_unreachable_postgres_is_said_in_one_line_and_without_its_password() -> None:
    with pytest.raises(UnavailableError) as caught:
        PostgresOutbox("postgresql://etl:hunter2@127.0.0.1:1/prices").add(NOTICE)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
