"""Exactly once, on a real broker: what is in the topic after publishing, again, late, twice at once."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import confluent_kafka
import psycopg
import pytest
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from marketdata import postgres
from marketdata.batches import Batch
from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import BadDataError, TryLaterError, UnavailableError, UsageError
from marketdata.settings import Settings
from marketdata.streaming import brokers, ledger, snapshots, topics
from marketdata.streaming import publish as publishing
from marketdata.streaming.brokers import outcome, reach
from marketdata.streaming.consume import read_back
from marketdata.streaming.publish import Published, producer_settings, publish
from tests.contract.prices import EARLY, LATE, batch_of, price
from tests.contract.topic import delete, ends, held, held_of, identities, known_everywhere, own_topic, state
from tests.waiting import until


@pytest.fixture
def settings(kafka: Settings, settings_for: Callable[..., Settings]) -> Settings:
    return own_topic(kafka, settings_for)


def run(settings: Settings, *rows: dict[str, Any], parts: int = 1) -> Published:
    return publish(COMMODITY_PRICES, batch_of(settings, rows, parts=parts), settings)


def counts(published: Published) -> tuple[int, int, int]:
    return published.published, published.already_published, published.superseded


def days(count: int, **other: Any) -> list[dict[str, Any]]:
    first = datetime(2024, 1, 1, tzinfo=UTC)
    return [price(first + timedelta(days=number), f"{50 + number}.5", **other) for number in range(count)]


def test_a_batch_is_in_the_topic_once_with_all_its_columns(settings: Settings) -> None:
    rows = [
        price("2024-01-02", "123456789012.123457", volume=Decimal("0.5")),
        price("2024-01-03", "70.1", commodity="Natural Gas", series="Henry Hub"),
        price("2024-01-04", "70.2", commodity="Copper", series="LME"),
    ]
    published = run(settings, *rows)
    assert counts(published) == (3, 0, 0)
    assert not published.repeated
    values = read_back(settings, settings.kafka_topic, 10)
    assert any(b'"price":123456789012.123457,' in value for value in values)
    by_id = {message["record_id"]: message for message in held(settings)}
    assert set(by_id) == {row["record_id"] for row in rows}
    for row in rows:
        message = by_id[row["record_id"]]
        assert message["price"] == row["price"]
        assert message["volume"] == row["volume"]
        assert message["timestamp"] == row["event_time"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        assert len(message) == len(COMMODITY_PRICES.columns)


def test_a_key_s_records_are_in_one_partition_in_order_and_within_the_offsets_said(settings: Settings) -> None:
    names = ["Gold", "Silver", "Copper", "Oil", "Natural Gas"]
    rows = [dict(row, commodity=names[number % 5]) for number, row in enumerate(days(200))]
    published = run(settings, *rows)
    assert {at.partition for at in published.offsets} == {0, 1, 2}
    spans = {at.partition: (at.first, at.last + 1) for at in published.offsets}
    seen: dict[bytes, list[tuple[int, str]]] = {}
    for messages in brokers.read_committed(settings, settings.kafka_topic, spans):
        for message in messages:
            key, value = message.key(), message.value()
            seen.setdefault(key, []).append((message.partition(), json.loads(value)["record_id"]))
            assert json.loads(value)["commodity"].encode() == key
    assert sum(len(found) for found in seen.values()) == 200
    for name in names:
        found = seen[name.encode()]
        assert len({partition for partition, _ in found}) == 1
        assert [record for _, record in found] == [row["record_id"] for row in rows if row["commodity"] == name]
    for number, (first, end) in spans.items():
        assert sum(1 for found in seen.values() if found[0][0] == number for _ in found) == end - first


def test_a_full_queue_holds_publishing_up_and_neither_loses_nor_reorders(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The producer takes ten messages at a time: all others find its queue full first."""
    waits = 0

    class Impatient(confluent_kafka.Producer):
        def poll(self, timeout: float = -1) -> int:
            nonlocal waits
            waits += timeout > 0
            return super().poll(timeout)

    def tight(*given: Any) -> dict[str, Any]:
        return {**producer_settings(*given), "queue.buffering.max.messages": 10, "linger.ms": 0}

    monkeypatch.setattr(confluent_kafka, "Producer", Impatient)
    monkeypatch.setattr(publishing, "producer_settings", tight)
    rows = days(500)
    published = run(settings, *rows, parts=3)
    assert waits >= 10
    assert counts(published) == (500, 0, 0)
    spans = {at.partition: (at.first, at.last + 1) for at in published.offsets}
    read = brokers.read_committed(settings, settings.kafka_topic, spans)
    values = [json.loads(message.value() or b"") for messages in read for message in messages]
    dealt = [row for part in range(3) for row in rows[part::3]]
    assert [value["record_id"] for value in values] == [row["record_id"] for row in dealt]
    assert [at.last - at.first + 1 for at in published.offsets] == [500]


def test_a_delta_that_cannot_be_written_publishes_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written beside sending: what goes wrong there must stop the commit."""

    def refuse(*_given: Any) -> None:
        raise UnavailableError("the lake is full", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "write_delta", refuse)
        with pytest.raises(UnavailableError, match="the lake is full"):
            run(settings, *days(10), parts=3)
    assert held(settings) == []
    assert counts(run(settings, *days(10))) == (10, 0, 0)


def test_a_repeated_call_changes_nothing_and_returns_the_same_counts(settings: Settings) -> None:
    run(settings, *days(5, batch="b0"))
    batch = batch_of(settings, days(8, batch="b1", as_of=LATE))
    first = publish(COMMODITY_PRICES, batch, settings)
    before = ends(settings)
    again = publish(COMMODITY_PRICES, batch, settings)
    assert counts(again) == counts(first) == (3, 5, 0)
    assert (again.offsets, again.ledger_offset, again.delta) == (first.offsets, first.ledger_offset, first.delta)
    assert (first.repeated, again.repeated) == (False, True)
    assert ends(settings) == before


def test_the_same_rows_in_another_batch_add_a_marker_and_no_record(settings: Settings) -> None:
    run(settings, *days(5, batch="b0"))
    before = ends(settings)
    published = run(settings, *days(5, batch="b1", as_of=LATE))
    assert counts(published) == (0, 5, 0)
    assert (published.offsets, published.delta) == ((), ())
    assert ends(settings)[:3] == before[:3]
    assert ledger.find(settings, ledger.read(settings, COMMODITY_PRICES, "default"), "b1") is not None
    assert len(held_of(settings, "b1")) == 0


def test_a_batch_without_rows_needs_no_broker(settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(kafka_brokers="127.0.0.1:1")
    published = run(settings)
    assert counts(published) == (0, 0, 0)
    assert published.ledger_offset is None


LOW, HIGH = "1" * 64, "f" * 64


@pytest.mark.parametrize(
    ("first", "second", "wins"),
    [
        ((EARLY, LOW), (LATE, HIGH), "published"),
        ((EARLY, HIGH), (LATE, LOW), "published"),
        ((LATE, LOW), (EARLY, HIGH), "superseded"),
        ((EARLY, LOW), (EARLY, HIGH), "published"),
        ((EARLY, HIGH), (EARLY, LOW), "superseded"),
        ((EARLY, LOW), (LATE, LOW), "already_published"),
        ((LATE, LOW), (EARLY, LOW), "already_published"),
    ],
)
def test_a_change_has_another_content_and_a_greater_as_of(
    first: tuple[datetime, str], second: tuple[datetime, str], wins: str, settings: Settings
) -> None:
    run(settings, price(batch="b1", as_of=first[0], content_hash=first[1]))
    published = run(settings, price(batch="b2", as_of=second[0], content_hash=second[1]))
    assert [name for name in ("published", "already_published", "superseded") if getattr(published, name)] == [wins]
    row = price()
    current = second if wins == "published" else first
    assert state(settings, [row]) == {row["record_id"]: (current[1], current[0])}
    assert sum(identities(held(settings)).values()) == (2 if wins == "published" else 1)


def test_random_histories_agree_with_a_plain_model(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revisions in any order, in several parts, across snapshots: the topic has exactly the model's changes."""
    monkeypatch.setattr(snapshots, "MARKERS", 4)
    chance = random.Random(11)  # noqa: S311
    current: dict[str, tuple[datetime, str]] = {}
    changes: list[tuple[str, str]] = []
    rows: list[dict[str, Any]] = []
    for number in range(11):
        batch = []
        wanted = {"published": 0, "already_published": 0, "superseded": 0}
        for day in chance.sample(range(1, 29), chance.randrange(1, 20)):
            as_of = EARLY + timedelta(days=chance.randrange(3))
            row = price(f"2024-01-{day:02}", f"{chance.randrange(3)}.5", as_of=as_of, batch=f"b{number}")
            batch.append(row)
            known = current.get(row["record_id"])
            new = (as_of, row["content_hash"])
            if known and known[1] == new[1]:
                wanted["already_published"] += 1
            elif known and known > new:
                wanted["superseded"] += 1
            else:
                wanted["published"] += 1
                current[row["record_id"]] = new
                changes.append((row["record_id"], row["content_hash"]))
        published = run(settings, *batch, parts=min(3, len(batch)))
        assert counts(published) == tuple(wanted.values())
        rows += batch
    assert sorted(identities(held(settings)).elements()) == sorted(changes)
    assert state(settings, rows) == {record: (content, as_of) for record, (as_of, content) in current.items()}


def test_what_went_in_comes_out_for_reconciliation(settings: Settings) -> None:
    first, second = days(30, batch="b1"), days(40, batch="b2", as_of=LATE)
    run(settings, *first, parts=3)
    run(settings, *second)
    for batch_id, rows in (("b1", first), ("b2", second[30:])):
        got = held_of(settings, batch_id).to_pylist()
        assert sorted((row["record_id"], row["content_hash"]) for row in got) == sorted(
            (row["record_id"], row["content_hash"]) for row in rows
        )
    assert len(held_of(settings, "never")) == 0
    assert set(state(settings, second)) == {row["record_id"] for row in second}
    assert state(settings, [price("1999-01-01")]) == {}


def test_tenants_share_a_topic_and_know_nothing_of_each_other(settings: Settings) -> None:
    other = settings.model_copy(update={"tenant": "other"})
    mine, theirs = days(4), [dict(row, tenant="other", batch_id="t1") for row in days(4)]
    run(settings, *mine)
    batch = batch_of(settings, theirs)
    batch = replace(batch, manifest=replace(batch.manifest, tenant="other"))
    assert counts(publish(COMMODITY_PRICES, batch, other)) == (4, 0, 0)
    assert len(held(settings)) == 8
    assert len(held_of(settings, "b1")) == 4
    assert len(held_of(other, "t1")) == 4
    assert len(held_of(other, "b1")) == 0


def test_a_record_that_is_twice_in_the_batch_publishes_nothing(settings: Settings) -> None:
    rows = [*days(10), price(days(10)[3]["event_time"], "999")]
    with pytest.raises(BadDataError, match=rows[3]["record_id"]):
        run(settings, *rows, parts=2)
    assert held(settings) == []
    assert counts(run(settings, *days(10, batch="b2"))) == (10, 0, 0)


def test_a_batch_of_another_dataset_is_refused(settings: Settings) -> None:
    other = replace(COMMODITY_PRICES, name="other_prices")
    with pytest.raises(UsageError, match="batch of commodity_prices, not of other_prices"):
        publish(other, batch_of(settings, days(1)), settings)


def test_naughty_strings_and_18_digits_survive_the_topic(settings: Settings, shared_data: Path) -> None:
    naughty = json.loads((shared_data / "bad" / "blns.json").read_text("utf-8"))
    first = datetime(2024, 1, 1, tzinfo=UTC)
    rows = [
        price(first + timedelta(hours=number), "999999999999.999999", series=f"{number} {text}", commodity=text or "-")
        for number, text in enumerate(naughty)
    ]
    assert counts(run(settings, *rows)) == (len(rows), 0, 0)
    assert {
        message["record_id"]: (message["series"], message["commodity"], str(message["price"]))
        for message in held(settings)
    } == {row["record_id"]: (row["series"], row["commodity"], "999999999999.999999") for row in rows}


def test_a_message_the_broker_refuses_publishes_nothing(settings: Settings) -> None:
    """One record in the middle, which reports to nobody, is too large: the transaction must not commit without it."""
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

    cluster = reach(settings)
    entry = ConfigEntry("max.message.bytes", "5000", incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ConfigResource.Type.TOPIC, settings.kafka_topic, incremental_configs=[entry])
    outcome(cluster.admin.incremental_alter_configs([topic])[topic], cluster, "making it small")
    known_everywhere(settings, settings.kafka_topic, "max.message.bytes", "5000")
    noise = "".join(random.Random(3).choices("abcdefghijklmnop0123456789", k=20_000))  # noqa: S311 - doesn't compress
    rows = [price(f"2024-01-{day:02}", series=noise if day == 2 else "WTI") for day in (1, 2, 3)]
    with pytest.raises(UnavailableError, match="nothing of it is visible"):
        run(settings, *rows)
    assert held(settings) == []


def test_a_missing_topic_or_ledger_is_named(kafka: Settings, settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(kafka_brokers=kafka.require("kafka_brokers"), kafka_topic=f"none-{uuid.uuid4().hex[:8]}")
    with pytest.raises(UsageError, match=f"topic {settings.kafka_topic} does not exist.*marketdata topics apply"):
        run(settings, price())


def test_a_ledger_that_lost_its_beginning_stops_publishing(settings: Settings) -> None:
    from confluent_kafka import TopicPartition

    run(settings, *days(3, batch="b1"))
    cluster = reach(settings)
    gone = TopicPartition(f"{settings.kafka_topic}-ledger", 0, 1)
    outcome(cluster.admin.delete_records([gone])[gone], cluster, "losing the beginning")
    with pytest.raises(UsageError, match=r"begins at offset 1.*published twice"):
        run(settings, *days(3, batch="b2"))


def test_a_lost_delta_stops_publishing_and_is_named(settings: Settings, tmp_path: Path) -> None:
    published = run(settings, *days(3, batch="b1"))
    (tmp_path / "lake" / published.delta[0].path).unlink()
    with pytest.raises(BadDataError, match=f"{published.delta[0].sha256}.*missing"):
        run(settings, *days(3, batch="b2", as_of=LATE))
    assert len(held(settings)) == 3


# Who else publishes at the same time


class OldTry:
    """A publish in a thread that falls asleep before a moment of its transaction; what became of it."""

    def __init__(self, settings: Settings, batch: Batch, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.published: Published | None = None
        self.failure: BaseException | None = None
        self._asleep, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._publish, args=(settings, batch))
        original = getattr(publishing._Transaction, before)

        def sleepy(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is self._thread and not self._wake.is_set():
                self._asleep.set()
                assert self._wake.wait(60)
            return original(*args, **kwargs)

        monkeypatch.setattr(publishing._Transaction, before, sleepy)
        self._thread.start()
        assert self._asleep.wait(60)

    def wake(self) -> None:
        self._wake.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _publish(self, settings: Settings, batch: Batch) -> None:
        try:
            self.published = publish(COMMODITY_PRICES, batch, settings)
        except BaseException as error:
            self.failure = error


@pytest.mark.parametrize("asleep_before", ["__enter__", "produce", "flush", "commit"])
def test_an_old_try_that_wakes_up_late_is_fenced(
    asleep_before: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(settings, days(50), parts=2)
    old = OldTry(settings, batch, asleep_before, monkeypatch)
    assert counts(publish(COMMODITY_PRICES, batch, settings)) == (50, 0, 0)
    old.wake()
    assert isinstance(old.failure, TryLaterError), old.failure
    assert "another try has taken over" in str(old.failure)
    assert identities(held(settings)) == {(row["record_id"], row["content_hash"]): 1 for row in days(50)}
    assert publish(COMMODITY_PRICES, batch, settings).repeated


def test_an_old_try_whose_client_loses_the_reason_is_told_that_it_is_fenced(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then the client fails without saying why, which Python makes a SystemError of no cause."""
    fenced = threading.Event()

    class Forgetful(confluent_kafka.Producer):
        def flush(self, timeout: float = -1) -> int:
            if not fenced.is_set():
                return super().flush(timeout)
            with suppress(confluent_kafka.KafkaException, SystemError):
                super().flush(timeout)
            raise SystemError("flush returned NULL without setting an exception")

    monkeypatch.setattr(confluent_kafka, "Producer", Forgetful)
    batch = batch_of(settings, days(50))
    old = OldTry(settings, batch, "flush", monkeypatch)
    assert counts(publish(COMMODITY_PRICES, batch, settings)) == (50, 0, 0)
    fenced.set()
    old.wake()
    assert isinstance(old.failure, TryLaterError), old.failure
    assert len(held(settings)) == 50


def test_the_ledger_is_read_after_the_fence(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another try publishes before this one takes over must be known to it, else it is published twice."""
    old = OldTry(settings, batch_of(settings, days(50, batch="b1")), "fence", monkeypatch)
    assert counts(run(settings, *days(50, batch="b2"))) == (50, 0, 0)
    old.wake()
    assert old.published is not None, old.failure
    assert counts(old.published) == (0, 50, 0)
    assert identities(held(settings)) == {(row["record_id"], row["content_hash"]): 1 for row in days(50)}


@pytest.fixture
def old_end(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], float]:
    """Two batches; from now on, for some seconds, the ledger's end is told as it was after the first."""
    run(settings, *days(3))
    topic = topics.ledger_topic(settings, COMMODITY_PRICES)
    old = brokers.bounds(reach(settings), topic)
    run(settings, *days(5, batch="b2", as_of=LATE))

    def tell(seconds: float) -> float:
        until = time.monotonic() + seconds
        asked: Any = lambda cluster, name: old if time.monotonic() < until else brokers.bounds(cluster, name)  # noqa: E731
        monkeypatch.setattr(ledger, "bounds", asked)
        return until

    return tell


def test_what_was_decided_by_a_ledger_read_in_part_is_not_published(
    settings: Settings, old_end: Callable[[float], float]
) -> None:
    """As after a leader was cut off: until it learns of its successor it tells its own old end."""
    before = identities(held(settings))
    old_end(60)
    for batch in ("b2", "b3"):
        with pytest.raises(TryLaterError, match=r"did not know its last markers; nothing was published"):
            run(settings, *days(5, batch=batch, as_of=LATE))
    assert identities(held(settings)) == before
    old_end(0)
    assert run(settings, *days(5, batch="b2", as_of=LATE)).repeated
    assert run(settings, *days(6, batch="b4", as_of=LATE)).published == 1


def test_other_tenants_markers_since_are_no_hindrance(settings: Settings, old_end: Callable[[float], float]) -> None:
    old_end(60)
    other = settings.model_copy(update={"tenant": "other"})
    batch = batch_of(settings, [dict(row, tenant="other", batch_id="t1") for row in days(4)])
    batch = replace(batch, manifest=replace(batch.manifest, tenant="other"))
    assert counts(publish(COMMODITY_PRICES, batch, other)) == (4, 0, 0)


def test_a_published_batch_is_looked_for_until_the_ledger_knows_it(
    settings: Settings, old_end: Callable[[float], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    known_at = old_end(1)
    fold, marker = ledger.read_with(settings, COMMODITY_PRICES, "b2")
    assert time.monotonic() > known_at
    assert (fold.batches.keys(), marker.batch_id, marker.published) == ({"b1", "b2"}, "b2", 2)
    monkeypatch.setattr(ledger, "OLD_LEADER_SECONDS", 1)
    old_end(60)
    with pytest.raises(TryLaterError, match=r"does not know batch b2.*nothing was changed.*publish was skipped"):
        ledger.read_with(settings, COMMODITY_PRICES, "b2")


class Untold:
    """A message whose offset the broker did not tell."""

    def offset(self) -> None:
        return None


@pytest.mark.parametrize(("untold", "says"), [(True, "an offset that its broker did not tell"), (False, "0;")])
def test_a_marker_that_does_not_lie_behind_what_was_read_proves_nothing(
    untold: bool, says: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a message the broker had already, or of a ledger that was made anew in between."""
    read = ledger.read

    class Producer(confluent_kafka.Producer):
        def produce(self, *given: Any, on_delivery: Any = None, **named: Any) -> None:
            tell = (lambda error, _: on_delivery(error, Untold())) if on_delivery and untold else on_delivery
            super().produce(*given, **named, **({"on_delivery": tell} if tell else {}))

    def more(*given: Any) -> Any:
        fold = read(*given)
        return fold if untold else replace(fold, end=fold.end + 1)

    with monkeypatch.context() as patch:
        patch.setattr(confluent_kafka, "Producer", Producer)
        patch.setattr(ledger, "read", more)
        with pytest.raises(TryLaterError, match=f"lies at {says}.*nothing was published"):
            run(settings, *days(5))
    assert held(settings) == []
    assert counts(run(settings, *days(5))) == (5, 0, 0)


def test_markers_are_written_where_the_ledger_is_read(settings: Settings) -> None:
    """Whatever partitions somebody has given it since."""
    from confluent_kafka.admin import NewPartitions

    cluster, name = reach(settings), topics.ledger_topic(settings, COMMODITY_PRICES)
    outcome(cluster.admin.create_partitions([NewPartitions(name, 7)])[name], cluster, "adding partitions")
    until("they are known", lambda: len(reach(settings).metadata.topics[name].partitions) == 7)
    run(settings, *days(5))
    assert run(settings, *days(5)).repeated


def test_tries_at_once_publish_everything_once(settings: Settings) -> None:
    """Overlapping backfills: same records, several batches, all at once; losers are told so and come again."""
    batches = [batch_of(settings, days(40, batch=f"b{number}", as_of=EARLY)) for number in range(4)]
    failures: list[BaseException] = []

    again = Retrying(
        retry=retry_if_exception_type(TryLaterError), wait=wait_random(0, 0.2), stop=stop_after_delay(120), reraise=True
    )

    def insist(batch: Batch) -> None:
        try:
            again.copy()(publish, COMMODITY_PRICES, batch, settings)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=insist, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert failures == []
    assert identities(held(settings)) == {(row["record_id"], row["content_hash"]): 1 for row in days(40)}
    assert set(ledger.read(settings, COMMODITY_PRICES, "default").batches) == {"b0", "b1", "b2", "b3"}


@pytest.fixture
def stranger(settings: Settings) -> Any:
    """A producer of another tenant with an open transaction whose marker lies in the ledger."""
    from confluent_kafka import Producer

    producer = Producer(producer_settings(settings, f"{settings.kafka_topic}.stranger", []))
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(f"{settings.kafka_topic}-ledger", b"{}", b"stranger/commodity_prices")
    producer.flush(30)
    return producer


def test_somebody_s_open_transaction_is_waited_for_not_read_past(
    settings: Settings, stranger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed markers after an open transaction are hidden from readers: to decide then would publish twice."""
    monkeypatch.setattr(brokers, "OPEN_TRANSACTION_SECONDS", 2)
    with pytest.raises(TryLaterError, match="open transaction"):
        run(settings, *days(5, batch="b1"))
    assert held(settings) == []

    monkeypatch.setattr(brokers, "OPEN_TRANSACTION_SECONDS", 60)
    ending = threading.Timer(1.0, stranger.abort_transaction)
    ending.start()
    assert counts(run(settings, *days(5, batch="b1"))) == (5, 0, 0)
    ending.join()


# Snapshots


def snapshot_row(settings: Settings) -> tuple[str, str, int] | None:
    with psycopg.connect(settings.require("postgres_dsn")) as connection:
        return connection.execute(
            "SELECT path, sha256, ledger_offset FROM marketdata.ledger_snapshot WHERE topic = %s",
            [f"{settings.kafka_topic}-ledger"],
        ).fetchone()


def update(settings: Settings, statement: str, *values: Any) -> None:
    with psycopg.connect(settings.require("postgres_dsn")) as connection:
        connection.execute(
            f"{statement} WHERE topic = %s",
            [*values, f"{settings.kafka_topic}-ledger"],
        )


@pytest.fixture
def remembered(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A ledger of three batches, 20 days with one revised, of which a snapshot exists."""
    monkeypatch.setattr(snapshots, "MARKERS", 3)
    run(settings, *days(10, batch="b1"))
    run(settings, *days(20, batch="b2", as_of=LATE))
    run(settings, price("2024-01-05", "99", batch="b3", as_of=LATE))
    return settings


def spoil_nothing(settings: Settings, lake: Path) -> None:
    pass


def lose_the_row(settings: Settings, lake: Path) -> None:
    update(settings, "DELETE FROM marketdata.ledger_snapshot")


def lose_the_object(settings: Settings, lake: Path) -> None:
    row = snapshot_row(settings)
    assert row
    (lake / row[0]).unlink()


def damage_the_object(settings: Settings, lake: Path) -> None:
    row = snapshot_row(settings)
    assert row
    (lake / row[0]).write_bytes(b"{}")


def lose_a_delta_of_it(settings: Settings, lake: Path) -> None:
    row = snapshot_row(settings)
    assert row
    for file in json.loads((lake / row[0]).read_text())["files"]:
        (lake / file["path"]).unlink()


def point_at_nonsense(settings: Settings, lake: Path) -> None:
    update(settings, "UPDATE marketdata.ledger_snapshot SET path = %s, sha256 = %s", "nowhere", "0" * 64)


def point_at_another_ledger(settings: Settings, lake: Path) -> None:
    """A sound snapshot of somebody else, who has published nothing of this."""
    import hashlib

    row = snapshot_row(settings)
    assert row
    values = json.loads((lake / row[0]).read_text())
    content = json.dumps({**values, "topic_id": "another", "files": [], "batches": {}}).encode()
    (lake / "forged.json").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    update(settings, "UPDATE marketdata.ledger_snapshot SET path = %s, sha256 = %s", "forged.json", digest)


def claim_to_know_the_future(settings: Settings, lake: Path) -> None:
    import hashlib

    row = snapshot_row(settings)
    assert row
    values = json.loads((lake / row[0]).read_text())
    content = json.dumps({**values, "end": 1_000_000, "files": []}).encode()
    (lake / "forged.json").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    update(settings, "UPDATE marketdata.ledger_snapshot SET path = %s, sha256 = %s", "forged.json", digest)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_nothing,
        lose_the_row,
        lose_the_object,
        damage_the_object,
        lose_a_delta_of_it,
        point_at_nonsense,
        point_at_another_ledger,
        claim_to_know_the_future,
    ],
)
def test_whatever_becomes_of_the_snapshot_the_outcome_is_the_same(
    spoil: Callable[[Settings, Path], None], remembered: Settings, tmp_path: Path
) -> None:
    settings = remembered
    fold = ledger.read(settings, COMMODITY_PRICES, "default")
    assert fold.batches.keys() == {"b1", "b2", "b3"}
    assert fold.fresh == {}
    spoil(settings, tmp_path / "lake")
    again = run(settings, *days(20, batch="b2", as_of=LATE))
    assert (counts(again), again.repeated) == ((10, 10, 0), True)
    assert counts(run(settings, *days(25, batch="b4", as_of=EARLY))) == (5, 19, 1)
    assert len(held(settings)) == 26
    current = state(settings, days(25))
    assert len(current) == 25
    revised = price("2024-01-05", "99")
    assert current[revised["record_id"]][0] == revised["content_hash"]


def test_a_snapshot_merges_small_deltas_and_a_late_one_does_not_put_it_back(remembered: Settings) -> None:
    settings = remembered
    row = snapshot_row(settings)
    assert row
    fold = ledger.read(settings, COMMODITY_PRICES, "default")
    assert len(fold.files) == 1
    assert fold.rows == 20
    old = ledger.read(settings, COMMODITY_PRICES, "default", trust_snapshot=False)
    assert (len(old.files), old.rows) == (3, 21)
    for number in range(4, 8):
        run(settings, price("2024-01-05", f"{number}00", batch=f"b{number}", as_of=LATE + timedelta(days=number)))
    newer = snapshot_row(settings)
    assert newer is not None
    assert newer[2] > row[2]
    snapshots.remember(settings, old)
    assert snapshot_row(settings) == newer


def test_without_postgres_or_with_a_dead_one_publishing_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshots, "MARKERS", 1)
    for number, dsn in enumerate([None, "postgresql://nobody:secret-word@127.0.0.1:1/none"]):
        one = Settings(**{**settings.model_dump(), "postgres_dsn": dsn})
        assert counts(run(one, *days(3 + number, batch=f"b{number}"))) == ((3, 0, 0) if number == 0 else (1, 3, 0))
    assert "cannot look up the ledger snapshot" in caplog.text
    assert "secret-word" not in caplog.text + str([record.__dict__ for record in caplog.records])


def test_a_lock_that_somebody_sleeps_on_does_not_hold_publishing_up(
    remembered: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres, "_TEN_SECONDS", postgres._TEN_SECONDS.replace("10s", "3s"))
    monkeypatch.setattr(snapshots, "MARKERS", 1)
    with psycopg.connect(remembered.require("postgres_dsn")) as sleeper:
        sleeper.execute("LOCK TABLE marketdata.ledger_snapshot")
        assert counts(run(remembered, *days(21, batch="b4", as_of=EARLY))) == (1, 19, 1)
    reasons = [record.reason for record in caplog.records if "ledger snapshot" in record.message]
    assert [reason.partition(":")[0] for reason in reasons] == ["QueryCanceled"] * 2


def test_a_topic_made_anew_starts_anew(remembered: Settings) -> None:
    settings = remembered
    delete(settings, settings.kafka_topic, f"{settings.kafka_topic}-ledger")
    topics.apply(settings)
    assert counts(run(settings, *days(20, batch="b2", as_of=LATE))) == (20, 0, 0)


def test_each_part_has_its_delta_and_a_part_without_change_none(settings: Settings) -> None:
    run(settings, *days(60)[::6], parts=1)
    published = run(settings, *days(60, batch="b2", as_of=LATE), parts=6)
    assert counts(published) == (50, 10, 0)
    assert [delta.rows for delta in published.delta] == [10] * 5


def test_people_read_what_is_committed_and_do_not_wait_for_what_is_not(settings: Settings) -> None:
    from confluent_kafka import Producer

    run(settings, *days(5))
    producer = Producer(producer_settings(settings, f"{settings.kafka_topic}.stranger", []))
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(settings.kafka_topic, b"not committed", b"Oil")
    producer.flush(30)
    assert len(held(settings)) == 5
    assert len(read_back(settings, settings.kafka_topic, 3)) == 3
    assert len(held_of(settings, "b1")) == 5
    producer.abort_transaction(30)
