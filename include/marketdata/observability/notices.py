"""Notices: each told once, whoever dies in between.

An outbox: a notice is written first, under a key that only one process can write, then posted, then marked as sent, and
whatever was not sent is taken up by the next process that looks. The row is locked while it is posted, so two processes
never post the same one; a process that is killed gives its lock back.

What remains: Slack has no key for "this is the same message again". If it accepted a message and its answer was lost,
or the process was killed in the milliseconds between the answer and its note of it, the message is posted a second
time: an alert too many rather than one too few.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from marketdata import postgres
from marketdata.errors import UnavailableError
from marketdata.observability.slack import Message

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

FAILURE = "failure"
RECOVERY = "recovery"
QUARANTINE = "quarantine"
DEADLINE = "deadline"

ABANDONED_AFTER = timedelta(hours=24)
"""What could not be told for so long is not worth telling."""

LONGEST_WAIT_SECONDS = 300.0

_TABLE = """
CREATE SCHEMA IF NOT EXISTS marketdata;
CREATE TABLE IF NOT EXISTS marketdata.notices (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    dag_id text NOT NULL,
    run_id text NOT NULL,
    episode text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_after timestamptz,
    ended_at timestamptz,
    message jsonb NOT NULL,
    reply_to bigint REFERENCES marketdata.notices ON DELETE SET NULL,
    tries integer NOT NULL DEFAULT 0, -- those that Slack did not take
    next_try_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_error text,
    sent_at timestamptz,
    abandoned_at timestamptz,
    recovered_at timestamptz,
    channel text,
    thread text,
    UNIQUE (kind, dag_id, run_id, episode)
);
CREATE INDEX IF NOT EXISTS notices_unsent ON marketdata.notices (next_try_at)
    WHERE sent_at IS NULL AND abandoned_at IS NULL;
CREATE INDEX IF NOT EXISTS notices_open ON marketdata.notices (dag_id) WHERE kind = 'failure' AND recovered_at IS NULL;
"""
_LOCK = 0x6E6F7469636573  # "notices": two processes that create the table at once would fail


@dataclass(frozen=True)
class Notice:
    """Something to be told once.

    Args:
        episode: tells apart what may happen to one run more than once (it was cleared, or has several deadlines).
        run_after: when the run was due.
        ended_at: when the run ended.
        answers: ids of the failures that a recovery ends; it is posted in the thread of the first.
    """

    kind: str
    dag_id: str
    run_id: str
    episode: str
    message: Message
    run_after: datetime | None = None
    ended_at: datetime | None = None
    answers: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.kind, self.dag_id, self.run_id, self.episode


@dataclass(frozen=True)
class Failure:
    """A failure that was told (or will be), and from which its DAG has not recovered."""

    id: int
    dag_id: str
    run_id: str
    episode: str
    run_after: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True)
class Told:
    """What became of a notice."""

    kind: str
    dag_id: str
    run_id: str
    created_at: datetime
    sent_at: datetime | None
    abandoned_at: datetime | None
    last_error: str | None


@dataclass(frozen=True)
class Receipt:
    """Where a message stands in Slack; empty for an incoming webhook, which does not say."""

    channel: str = ""
    thread: str = ""


class NotPostedError(Exception):
    """Slack did not take a message.

    Args:
        retry_after: seconds Slack asks for, if it does; nothing is posted before.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


Post = Callable[[Message, Receipt | None, str], Receipt]
"""Posts a message, into a thread if one is given, with a key that is the same for each try; raises NotPostedError."""


class Outbox(Protocol):
    """Where notices wait."""

    def add(self, notice: Notice) -> bool:
        """Write a notice; False if somebody has written it before."""

    def open_failures(self) -> list[Failure]:
        """Failures without a recovery, newest first."""

    def deliver(self, post: Post) -> int:
        """Post what is due, oldest first; returns how many were. Stops at the first one Slack does not take."""


class PostgresOutbox:
    """Notices in table `marketdata.notices`: one outbox for all processes.

    Every method raises UnavailableError where PostgreSQL does not answer.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._ready = False

    def since(self) -> datetime:
        """When this outbox was first used: what happened before is nobody's news."""
        with self._connect() as connection:
            row = connection.execute("SELECT min(created_at) FROM marketdata.notices").fetchone()
        first: datetime = row[0] if row else datetime.now(UTC)
        return first.astimezone(UTC)

    def add(self, notice: Notice, sent: Receipt | None = None) -> bool:
        """Write a notice; False if somebody has written it before.

        Args:
            sent: it was told while PostgreSQL did not answer.
        """
        with self._connect() as connection, connection.transaction():
            row = connection.execute(
                "INSERT INTO marketdata.notices (kind, dag_id, run_id, episode, run_after, ended_at, message, "
                "reply_to, sent_at, channel, thread) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, "
                "CASE WHEN %s THEN clock_timestamp() END, %s, %s) "
                "ON CONFLICT (kind, dag_id, run_id, episode) DO NOTHING RETURNING id",
                (
                    *notice.key, notice.run_after, notice.ended_at,
                    json.dumps({"text": notice.message.text, "blocks": notice.message.blocks}),
                    notice.answers[0] if notice.answers else None,
                    sent is not None, sent.channel if sent else None, sent.thread if sent else None,
                ),
            ).fetchone()  # fmt: skip
            if notice.answers:
                connection.execute(
                    "UPDATE marketdata.notices SET recovered_at = clock_timestamp() WHERE id = ANY(%s)",
                    (list(notice.answers),),
                )
        return row is not None

    def open_failures(self) -> list[Failure]:
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT id, dag_id, run_id, episode, run_after, ended_at FROM marketdata.notices "
                "WHERE kind = 'failure' AND recovered_at IS NULL AND created_at > now() - interval '30 days' "
                "ORDER BY id DESC"
            ).fetchall()
        return [Failure(*row) for row in rows]

    def latest(self, limit: int) -> list[Told]:
        """The last notices, newest first."""
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT kind, dag_id, run_id, created_at, sent_at, abandoned_at, last_error FROM marketdata.notices "
                "WHERE kind <> 'start' ORDER BY id DESC LIMIT %s",
                (limit,),
            ).fetchall()
        return [Told(*row) for row in rows]

    def deliver(self, post: Post) -> int:
        posted = 0
        with self._connect() as connection:
            connection.execute(
                "UPDATE marketdata.notices SET abandoned_at = clock_timestamp() "
                "WHERE sent_at IS NULL AND abandoned_at IS NULL AND created_at < now() - %s",
                (ABANDONED_AFTER,),
            )
            while self._deliver_one(connection, post):
                posted += 1
        return posted

    def _deliver_one(self, connection: psycopg.Connection[Any], post: Post) -> bool:
        with connection.transaction():
            row = connection.execute(
                "SELECT n.id, n.message, n.tries, f.channel, f.thread, n.kind, n.dag_id, n.run_id, n.episode "
                "FROM marketdata.notices n LEFT JOIN marketdata.notices f ON f.id = n.reply_to "
                "WHERE n.sent_at IS NULL AND n.abandoned_at IS NULL AND n.next_try_at <= clock_timestamp() "
                # An answer waits until what it answers is there.
                "AND (f.id IS NULL OR f.sent_at IS NOT NULL OR f.abandoned_at IS NOT NULL) "
                "ORDER BY n.id LIMIT 1 FOR UPDATE OF n SKIP LOCKED"
            ).fetchone()
            if row is None:
                return False
            number, content, tries, channel, thread, *key = row
            answered = Receipt(channel, thread) if thread else None
            try:
                receipt = post(Message(content["text"], tuple(content["blocks"])), answered, "/".join(key))
            except NotPostedError as error:
                wait = _wait(tries, error.retry_after)
                connection.execute(
                    "UPDATE marketdata.notices SET tries = tries + 1, last_error = %s, "
                    "next_try_at = clock_timestamp() + %s WHERE id = %s",
                    (str(error), timedelta(seconds=wait), number),
                )
                if error.retry_after is not None:
                    connection.execute(
                        "UPDATE marketdata.notices SET next_try_at = greatest(next_try_at, clock_timestamp() + %s) "
                        "WHERE id IN (SELECT id FROM marketdata.notices WHERE sent_at IS NULL AND abandoned_at IS NULL "
                        "AND id <> %s FOR UPDATE SKIP LOCKED)",
                        (timedelta(seconds=error.retry_after), number),
                    )
                log.warning("Slack did not take notice %s (try %d): %s", "/".join(key), tries + 1, error)
                return False
            connection.execute(
                "UPDATE marketdata.notices SET sent_at = clock_timestamp(), last_error = NULL, "
                "channel = %s, thread = %s WHERE id = %s",
                (receipt.channel, receipt.thread, number),
            )
        return True

    @contextmanager
    def _connect(self) -> Iterator[psycopg.Connection[Any]]:
        import psycopg

        try:
            with postgres.connect(self._dsn, "notices", options="-c statement_timeout=5000") as connection:
                if not self._ready:
                    with connection.transaction():
                        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                        connection.execute(_TABLE)
                        # The first row says when the outbox was first used.
                        connection.execute(
                            "INSERT INTO marketdata.notices (kind, dag_id, run_id, episode, message, sent_at) "
                            "VALUES ('start', '', '', '', '{}', clock_timestamp()) ON CONFLICT DO NOTHING"
                        )
                    self._ready = True
                yield connection
        except psycopg.errors.UndefinedTable as error:
            self._ready = False
            raise UnavailableError("table marketdata.notices is gone; it is made anew with the next try") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UnavailableError(
                f"PostgreSQL does not answer: {first}", "check POSTGRES_DSN; notices are told from memory until then"
            ) from error


@dataclass
class _Waiting:
    notice: Notice
    number: int
    created: datetime
    tries: int = 0
    not_before: datetime | None = None
    receipt: Receipt | None = None


@dataclass
class MemoryOutbox:
    """Notices in this process, for as long as PostgreSQL does not answer or none is set. A restart forgets them."""

    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _notices: dict[tuple[str, str, str, str], _Waiting] = field(default_factory=dict)
    _recovered: set[int] = field(default_factory=set)
    _next: int = 0

    def add(self, notice: Notice) -> bool:
        if notice.key in self._notices:
            return False
        self._next -= 1  # never an id of the table
        self._notices[notice.key] = _Waiting(notice, self._next, self.clock())
        self._recovered.update(notice.answers)
        return True

    def open_failures(self) -> list[Failure]:
        return [
            Failure(
                waiting.number, waiting.notice.dag_id, waiting.notice.run_id, waiting.notice.episode,
                waiting.notice.run_after, waiting.notice.ended_at,
            )
            for waiting in reversed(self._notices.values())
            if waiting.notice.kind == FAILURE and waiting.number not in self._recovered
        ]  # fmt: skip

    def deliver(self, post: Post) -> int:
        posted = 0
        now = self.clock()
        for waiting in self._notices.values():
            if waiting.receipt is not None or now - waiting.created > ABANDONED_AFTER:
                continue
            if waiting.not_before and now < waiting.not_before:
                break
            try:
                waiting.receipt = post(
                    waiting.notice.message, self._thread(waiting.notice.answers), "/".join(waiting.notice.key)
                )
            except NotPostedError as error:
                waiting.not_before = now + timedelta(seconds=_wait(waiting.tries, error.retry_after))
                waiting.tries += 1
                log.warning("Slack did not take notice %s: %s", "/".join(waiting.notice.key), error)
                break
            posted += 1
        return posted

    def hand_over(self, outbox: PostgresOutbox) -> None:
        """Move everything to the table, which answers again; what was told is not told from there."""
        for key, waiting in list(self._notices.items()):
            outbox.add(replace(waiting.notice, answers=()), sent=waiting.receipt)
            del self._notices[key]

    @property
    def waiting(self) -> bool:
        """Whether something is still to be posted."""
        now = self.clock()
        return any(w.receipt is None and now - w.created <= ABANDONED_AFTER for w in self._notices.values())

    def _thread(self, answers: Sequence[int]) -> Receipt | None:
        for waiting in self._notices.values():
            if waiting.number in answers and waiting.receipt and waiting.receipt.thread:
                return waiting.receipt
        return None


def _wait(tries: int, retry_after: float | None) -> float:
    """Seconds to the next try: what Slack asks for, else 1, 2, 4, … and at most five minutes."""
    return retry_after if retry_after is not None else min(2.0**tries, LONGEST_WAIT_SECONDS)
