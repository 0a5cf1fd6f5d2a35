"""The outbox in PostgreSQL: many processes at once, and one that dies amid a message."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from marketdata.observability.notices import FAILURE, RECOVERY, Notice, NotPostedError, PostgresOutbox, Receipt
from marketdata.observability.slack import Message

NOTICE = Notice(FAILURE, "dag", "run", "0", Message("it failed", ({"type": "divider"},)))


@pytest.fixture
def dsn(embedded: Any) -> str:
    address: str = embedded.require("postgres_dsn")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS marketdata.notices")
    return address


@pytest.fixture
def outbox(dsn: str) -> PostgresOutbox:
    return PostgresOutbox(dsn)


def never(message: Message, thread: Receipt | None, key: str) -> Receipt:
    raise AssertionError("nothing was to be posted")


def test_of_many_processes_one_writes_and_one_posts(dsn: str) -> None:
    posted: list[str] = []
    barrier = threading.Barrier(8)

    def process(number: int) -> bool:
        own = PostgresOutbox(dsn)
        barrier.wait()
        wrote = own.add(replace(NOTICE, message=Message(f"said by {number}", ())))
        for other in range(5):
            own.add(replace(NOTICE, run_id=f"run-{other}"))
        own.deliver(lambda message, thread, key: posted.append(key) or Receipt())
        return wrote

    with ThreadPoolExecutor(8) as pool:
        wrote = list(pool.map(process, range(8)))
    PostgresOutbox(dsn).deliver(lambda message, thread, key: posted.append(key) or Receipt())
    assert wrote.count(True) == 1
    assert len(posted) == len(set(posted)) == 6


def test_what_a_dead_process_was_posting_is_posted_by_the_next(outbox: PostgresOutbox, dsn: str) -> None:
    class Killed(BaseException):
        """As SIGKILL: nothing is written after it."""

    def dies(message: Message, thread: Receipt | None, key: str) -> Receipt:
        PostgresOutbox(dsn).deliver(never)
        raise Killed

    outbox.add(NOTICE)
    with pytest.raises(Killed):
        outbox.deliver(dies)
    posted: list[Message] = []
    assert PostgresOutbox(dsn).deliver(lambda message, thread, key: posted.append(message) or Receipt()) == 1
    assert posted == [NOTICE.message]


def test_what_slack_asks_for_holds_for_every_process(outbox: PostgresOutbox, dsn: str) -> None:
    def refuses(message: Message, thread: Receipt | None, key: str) -> Receipt:
        raise NotPostedError("HTTP 429", retry_after=30)

    outbox.add(NOTICE)
    outbox.add(replace(NOTICE, run_id="another"))
    assert outbox.deliver(refuses) == 0
    assert PostgresOutbox(dsn).deliver(never) == 0
    with psycopg.connect(dsn) as connection:
        (soonest,) = connection.execute(
            "SELECT min(next_try_at) - now() FROM marketdata.notices WHERE sent_at IS NULL"
        ).fetchall()[0]
    assert 25 < soonest.total_seconds() < 31


def test_an_answer_waits_for_what_it_answers(outbox: PostgresOutbox) -> None:
    refusals: list[Exception] = [NotPostedError("reset")]
    posted: list[tuple[str, Receipt | None]] = []

    def post(message: Message, thread: Receipt | None, key: str) -> Receipt:
        if refusals:
            raise refusals.pop()
        posted.append((message.text, thread))
        return Receipt("C1", "1.5")

    outbox.add(NOTICE)
    (failure,) = outbox.open_failures()
    outbox.add(replace(NOTICE, kind=RECOVERY, message=Message("recovered", ()), answers=(failure.id,)))
    assert outbox.open_failures() == []
    outbox.deliver(post)
    assert posted == []
    _let_time_pass(outbox)
    assert outbox.deliver(post) == 2
    assert posted == [("it failed", None), ("recovered", Receipt("C1", "1.5"))]


def test_what_was_told_from_memory_is_not_told_again(outbox: PostgresOutbox) -> None:
    assert outbox.add(NOTICE, sent=Receipt())
    assert not outbox.add(NOTICE)
    assert outbox.deliver(never) == 0


def test_what_cannot_be_told_for_a_day_is_given_up(outbox: PostgresOutbox) -> None:
    outbox.add(NOTICE)
    with outbox._connect() as connection:
        connection.execute("UPDATE marketdata.notices SET created_at = now() - interval '25 hours'")
    assert outbox.deliver(never) == 0
    (told,) = outbox.latest(10)
    assert told.abandoned_at is not None


def test_a_table_that_is_gone_is_made_anew(outbox: PostgresOutbox, dsn: str) -> None:
    from marketdata.errors import UnavailableError

    outbox.add(NOTICE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE marketdata.notices")
    with pytest.raises(UnavailableError):
        outbox.open_failures()
    assert outbox.add(NOTICE)


def _let_time_pass(outbox: PostgresOutbox) -> None:
    with outbox._connect() as connection:
        connection.execute("UPDATE marketdata.notices SET next_try_at = now()")
