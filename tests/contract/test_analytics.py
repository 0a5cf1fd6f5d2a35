"""The streaming consumer on a real broker and a real PostgreSQL: what is in its tables, topics and in the lake."""

from __future__ import annotations

import json
import math
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from marketdata.datasets import COMMODITY_PRICES
from marketdata.datasets.commodity_aggregates import COMMODITY_AGGREGATES
from marketdata.datasets.conform import connect
from marketdata.errors import TryLaterError, UnavailableError, UsageError
from marketdata.lakehouse import open_lakehouse
from marketdata.settings import Settings
from marketdata.streaming import window_sinks, window_store
from marketdata.streaming import windows as stream_windows
from marketdata.streaming.analytics import Analytics, TopicSinks
from marketdata.streaming.brokers import bounds, reach, read_committed
from marketdata.streaming.consume import read_back
from marketdata.streaming.encode import messages
from marketdata.streaming.price_moves import teller
from marketdata.streaming.publish import publish
from marketdata.streaming.service import Measures, Progress, serve
from marketdata.tasks import analytics as analytics_task
from marketdata.tasks import dlq
from marketdata.tasks.analytics import load_changes
from tests import waiting
from tests.contract.prices import LATE, batch_of, price, table
from tests.contract.topic import own_topic

DEADLINE = 120.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_windows, "QUIET", stream_windows.SECOND // 2)


@pytest.fixture
def settings(embedded: Settings, settings_for: Callable[..., Settings]) -> Settings:
    return own_analytics(embedded, settings_for)


def own_analytics(embedded: Settings, settings_for: Callable[..., Settings], **other: Any) -> Settings:
    """Settings with topics, a group and a schema of their own."""
    name = uuid.uuid4().hex[:12]
    return own_topic(
        embedded, settings_for, analytics_topic=f"aggregates-{name}", analytics_group=f"analytics-{name}",
        analytics_member="one", analytics_port=0, trino_schema=f"s_{name}", **other,
    )  # fmt: skip


@contextmanager
def running(settings: Settings, tell: Callable[[Any], None] = lambda _: None) -> Iterator[Member]:
    """A member of the group in a thread of this process."""
    member = Member(settings, tell)
    try:
        yield member
    finally:
        member.stop()


class Member:
    def __init__(self, settings: Settings, tell: Callable[[Any], None]) -> None:
        self.measures = Measures("test", "streaming", settings.analytics_group, settings.kafka_topic)
        self.progress = Progress()
        self.failed: BaseException | None = None
        self._stop = threading.Event()
        self.consumer = Analytics(settings, self.measures, self.progress, tell, wake=lambda: None)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until(lambda: self.progress.assigned or self.failed)

    def _run(self) -> None:
        try:
            self.consumer.run(self._stop)
        except BaseException as error:
            self.failed = error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def until(condition: Callable[[], Any]) -> None:
    waiting.until("it comes to this", condition, DEADLINE)


def send(settings: Settings, *values: bytes | None, key: bytes = b"Oil", partition: int | None = None) -> None:
    """Somebody else's messages: no ledger, no transaction."""
    producer = Producer({"bootstrap.servers": settings.require("kafka_brokers"), "partitioner": "murmur2_random"})
    where = {} if partition is None else {"partition": partition}
    for value in values:
        producer.produce(settings.kafka_topic, value, key, **where)
    assert producer.flush(30) == 0


def encoded(*rows: dict[str, Any]) -> list[bytes]:
    with connect() as connection:
        return [value for _, values in messages(connection, COMMODITY_PRICES, table(rows)) for value in values]


def ask(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    with window_store.connected(settings) as postgres:
        return postgres.execute(sql, {"group": settings.analytics_group}).fetchall()


def windows(settings: Settings) -> dict[tuple[str, datetime], tuple[Any, ...]]:
    rows = ask(
        settings,
        "SELECT series, window_start, count, total, min, max, average, first, last, volatility "
        "FROM marketdata.price_window_features WHERE consumer_group = %(group)s",
    )
    return {(series, at): tuple(figures) for series, at, *figures in rows}


def feeds(settings: Settings) -> tuple[int, int, int]:
    """Records, letters and late records of all partitions."""
    ((records, letters, late),) = ask(
        settings,
        "SELECT coalesce(sum(records), 0)::int, coalesce(sum(letters), 0)::int, coalesce(sum(late), 0)::int "
        "FROM marketdata.analytics_feeds WHERE consumer_group = %(group)s",
    )
    return records, letters, late


def told(settings: Settings) -> list[dict[str, Any]]:
    values = read_back(settings, settings.analytics_topic, 1_000_000)
    return [json.loads(value, parse_float=Decimal) for value in values]


def at(minute: int, second: float = 0.0) -> datetime:
    return datetime(2024, 1, 2, 12, tzinfo=UTC) + timedelta(minutes=minute, seconds=second)


def ticks(*prices: str, minute: int = 0, **other: Any) -> list[dict[str, Any]]:
    return [price(at(minute, number), value, **other) for number, value in enumerate(prices)]


def test_published_prices_become_windows_with_their_figures(settings: Settings) -> None:
    rows = [
        *ticks("70", "71.5", "69"),
        *ticks("2000.000001", "2000.000002", series="XAU", commodity="Gold", unit="troy_oz"),
    ]
    publish(COMMODITY_PRICES, batch_of(settings, rows), settings)
    with running(settings):
        until(lambda: len(windows(settings)) == 2)
    oil, gold = windows(settings)["WTI", at(0)], windows(settings)["XAU", at(0)]
    decimals = ("210.5", "69", "71.5", "70.166667", "70", "69")
    assert oil[:-1] == (3, *(Decimal(text) for text in decimals))
    assert float(oil[-1]) == pytest.approx(math.hypot(math.log(71.5 / 70), math.log(69 / 71.5)), abs=1e-12)
    assert gold[4] == Decimal("2000.000002")  # half to even of …0000015
    assert feeds(settings) == (5, 0, 0)


def test_revisions_replace_duplicates_change_nothing_and_late_ones_are_counted(settings: Settings) -> None:
    first = ticks("70", "71", "72")
    later = ticks("50", minute=9)
    revised = [price(at(0, 1), "80", as_of=LATE)]
    with running(settings):
        send(settings, *encoded(*first), *encoded(*first), *encoded(*later), *encoded(*revised))
        until(lambda: windows(settings).get(("WTI", at(0)), (0, 0))[1] == Decimal(222))
        send(settings, *encoded(first[1]), *encoded(price(at(0, 30), "1")))
        until(lambda: windows(settings)["WTI", at(0)][0] == 4)
        until(lambda: feeds(settings)[0] == 10)
    assert windows(settings)["WTI", at(0)][:2] == (4, Decimal(223))
    assert feeds(settings) == (10, 0, 3)


def test_prices_in_another_unit_are_counted_apart(settings: Settings) -> None:
    rows = [*ticks("70", "71"), price(at(0, 5), "9000", unit="tonne"), price(at(0, 6), "72")]
    with running(settings):
        send(settings, *encoded(*rows))
        until(lambda: windows(settings))
    ((count, others, largest, unit),) = ask(
        settings,
        "SELECT count, others, max, unit FROM marketdata.price_window_features WHERE consumer_group = %(group)s",
    )
    assert (count, others, largest, unit) == (3, 1, Decimal(72), "bbl")


def test_a_series_whose_records_lie_in_two_partitions_has_one_window(settings: Settings) -> None:
    rows = ticks("70", "71", "72", "73")
    with running(settings):
        send(settings, *encoded(*rows[:2]), partition=0)
        send(settings, *encoded(*rows[2:]), partition=1)
        until(lambda: windows(settings).get(("WTI", at(0)), (0,))[0] == 4)
        send(settings, *encoded(price(at(0, 40), "1")), partition=2)
        until(lambda: windows(settings)["WTI", at(0)][0] == 5)
    assert windows(settings)["WTI", at(0)][1] == Decimal(287)


def test_restarts_neither_lose_nor_repeat_and_open_windows_are_whole(settings: Settings) -> None:
    # Its minute is over when events say so, however long this takes; no event may be five minutes ahead.
    now = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=3)
    open_ = [price(now + timedelta(seconds=number), "70") for number in range(20)]
    values = encoded(*open_)
    for first in range(0, 20, 5):
        send(settings, *values[first : first + 5])
        with running(settings):
            until(lambda counted=first + 5: feeds(settings)[0] == counted)
    assert windows(settings) == {}  # its minute is not over
    closing = price(now + timedelta(seconds=100), "1")
    with running(settings):
        send(settings, *encoded(closing))
        until(lambda: windows(settings))
    assert windows(settings)["WTI", now][:2] == (20, Decimal(1400))
    assert feeds(settings) == (21, 0, 0)


def test_every_revision_is_told_at_most_once_and_the_last_one_always(settings: Settings) -> None:
    with running(settings) as member:
        sinks = TopicSinks(settings, lambda: member.consumer.feeds)
        for number in range(6):
            send(settings, *encoded(*ticks("70", "71", minute=0)), *encoded(price(at(number, 30), str(number + 1))))
            until(lambda counted=3 * (number + 1): feeds(settings)[0] == counted)
            until(lambda known=number + 1: len(windows(settings)) == known)
            sinks.deliver()
            if number % 2:
                sinks.close()
                sinks = TopicSinks(settings, lambda: member.consumer.feeds)
        sinks.close()
    found = told(settings)
    revisions = Counter((message["record_id"], message["batch_id"]) for message in found)
    assert set(revisions.values()) == {1}
    last = {message["window_start"]: message for message in latest(found)}
    assert len(last) == 6
    assert {Decimal(message["total"]) for message in last.values()} == {row[1] for row in windows(settings).values()}
    assert set(last["2024-01-02T12:00:00.000000Z"]) == {column.name for column in COMMODITY_AGGREGATES.columns}


def test_revisions_of_one_window_told_by_two_members_may_cross_and_as_of_says_which_is_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ticks("70", "71", "72", "73")
    changes = window_sinks.changes
    with running(settings) as member, window_store.connected(settings) as postgres:
        send(settings, *encoded(*rows[:2]), partition=0)
        until(lambda: len(windows(settings)) == 1)
        feeds = {feed.partition: feed for feed in member.consumer.feeds}
        slow, fast = (window_sinks.TopicSink(settings, settings.kafka_topic, feeds[number]) for number in (0, 1))

        def overtaken(*asked: Any) -> Any:
            found = changes(*asked)
            monkeypatch.setattr(window_sinks, "changes", changes)
            send(settings, *encoded(*rows[2:]), partition=1)
            until(lambda: windows(settings)["WTI", at(0)][0] == 4)
            assert fast.deliver(postgres) == 1
            return found

        monkeypatch.setattr(window_sinks, "changes", overtaken)
        assert slow.deliver(postgres) == 1
        slow.close()
        fast.close()
    found = told(settings)
    assert [message["count"] for message in found] == [4, 2]
    assert latest(found) == [found[0]]


def latest(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The revision of each window that counts."""
    ordered = sorted(messages, key=lambda message: datetime.fromisoformat(message["as_of"]))
    return list({message["record_id"]: message for message in ordered}.values())


def test_a_marker_the_client_never_answers_for_is_left_to_itself_and_each_revision_is_told_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As librdkafka does where the coordinator of the group goes away in the middle of the call."""
    monkeypatch.setattr(window_sinks, "MARKER_SECONDS", 0.5)
    never = threading.Event()

    class Silent:
        def __init__(self, producer: Any) -> None:
            self._producer = producer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._producer, name)

        def send_offsets_to_transaction(self, *_: Any) -> None:
            never.wait()

        def __len__(self) -> int:
            return len(self._producer)

    with running(settings) as member:
        send(settings, *encoded(*ticks("70", "71")))
        until(lambda: len(windows(settings)) == 1)
        (feed,) = [feed for feed in member.consumer.feeds if last_change(settings, feed.feed_id)]
        sink = window_sinks.TopicSink(settings, settings.kafka_topic, feed)
        with window_store.connected(settings) as postgres:
            with monkeypatch.context() as patch:
                patch.setattr(window_sinks._Line, "take_over", quiet(window_sinks._Line.take_over, Silent))
                with pytest.raises(UnavailableError, match="marker was not acknowledged"):
                    sink.deliver(postgres)
            monkeypatch.setattr(window_sinks, "MARKER_SECONDS", 15.0)
            assert sink.deliver(postgres) == 1
            assert sink.deliver(postgres) == 0
        sink.close()
        never.set()
    assert len(told(settings)) == 1


def quiet(take_over: Callable[[Any], int], silent: Callable[[Any], Any]) -> Callable[[Any], int]:
    """`take_over` of a line whose producer will not answer for its marker."""

    def call(line: Any) -> int:
        told_before = take_over(line)
        line._producer = silent(line._producer)
        return told_before

    return call


def last_change(settings: Settings, feed_id: int) -> int:
    ((sequence,),) = ask(
        settings,
        f"SELECT sequence FROM marketdata.analytics_feeds WHERE feed_id = {feed_id} AND consumer_group = %(group)s",
    )
    return int(sequence)


def test_poison_goes_to_the_dead_letters_as_it_was_and_the_consumer_goes_on(settings: Settings) -> None:
    poison = [b"\xff\x00 not json", b"", None, encoded(price(at(0)))[0][:-9]]
    with running(settings) as member:
        send(settings, *encoded(price(at(0))), *poison, *encoded(price(at(1))), partition=1)
        until(lambda: len(windows(settings)) == 2)
        until(lambda: feeds(settings) == (2, 4, 0))
        sinks = TopicSinks(settings, lambda: member.consumer.feeds)
        assert sinks.deliver() == 6
        assert sinks.deliver() == 0
        sinks.close()
    letters = [message for _, message in dead_letters(settings)]
    assert [letter.value() for letter in letters] == poison
    headers = [dict(letter.headers() or []) for letter in letters]
    assert [header["offset"] for header in headers] == [b"1", b"2", b"3", b"4"]
    assert {(header["topic"], header["partition"]) for header in headers} == {(settings.kafka_topic.encode(), b"1")}
    assert "malformed" in headers[0]["error"].decode()


def dead_letters(settings: Settings) -> list[tuple[int, Any]]:
    topic = f"{settings.kafka_topic}-dlq"
    spans = bounds(reach(settings), topic)
    return [(m.partition() or 0, m) for some in read_committed(settings, topic, spans) for m in some]


def test_letters_are_told_and_replayed_some_bytes_at_a_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = window_sinks._Line.tell
    together: list[int] = []

    def noted(line: Any, rows: Any, letters: Any, upto: int) -> None:
        together.append(len(letters))
        tell(line, rows, letters, upto)

    monkeypatch.setattr(window_sinks._Line, "tell", noted)
    monkeypatch.setattr(window_sinks, "LETTERS_AT_ONCE", 2_500)
    monkeypatch.setattr(window_store, "ASKED_BYTES", 2_500)
    with running(settings) as member:
        send(settings, *[b"broken".ljust(1_000)] * 5, *encoded(*ticks("70")), b"x" * 9_000, b"broken", partition=1)
        until(lambda: len(windows(settings)) == 1 and feeds(settings) == (1, 7, 0))
        owned = member.consumer.feeds
        sinks = TopicSinks(settings, lambda: owned)
        assert sinks.deliver() == 8
        sinks.close()
    assert together == [3, 3, 1]
    assert len(dead_letters(settings)) == 7
    dlq.replay(settings, [], every=True)
    store = window_store.WindowStore(settings, settings.kafka_topic, stream_windows.Book())
    ((_, asked),) = store.asked(owned).items()
    store.close()
    assert len(asked) == 3


def test_a_letter_larger_than_its_topic_takes_is_told_without_its_value_and_kept(
    settings: Settings, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    large = b"0" * 2_000_000  # brokers measure what is left of it when it is compressed
    options = {"compression.type": "zstd", "message.max.bytes": 4_000_000}
    producer = Producer({"bootstrap.servers": settings.require("kafka_brokers"), **options})
    for value in (large, b"broken"):
        producer.produce(settings.kafka_topic, value, b"Oil", 1)
    assert producer.flush(30) == 0
    with running(settings) as member:
        until(lambda: feeds(settings) == (0, 2, 0))
        sinks = TopicSinks(settings, lambda: member.consumer.feeds)
        assert sinks.deliver() == 2
        sinks.close()
    letters = [message for _, message in dead_letters(settings)]
    first, second = sorted(letters, key=lambda letter: dict(letter.headers() or [])["offset"])
    assert (first.key(), first.value(), second.key(), second.value()) == (None, None, b"Oil", b"broken")
    ((letter_id,),) = ask(settings, f"SELECT letter_id {LETTERS} AND message_offset = 0")
    assert f"marketdata dlq show {letter_id}" in dict(first.headers() or [])["kept"].decode()
    assert "kept" not in dict(second.headers() or [])
    dlq.show(settings, letter_id)
    assert large in capfdbinary.readouterr().out


def test_a_letter_is_replayed_once_by_the_consumer(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from marketdata.streaming import decode

    refusing = decode._times

    def refuse(name: str, texts: list[str]) -> Any:
        if texts:
            raise decode._UnreadableError("this version cannot read it")
        return refusing(name, texts)

    monkeypatch.setattr(decode, "_times", refuse)
    with running(settings):
        send(settings, *encoded(price(at(0), "70")), b"broken")
        until(lambda: feeds(settings)[1] == 2)
    dlq.show_list(settings, 10)
    assert "this version cannot read it" in capsys.readouterr().out
    monkeypatch.setattr(decode, "_times", refusing)
    with running(settings):
        dlq.replay(settings, [], every=True)
        until(lambda: windows(settings))
        until(lambda: not ask(settings, f"SELECT 1 {LETTERS} AND asked_at IS NOT NULL"))
        with pytest.raises(UsageError, match="have been replayed"):
            dlq.replay(settings, [letter for (letter,) in ask(settings, f"SELECT letter_id {LETTERS}")], every=False)
        until(lambda: not ask(settings, f"SELECT 1 {LETTERS} AND asked_at IS NOT NULL"))
    assert windows(settings)["WTI", at(0)][:2] == (1, Decimal(70))
    states = ask(settings, f"SELECT replayed_at IS NOT NULL, reason {LETTERS} ORDER BY letter_id")
    assert [replayed for replayed, _ in states] == [True, False]
    assert "malformed" in states[1][1]


LETTERS = (
    "FROM marketdata.dead_letters JOIN marketdata.analytics_feeds USING (feed_id) WHERE consumer_group = %(group)s"
)


def test_the_lake_has_every_window_once_and_a_repeated_load_changes_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(settings):
        send(settings, *encoded(*ticks("70", "71"), *ticks("72", minute=1)))
        until(lambda: len(windows(settings)) == 2)
        assert load_changes(settings) == 2
        send(settings, *encoded(price(at(0, 9), "99")))
        until(lambda: windows(settings)["WTI", at(0)][0] == 3)
    with window_store.connected(settings) as postgres:
        marks = postgres.execute("SELECT feed_id, loaded FROM marketdata.analytics_feeds").fetchall()
    assert load_changes(settings) == 1
    before = open_lakehouse(settings).history(COMMODITY_AGGREGATES)
    with window_store.connected(settings) as postgres:
        for feed_id, loaded in marks:  # as if the process had died before it noted the load
            postgres.execute("UPDATE marketdata.analytics_feeds SET loaded = %s WHERE feed_id = %s", (loaded, feed_id))
    load_changes(settings)
    assert load_changes(settings) == 0
    assert open_lakehouse(settings).history(COMMODITY_AGGREGATES) == before
    rows = open_lakehouse(settings).query("SELECT window_start, count, total FROM commodity_aggregates ORDER BY 1")
    assert [(row["count"], row["total"]) for row in rows.to_pylist()] == [(3, Decimal(240)), (1, Decimal(72))]


def test_a_change_that_has_the_number_of_one_that_was_lost_is_loaded_too(settings: Settings) -> None:
    with running(settings):
        send(settings, *encoded(*ticks("70")), partition=1)
        until(lambda: windows(settings))
    assert load_changes(settings) == 1
    with window_store.connected(settings) as postgres, postgres.transaction():
        lose_windows(settings, postgres)
        postgres.execute(
            "UPDATE marketdata.analytics_feeds SET sequence = 0, loaded = 0 WHERE consumer_group = %s",
            (settings.analytics_group,),
        )
    with running(settings):
        send(settings, *encoded(*ticks("71", minute=5)), partition=1)
        until(lambda: windows(settings))
    assert load_changes(settings) == 1
    rows = open_lakehouse(settings).query("SELECT last FROM commodity_aggregates ORDER BY window_start")
    assert [row["last"] for row in rows.to_pylist()] == [Decimal(70), Decimal(71)]


def test_a_series_under_two_commodities_is_loaded_once_as_it_was_last(settings: Settings) -> None:
    with running(settings):
        send(settings, *encoded(*ticks("70", commodity="Copper")))
        until(lambda: len(ask(settings, COMMODITIES)) == 1)
        send(settings, *encoded(*ticks("71", commodity="Gold"), *ticks("72", minute=1)))
        until(lambda: len(ask(settings, COMMODITIES)) == 3)
    assert load_changes(settings) == 2
    rows = open_lakehouse(settings).query("SELECT commodity, last FROM commodity_aggregates ORDER BY window_start")
    assert [tuple(row.values()) for row in rows.to_pylist()] == [("Gold", Decimal(71)), ("Oil", Decimal(72))]


COMMODITIES = "SELECT commodity FROM marketdata.price_window_features WHERE consumer_group = %(group)s"


def test_a_load_whose_process_was_stopped_does_not_hold_the_lock_for_ever(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def limit(_settings: Settings, postgres: Any) -> None:
        found.append(postgres.execute("SHOW idle_in_transaction_session_timeout").fetchone())

    monkeypatch.setattr(analytics_task, "_unloaded", limit)
    assert load_changes(settings) == 0
    assert found == [("15min",)]


def test_a_recent_move_is_told_once_across_restarts_and_history_is_not(settings: Settings) -> None:
    name = uuid.uuid4().hex[:8]
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    old = [price(at(0), "10", series=name), price(at(1), "100", series=name)]
    recent = [price(today - timedelta(days=1), "100", series=name), price(today, "94", series=name)]
    with running(settings, teller(settings)):
        send(settings, *encoded(*old, *recent))
        until(lambda: len(windows(settings)) == 4)
    again = settings.model_copy(update={"analytics_group": f"again-{name}", "analytics_percent": 5})
    with running(again, teller(again)):
        until(lambda: len(windows(again)) == 4)
    notices = ask(
        settings, f"SELECT message FROM marketdata.notices WHERE kind = 'price' AND run_id LIKE '%%/{name}/%%'"
    )
    ((message,),) = notices
    assert "moved -6.00 % since the price before, to 94 USD/bbl" in message["text"]


def test_an_older_owner_stores_nothing(settings: Settings) -> None:
    with running(settings) as first:
        until(lambda: len(first.consumer.feeds) == 3)
        with window_store.connected(settings) as postgres:
            postgres.execute(
                "UPDATE marketdata.analytics_feeds SET epoch = epoch + 1 WHERE consumer_group = %s",
                (settings.analytics_group,),
            )
        send(settings, *encoded(*ticks("70")))
        until(lambda: first.failed)
        assert isinstance(first.failed, TryLaterError)
        assert windows(settings) == {}
    with running(replace_member(settings, "two")):
        until(lambda: windows(settings))
    assert feeds(settings) == (1, 0, 0)


def test_postgres_that_has_gone_back_is_given_again_what_it_lost(settings: Settings) -> None:
    with running(settings) as first:
        until(lambda: len(first.consumer.feeds) == 3)
        before = ask(
            settings,
            "SELECT next_offset, resume_offset, sequence, updated_at, feed_id FROM marketdata.analytics_feeds "
            "WHERE consumer_group = %(group)s",
        )
        send(settings, *encoded(*ticks("70", "71")), partition=1)
        until(lambda: windows(settings))
        with window_store.connected(settings) as postgres, postgres.transaction():
            for row in before:
                postgres.execute(
                    "UPDATE marketdata.analytics_feeds SET next_offset = %s, resume_offset = %s, sequence = %s, "
                    "updated_at = %s, records = 0 WHERE feed_id = %s",
                    row,
                )
            lose_windows(settings, postgres)  # a series is stored before its first window, and may be there
        send(settings, *encoded(*ticks("72", minute=5)), partition=1)
        until(lambda: first.failed)
    assert isinstance(first.failed, TryLaterError)
    assert "has less than this member stored" in first.failed.message
    assert windows(settings) == {}
    with running(replace_member(settings, "two")):
        until(lambda: len(windows(settings)) == 2)
    assert feeds(settings) == (3, 0, 0)


def test_a_series_that_postgres_has_lost_is_not_written_without_it(settings: Settings) -> None:
    with running(settings) as first:
        send(settings, *encoded(*ticks("70")), partition=1)
        until(lambda: windows(settings))
        with window_store.connected(settings) as postgres, postgres.transaction():
            lose_windows(settings, postgres)
            postgres.execute(
                "DELETE FROM marketdata.price_series WHERE consumer_group = %s", (settings.analytics_group,)
            )
        send(settings, *encoded(*ticks("71", minute=5)), partition=1)
        until(lambda: first.failed)
    assert isinstance(first.failed, TryLaterError)
    with running(replace_member(settings, "two")):
        until(lambda: windows(settings))
    assert list(windows(settings)) == [("WTI", at(5))]


def lose_windows(settings: Settings, postgres: psycopg.Connection[Any]) -> None:
    postgres.execute(
        "DELETE FROM marketdata.price_windows w USING marketdata.price_series s "
        "WHERE w.series_id = s.series_id AND s.consumer_group = %s",
        (settings.analytics_group,),
    )


def replace_member(settings: Settings, name: str) -> Settings:
    return settings.model_copy(update={"analytics_member": name})


def test_partitions_are_handed_on_also_while_postgres_is_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise UnavailableError("PostgreSQL does not answer")

    with running(settings) as first:
        until(lambda: len(first.consumer.feeds) == 3)
        monkeypatch.setattr(first.consumer._store, "commit", away)
        with running(replace_member(settings, "two")) as second:
            until(lambda: second.consumer.feeds or first.failed)
            until(lambda: len(first.consumer.feeds) + len(second.consumer.feeds) == 3 or first.failed)
            monkeypatch.undo()
            for partition in range(3):
                send(settings, *encoded(price(at(partition))), partition=partition)
            until(lambda: feeds(settings)[0] == 3 or first.failed)
    assert (first.failed, second.failed) == (None, None)


def test_two_members_of_one_name_the_older_one_ends(settings: Settings) -> None:
    with running(settings) as older, running(settings):
        until(lambda: older.failed)
    assert isinstance(older.failed, TryLaterError)
    assert "ANALYTICS_MEMBER" in older.failed.remedy


def test_a_partition_whose_leader_is_away_when_it_is_assigned_is_read_all_the_same(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confluent_kafka import KafkaError, KafkaException

    class LeaderAway:
        def __init__(self, consumer: Any) -> None:
            self.incremental_assign = consumer.incremental_assign

        def get_watermark_offsets(self, *_: Any, **__: Any) -> Any:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    assigned = Analytics._assigned
    monkeypatch.setattr(
        Analytics, "_assigned", lambda self, consumer, given: assigned(self, LeaderAway(consumer), given)
    )  # type: ignore[arg-type]
    send(settings, *encoded(*ticks("70", "71")))
    with running(settings) as member:
        until(lambda: feeds(settings)[0] == 2 or member.failed)
    assert member.failed is None


def test_a_missing_topic_is_named(settings: Settings) -> None:
    with running(settings.model_copy(update={"kafka_topic": "nowhere"})) as member:
        assert isinstance(member.failed, UsageError)
        assert "nowhere" in str(member.failed)


def test_postgres_that_closes_its_connections_is_asked_again(settings: Settings) -> None:
    with running(settings):
        send(settings, *encoded(*ticks("70")))
        until(lambda: feeds(settings)[0] == 1)
        with psycopg.connect(settings.require("postgres_dsn"), autocommit=True) as postgres:
            postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'marketdata-analytics' AND pid <> pg_backend_pid()"
            )
        send(settings, *encoded(*ticks("71", minute=1)))
        until(lambda: len(windows(settings)) == 2)
    assert feeds(settings) == (2, 0, 0)


def test_health_and_metrics_say_how_it_is(settings: Settings) -> None:
    with running(settings) as member, serve(0, member.measures.registry, member.progress) as port:
        send(settings, *encoded(*ticks("70", "71")), b"broken", partition=0)
        until(lambda: feeds(settings) == (2, 1, 0))
        until(lambda: get(port, "/health/ready") == (200, "caught up"))
        assert get(port, "/health/live")[0] == 200
        assert get(port, "/nothing")[0] == 404
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            found = answer.read().decode()
        of = f'group="{settings.analytics_group}",partition="0",topic="{settings.kafka_topic}"'
        for line in (
            'records_processed_total{exchange="none",job_name="test",layer="streaming"} 2.0',
            'dlq_records_total{exchange="none",job_name="test",layer="streaming"} 1.0',
            f"kafka_consumer_lag_records{{{of}}} 0.0",
            f"kafka_consumer_lag_seconds{{{of}}} 0.0",
            'e2e_latency_seconds_bucket{job_name="test",layer="streaming",le="1800.0"} 0.0',
            'e2e_latency_seconds_count{job_name="test",layer="streaming"} 2.0',
        ):
            assert line in found, line
        assert "batch_processing_duration_seconds_bucket" in found
    assert member.failed is None
    assert member.progress.ready() == (False, "stopping")
    assert not Progress(turned=time.monotonic() - 61).alive()[0]
    assert not Progress(assigned=True, advanced=time.monotonic() - 31).ready()[0]
    assert Progress(assigned=True, advanced=time.monotonic() - 29).ready()[0]


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, json.loads(answer.read())["says"]
    except urllib.error.HTTPError as error:
        body = error.read()
        return error.code, json.loads(body)["says"] if body else ""
