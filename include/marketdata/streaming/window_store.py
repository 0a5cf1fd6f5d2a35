"""Windows in PostgreSQL: offsets, figures and dead letters of a micro-batch in one transaction, or none of them.

`analytics_feeds` has a row per partition: who owns it (an *epoch* that each owner raises), where to read on, and a
*sequence* that numbers every change of a window and every dead letter in the order they are committed. Sinks are told
what lies beyond the number they have; so the table of windows is its own outbox, and an outage of a sink loses nothing.

A transaction first locks its feeds at their epoch. An owner that was replaced while it slept finds another epoch, and
nothing of what it holds is stored.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from marketdata import postgres
from marketdata.errors import TryLaterError, UnavailableError
from marketdata.settings import Settings
from marketdata.streaming.decode import Letter
from marketdata.streaming.windows import SECOND, WINDOW, Book, Figures, Open, Series

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""How long PostgreSQL may be away before the process ends; Kafka takes the partitions away after 60 s."""

ASKED_BYTES = 32 * 1024 * 1024
"""Of letters that are replayed at once."""

RECENT = timedelta(days=3)
"""Moves of older windows are history: a backfill tells nobody."""

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS marketdata;
CREATE TABLE IF NOT EXISTS marketdata.analytics_feeds (
    feed_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer_group text NOT NULL,
    topic text NOT NULL,
    partition int NOT NULL,
    topic_id text NOT NULL, -- Kafka's own: a topic that was made anew begins at offset 0 again
    epoch bigint NOT NULL DEFAULT 0, -- raised by every new owner
    owner text NOT NULL DEFAULT '',
    next_offset bigint NOT NULL DEFAULT 0, -- everything before it is counted and stored, or lies in an open window
    resume_offset bigint NOT NULL DEFAULT 0, -- the first record of an open window: a restart reads from here
    records bigint NOT NULL DEFAULT 0,
    letters bigint NOT NULL DEFAULT 0,
    late bigint NOT NULL DEFAULT 0,
    sequence bigint NOT NULL DEFAULT 0, -- of the last change
    told bigint NOT NULL DEFAULT 0, -- changes up to here are in the topics
    loaded bigint NOT NULL DEFAULT 0, -- and up to here in the lake
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (consumer_group, topic, partition)
);
CREATE TABLE IF NOT EXISTS marketdata.price_series (
    series_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer_group text NOT NULL,
    tenant text NOT NULL,
    commodity text NOT NULL,
    source text NOT NULL,
    series text NOT NULL,
    frequency text NOT NULL,
    quotes jsonb NOT NULL, -- [[currency, unit], …]; members count in it
    watermark bigint NOT NULL, -- greatest event time seen, microseconds
    newest bigint NOT NULL, -- number of the newest stored window
    UNIQUE (consumer_group, tenant, commodity, source, series, frequency)
);
CREATE TABLE IF NOT EXISTS marketdata.price_windows (
    series_id int NOT NULL, -- of price_series; not a foreign key: its check would cost more than the insert
    window_start timestamptz NOT NULL,
    currency text NOT NULL,
    unit text NOT NULL,
    count int NOT NULL,
    others int NOT NULL,
    first numeric(18,6) NOT NULL,
    last numeric(18,6) NOT NULL,
    min numeric(18,6) NOT NULL,
    max numeric(18,6) NOT NULL,
    total numeric(38,6) NOT NULL,
    average numeric(18,6) NOT NULL,
    volatility numeric(18,12),
    members bytea NOT NULL, -- the prices themselves (windows.MEMBER), for what comes late
    feed_id int NOT NULL,
    sequence bigint NOT NULL,
    computed_at timestamptz NOT NULL,
    PRIMARY KEY (series_id, window_start)
);
CREATE INDEX IF NOT EXISTS price_windows_changes ON marketdata.price_windows (feed_id, sequence);
CREATE TABLE IF NOT EXISTS marketdata.dead_letters (
    letter_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    feed_id int NOT NULL REFERENCES marketdata.analytics_feeds,
    topic_id text NOT NULL,
    message_offset bigint NOT NULL,
    appended bigint NOT NULL, -- microseconds since 1970
    key bytea,
    value bytea,
    reason text NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    sequence bigint NOT NULL,
    asked_at timestamptz, -- somebody wants it replayed
    replayed_at timestamptz,
    UNIQUE (feed_id, topic_id, message_offset)
);
CREATE INDEX IF NOT EXISTS dead_letters_changes ON marketdata.dead_letters (feed_id, sequence);
CREATE INDEX IF NOT EXISTS dead_letters_asked ON marketdata.dead_letters (feed_id) WHERE asked_at IS NOT NULL;
CREATE OR REPLACE VIEW marketdata.price_window_features AS
    SELECT s.consumer_group, s.tenant, s.commodity, s.source, s.series, s.frequency, w.window_start, w.currency, w.unit,
        w.count, w.others, w.first, w.last, w.min, w.max, w.total, w.average, w.volatility, w.computed_at,
        w.feed_id, w.sequence
    FROM marketdata.price_windows w JOIN marketdata.price_series s USING (series_id);
"""
_LOCK = 0x77696E646F77  # "window": two members that create the tables at once would fail


@dataclass
class Feed:
    """A partition as its owner has it."""

    feed_id: int
    partition: int
    topic_id: str
    epoch: int
    next_offset: int
    resume_offset: int
    updated_at: datetime


@dataclass
class Checkpoint:
    """What one partition adds in one transaction.

    Args:
        closing: windows to be stored.
        letters: messages that could not be read.
        replayed: ids of letters whose records are among `closing`.
        failed: ids of letters that could not be read again, and why.
    """

    feed: Feed
    next_offset: int
    resume_offset: int
    closing: list[Open] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    replayed: list[int] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)
    records: int = 0
    late: int = 0


@dataclass(frozen=True)
class Change:
    """A recent window that has changed; `before` is the last price of the window before it, in the same quote."""

    key: tuple[str, ...]
    quote: tuple[str, str]
    window_start: datetime
    figures: Figures
    before: int | None


@dataclass(frozen=True)
class Asked:
    """A dead letter that somebody wants replayed."""

    letter_id: int
    letter: Letter


class FencedError(TryLaterError):
    """What is stored is not what this member left: another one owns the partition, or PostgreSQL has gone back."""


class WindowStore:
    """One connection to the windows of one consumer group and topic.

    Whoever sets `stop` waits for PostgreSQL no longer than for a second try.
    """

    def __init__(self, settings: Settings, topic: str, book: Book) -> None:
        self.stop = threading.Event()
        self._dsn = settings.require("postgres_dsn")
        self._group = settings.analytics_group
        self._topic = topic
        self._book = book
        self._open: psycopg.Connection[Any] | None = None
        self._ready = False

    def claim(self, partition: int, topic_id: str, owner: str) -> Feed:
        """Become the owner of a partition: whoever had it before can store nothing any more."""
        return self._insist(lambda connection: self._claim(connection, partition, topic_id, owner))

    def commit(self, checkpoints: Sequence[Checkpoint], tell: Callable[[list[Change]], None]) -> None:
        """Store checkpoints, all of them or none; safe to repeat.

        Args:
            tell: called before the commit with recent windows that changed; must bear being called again.

        Raises:
            FencedError: a partition has another owner, or PostgreSQL has lost what it stored; nothing was stored.
            UnavailableError: PostgreSQL was away for longer than `PATIENCE_SECONDS`.
        """
        self._insist(lambda connection: self._commit(connection, checkpoints, tell))

    def asked(self, feeds: Sequence[Feed]) -> dict[int, list[Asked]]:
        """Letters to be replayed, by partition."""
        return self._insist(lambda connection: self._asked(connection, feeds))

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _claim(self, connection: psycopg.Connection[Any], partition: int, topic_id: str, owner: str) -> Feed:
        with connection.transaction():
            connection.execute(_NO_LOCK_OUTLIVES_A_SLEEPER)
            row = one(connection.execute(_CLAIM, (self._group, self._topic, partition, topic_id, owner)))
            series = connection.execute(
                "SELECT tenant, commodity, source, series, frequency, series_id, quotes, watermark, newest "
                "FROM marketdata.price_series WHERE consumer_group = %s",
                (self._group,),
            ).fetchall()
        for *key, series_id, quotes, watermark, newest in series:
            self._book.restore(tuple(key), series_id, [tuple(quote) for quote in quotes], watermark, newest)
        return Feed(row[0], partition, topic_id, *row[1:])

    def _commit(
        self,
        connection: psycopg.Connection[Any],
        checkpoints: Sequence[Checkpoint],
        tell: Callable[[list[Change]], None],
    ) -> None:
        closing = _together(checkpoints)
        # Outside of the transaction, whose locks others may wait for: what does not depend on what is stored.
        self._identify(connection, {window.series for _, window in closing})
        for _, window in closing:
            window.figures()
        feeds = [checkpoint.feed for checkpoint in checkpoints]
        with connection.transaction():
            connection.execute(_NO_LOCK_OUTLIVES_A_SLEEPER)
            ids, epochs = [feed.feed_id for feed in feeds], [feed.epoch for feed in feeds]
            stored = connection.execute(_LOCK_FEEDS, (ids, epochs)).fetchall()
            sequences = {feed_id: sequence for feed_id, sequence, _ in stored}
            if lost := [feed.partition for feed in feeds if feed.feed_id not in sequences]:
                raise FencedError(
                    f"another member has taken over partitions {lost} of {self._topic}; nothing was stored by this one",
                    "let it be restarted: it joins the group anew",
                )
            updated = {feed_id: updated_at for feed_id, _, updated_at in stored}
            if any(updated[feed.feed_id] < feed.updated_at for feed in feeds):
                raise _gone_back()
            changes = self._store_windows(connection, closing, sequences) if closing else []
            self._store_letters(connection, checkpoints, sequences)
            for checkpoint in checkpoints:
                feed = checkpoint.feed
                (updated[feed.feed_id],) = one(connection.execute(
                    _ADVANCE,
                    {
                        "feed": feed.feed_id, "sequence": sequences[feed.feed_id], "counted": feed.next_offset,
                        "next": checkpoint.next_offset, "resume": checkpoint.resume_offset,
                        "records": checkpoint.records, "letters": len(checkpoint.letters), "late": checkpoint.late,
                    },
                ))  # fmt: skip
            if changes:
                tell(changes)
        for checkpoint in checkpoints:
            checkpoint.feed.updated_at = updated[checkpoint.feed.feed_id]
            checkpoint.feed.next_offset = checkpoint.next_offset
            checkpoint.feed.resume_offset = checkpoint.resume_offset

    def _store_windows(
        self, connection: psycopg.Connection[Any], closing: list[tuple[Feed, Open]], sequences: dict[int, int]
    ) -> list[Change]:
        touched = {window.series: self._book.series[window.series] for _, window in closing}
        numbers = {series.series_id: number for number, series in touched.items()}
        # One writer of a series at a time: its records may lie in two partitions, if somebody else published them.
        locked = connection.execute(_LOCK_SERIES, (list(numbers),)).fetchall()
        if len(locked) < len(numbers):
            raise _gone_back()
        for series_id, newest in locked:
            touched[numbers[series_id]].newest = newest
        stored = self._stored(connection, [window for _, window in closing], numbers)
        rows: list[tuple[Any, ...]] = []
        changed: list[tuple[Series, int, Figures]] = []
        for feed, window in closing:
            series = touched[window.series]
            before = stored.get((window.series, window.window))
            members, of = window.figures() if before is None else window.merged(before)
            if members is None:
                continue
            sequences[feed.feed_id] += 1
            volatility = None if of.volatility is None else f"{of.volatility:.12f}"
            rows.append(
                (
                    series.series_id, window.window * 60, *map(_quoted, series.quotes[of.quote]), of.count, of.others,
                    of.first, of.last, of.min, of.max, of.total, of.average, volatility,
                    f'"\\\\x{members.tobytes().hex()}"', feed.feed_id, sequences[feed.feed_id],
                )
            )  # fmt: skip
            changed.append((series, window.window, of))
            series.newest = max(series.newest, window.window)
        if not rows:
            return []
        connection.execute(_UPSERT, [_array(column) for column in zip(*rows, strict=True)])
        for series in touched.values():
            connection.execute(
                "UPDATE marketdata.price_series SET newest = %s, watermark = greatest(watermark, %s), quotes = %s "
                "WHERE series_id = %s",
                (series.newest, series.watermark, _json(series.quotes), series.series_id),
            )
        since = (datetime.now(UTC) - RECENT).timestamp() * SECOND
        return self._changes(connection, [change for change in changed if change[1] * WINDOW >= since])

    def _identify(self, connection: psycopg.Connection[Any], numbers: set[int]) -> None:
        for series in (self._book.series[number] for number in sorted(numbers)):
            if series.series_id is None:
                values = (self._group, *series.key, _json(series.quotes), series.watermark)
                (series.series_id,) = one(connection.execute(_IDENTIFY, values))

    def _stored(
        self, connection: psycopg.Connection[Any], windows: list[Open], numbers: dict[int | None, int]
    ) -> dict[tuple[int, int], bytes]:
        """Members of those windows that are stored."""
        series = self._book.series
        asked = [
            (series[window.series].series_id, window.window * 60)
            for window in windows
            if window.window <= series[window.series].newest
        ]
        if not asked:
            return {}
        rows = connection.execute(_STORED, [_array(column) for column in zip(*asked, strict=True)], binary=True)
        return {(numbers[series_id], seconds // 60): members for series_id, seconds, members in rows}

    def _changes(self, connection: psycopg.Connection[Any], changed: list[tuple[Series, int, Figures]]) -> list[Change]:
        if not changed:
            return []
        rows = [
            (number, series.series_id, window * 60, *map(_quoted, series.quotes[of.quote]))
            for number, (series, window, of) in enumerate(changed)
        ]
        found = connection.execute(_BEFORE, [_array(column) for column in zip(*rows, strict=True)])
        before = dict(found.fetchall())
        return [
            Change(series.key, series.quotes[of.quote], datetime.fromtimestamp(window * 60, UTC), of, before[number])
            for number, (series, window, of) in enumerate(changed)
        ]

    def _store_letters(
        self, connection: psycopg.Connection[Any], checkpoints: Sequence[Checkpoint], sequences: dict[int, int]
    ) -> None:
        rows = []
        for checkpoint in checkpoints:
            feed = checkpoint.feed
            for letter in checkpoint.letters:
                sequences[feed.feed_id] += 1
                rows.append(
                    (
                        feed.feed_id, feed.topic_id, letter.offset, letter.appended, letter.key, letter.value,
                        letter.reason.replace("\0", "�"), sequences[feed.feed_id],
                    )
                )  # fmt: skip
            if checkpoint.replayed:
                connection.execute(
                    "UPDATE marketdata.dead_letters SET asked_at = NULL, replayed_at = clock_timestamp() "
                    "WHERE letter_id = ANY(%s)",
                    (checkpoint.replayed,),
                )
            for letter_id, reason in checkpoint.failed:
                connection.execute(
                    "UPDATE marketdata.dead_letters SET asked_at = NULL, reason = %s WHERE letter_id = %s",
                    (reason.replace("\0", "�"), letter_id),
                )
        if rows:
            with connection.cursor() as cursor:
                cursor.executemany(_LETTER, rows)

    def _asked(self, connection: psycopg.Connection[Any], feeds: Sequence[Feed]) -> dict[int, list[Asked]]:
        rows = connection.execute(_ASKED, ([feed.feed_id for feed in feeds], ASKED_BYTES)).fetchall()
        partitions = {feed.feed_id: feed.partition for feed in feeds}
        found: dict[int, list[Asked]] = {}
        for feed_id, letter_id, *letter in rows:
            found.setdefault(partitions[feed_id], []).append(Asked(letter_id, Letter(*letter)))
        return found

    def _insist(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Do work, again while PostgreSQL is away: every one of these may be repeated, also after a commit whose answer
        was lost."""
        deadline: float | None = None  # from the first failure: who wakes from a long sleep tries again
        # The last one from whoever is told of changes.
        away: tuple[type[Exception], ...] = (*_away(), UnavailableError)
        while True:
            try:
                return work(self._connection())
            except away as error:
                self.close()
                if deadline is None:
                    # Once more, whatever was said: a connection that was idle may have been ended.
                    deadline = time.monotonic() + PATIENCE_SECONDS
                elif self.stop.is_set() or time.monotonic() > deadline:
                    raise unavailable(error) from error
                log.warning("PostgreSQL does not answer; trying again", extra={"reason": first_line(error)})
                self.stop.wait(0.5)

    def _connection(self) -> psycopg.Connection[Any]:
        if self._open is None or self._open.closed:
            self._open = postgres.connect(self._dsn, "analytics")
            if not self._ready:
                create(self._open)
                self._ready = True
        return self._open


def create(connection: psycopg.Connection[Any]) -> None:
    """Create the tables where they are missing."""
    if connection.execute("SELECT to_regclass('marketdata.price_window_features')").fetchone() != (None,):
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(SCHEMA)


@contextmanager
def connected(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A connection for people and sinks.

    Raises:
        UnavailableError: PostgreSQL does not answer.
    """
    try:
        with postgres.connect(settings.require("postgres_dsn"), "analytics") as connection:
            create(connection)
            yield connection
    except _away() as error:
        raise unavailable(error) from error


def _away() -> tuple[type[Exception], ...]:
    """What the driver raises when the server is gone, or has ended a session that slept in a transaction."""
    import psycopg

    return psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.IdleInTransactionSessionTimeout


def one(found: psycopg.Cursor[Any]) -> Any:
    """The row of a statement that always has one."""
    row = found.fetchone()
    if row is None:
        raise RuntimeError("a row of marketdata.analytics_feeds or marketdata.price_series is gone")
    return row


def _gone_back() -> FencedError:
    return FencedError(
        "PostgreSQL has less than this member stored in it; nothing was stored on top of that",
        "let it be restarted: it reads on from what is stored; look for a standby that lagged and was promoted",
    )


def unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(
        f"PostgreSQL does not answer: {first_line(error)}; what was not stored is read again from the topic",
        "check POSTGRES_DSN, or: marketdata engines up",
    )


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _together(checkpoints: Sequence[Checkpoint]) -> list[tuple[Feed, Open]]:
    """Windows to be stored, each once, though its records may come from two partitions."""
    found: dict[tuple[int, int], tuple[Feed, Open]] = {}
    for checkpoint in checkpoints:
        for window in checkpoint.closing:
            key = window.series, window.window
            if key in found:
                feed, other = found[key]
                window = replace(other, chunks=[*other.chunks, *window.chunks])
                found[key] = feed, window
            else:
                found[key] = checkpoint.feed, window
    return list(found.values())


def _array(values: Iterable[Any]) -> str:
    """Literal of an array; the driver's own takes ten times longer. Texts have been quoted."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def _quoted(text: str) -> str:
    """Text as an element of an array's literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _json(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


_NO_LOCK_OUTLIVES_A_SLEEPER = """
SELECT set_config('idle_in_transaction_session_timeout', '10s', true), set_config('lock_timeout', '20s', true),
    set_config('statement_timeout', '30s', true)
"""
_CLAIM = """
INSERT INTO marketdata.analytics_feeds AS old (consumer_group, topic, partition, topic_id, owner, epoch)
VALUES (%s, %s, %s, %s, %s, 1)
ON CONFLICT (consumer_group, topic, partition) DO UPDATE SET epoch = old.epoch + 1, owner = excluded.owner,
    next_offset = CASE WHEN old.topic_id = excluded.topic_id THEN old.next_offset ELSE 0 END,
    resume_offset = CASE WHEN old.topic_id = excluded.topic_id THEN old.resume_offset ELSE 0 END,
    topic_id = excluded.topic_id, updated_at = clock_timestamp()
RETURNING feed_id, epoch, next_offset, resume_offset, updated_at
"""
_LOCK_FEEDS = """
SELECT f.feed_id, f.sequence, f.updated_at FROM marketdata.analytics_feeds f
JOIN unnest(%s::int[], %s::bigint[]) AS mine (feed_id, epoch) USING (feed_id, epoch)
ORDER BY f.feed_id FOR UPDATE OF f
"""
# A commit whose answer was lost is repeated, and must not count twice. Each is later than the one before, whatever the
# clock says: so an owner sees whether what it stored is still there.
_ADVANCE = """
UPDATE marketdata.analytics_feeds SET next_offset = greatest(next_offset, %(next)s), resume_offset = %(resume)s,
    records = records + CASE WHEN next_offset = %(counted)s THEN %(records)s ELSE 0 END,
    letters = letters + CASE WHEN next_offset = %(counted)s THEN %(letters)s ELSE 0 END,
    late = late + CASE WHEN next_offset = %(counted)s THEN %(late)s ELSE 0 END,
    sequence = %(sequence)s, updated_at = greatest(clock_timestamp(), updated_at + interval '1 microsecond')
WHERE feed_id = %(feed)s RETURNING updated_at
"""
_LOCK_SERIES = """
SELECT series_id, newest FROM marketdata.price_series WHERE series_id = ANY(%s) ORDER BY series_id FOR UPDATE
"""
_BEFORE = """
SELECT asked.number, (before.last * 1000000)::bigint
FROM unnest(%s::int[], %s::int[], %s::bigint[], %s::text[], %s::text[])
    AS asked (number, series_id, seconds, currency, unit)
LEFT JOIN LATERAL (
    SELECT w.last FROM marketdata.price_windows w WHERE w.series_id = asked.series_id
        AND w.window_start < to_timestamp(asked.seconds) AND w.currency = asked.currency AND w.unit = asked.unit
    ORDER BY w.window_start DESC LIMIT 1
) before ON true
"""
_IDENTIFY = """
INSERT INTO marketdata.price_series AS old
    (consumer_group, tenant, commodity, source, series, frequency, quotes, watermark, newest)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, -4611686018427387904)
ON CONFLICT (consumer_group, tenant, commodity, source, series, frequency) DO UPDATE SET watermark = old.watermark
RETURNING series_id
"""
_STORED = """
SELECT w.series_id, extract(epoch FROM w.window_start)::bigint, w.members
FROM unnest(%s::int[], %s::bigint[]) AS asked (series_id, seconds)
JOIN marketdata.price_windows w ON w.series_id = asked.series_id AND w.window_start = to_timestamp(asked.seconds)
"""
# A revision is later than the one before, whatever the clocks of two members say.
_UPSERT = """
INSERT INTO marketdata.price_windows AS old (series_id, window_start, currency, unit, count, others, first, last, min,
    max, total, average, volatility, members, feed_id, sequence, computed_at)
SELECT series_id, to_timestamp(seconds), currency, unit, count, others, first * 0.000001, last * 0.000001,
    min * 0.000001, max * 0.000001, total * 0.000001, average * 0.000001, volatility, members, feed_id, sequence,
    clock_timestamp()
FROM unnest(%s::int[], %s::bigint[], %s::text[], %s::text[], %s::int[], %s::int[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::bigint[], %s::numeric[], %s::bigint[], %s::numeric[], %s::bytea[], %s::int[],
    %s::bigint[])
AS new (series_id, seconds, currency, unit, count, others, first, last, min, max, total, average, volatility, members,
    feed_id, sequence)
ON CONFLICT (series_id, window_start) DO UPDATE SET currency = excluded.currency, unit = excluded.unit,
    count = excluded.count, others = excluded.others, first = excluded.first, last = excluded.last, min = excluded.min,
    max = excluded.max, total = excluded.total, average = excluded.average, volatility = excluded.volatility,
    members = excluded.members, feed_id = excluded.feed_id, sequence = excluded.sequence,
    computed_at = greatest(excluded.computed_at, old.computed_at + interval '1 microsecond')
"""
# The first one is read whatever its size.
_ASKED = """
SELECT feed_id, letter_id, message_offset, appended, key, value, reason FROM (
    SELECT *, sum(octet_length(coalesce(value, '')))
        OVER (ORDER BY letter_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
    FROM marketdata.dead_letters WHERE asked_at IS NOT NULL AND feed_id = ANY(%s) ORDER BY letter_id LIMIT 1000
) asked WHERE coalesce(before, 0) < %s ORDER BY letter_id
"""
_LETTER = """
INSERT INTO marketdata.dead_letters (feed_id, topic_id, message_offset, appended, key, value, reason, sequence)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (feed_id, topic_id, message_offset) DO NOTHING
"""
