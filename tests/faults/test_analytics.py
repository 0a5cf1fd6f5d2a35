"""A consumer killed at any step, asleep while another takes over, or sharing its work: each record counts once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from marketdata.lakehouse import open_lakehouse
from marketdata.settings import Settings
from tests.contract.prices import LATE, price
from tests.contract.test_analytics import ask, encoded, feeds, latest, own_analytics, send, told, until, windows
from tests.faults.children import environment

CONSUME = """
import os, signal, sys
from marketdata.lakehouse.embedded import EmbeddedLakehouse
from marketdata.streaming import analytics as consumer, window_sinks, window_store, windows
from marketdata.tasks import analytics as service
from marketdata.tasks.cli import main

step = sys.argv[1]
windows.QUIET = windows.SECOND // 2
service.LAKE_SECONDS = service.TOPIC_SECONDS = 0.2
service.GROUP_SECONDS = 3.0  # longer than a rebalance takes, or members would be stirred up in the middle of one
consumer.BATCH = 40

serving = service.serve
def serve(*arguments):
    print("ready", flush=True)  # it can be told to end
    return serving(*arguments)
service.serve = serve

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name):
    original = getattr(owner, name)
    def call(*args, **kwargs):
        die()
        return original(*args, **kwargs)
    setattr(owner, name, call)

def after(owner, name):
    original = getattr(owner, name)
    def call(*args, **kwargs):
        original(*args, **kwargs)
        die()
    setattr(owner, name, call)

store, line = window_store.WindowStore, window_sinks._Line
if step == "read, nothing stored":
    before(store, "_commit")
elif step == "in the transaction":
    after(store, "_store_windows")
elif step == "stored, not told":
    after(store, "_commit")
elif step == "told, transaction open":
    before(line, "_commit")
elif step == "told, not noted":
    after(line, "_commit")
elif step == "loading":
    before(EmbeddedLakehouse, "load")
elif step == "loaded, not noted":
    after(EmbeddedLakehouse, "load")
elif step == "handing a partition on":
    before(consumer.Analytics, "_revoked")
elif step == "asleep in the transaction":
    original = store._store_windows
    def sleeping(*args):
        result = original(*args)
        print("asleep", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        return result
    store._store_windows = sleeping

sys.argv[1:] = ["analytics"]
main()
"""
STEPS = (
    "read, nothing stored", "in the transaction", "stored, not told", "told, transaction open", "told, not noted",
    "loading", "loaded, not noted",
)  # fmt: skip


@pytest.fixture
def settings(embedded: Settings, settings_for: Callable[..., Settings]) -> Settings:
    return own_analytics(embedded, settings_for)


def start(settings: Settings, step: str = "", member: str = "one") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CONSUME, step],
        env=environment(settings, ANALYTICS_MEMBER=member),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line of its output."""
    assert process.stdout
    return process.stdout.readline().strip()


@contextmanager
def consuming(settings: Settings, *members: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Members that run until the end of the block, and then leave in good order within 30 s."""
    processes = [start(settings, member=member) for member in members or ("one",)]
    try:
        for process in processes:
            assert next_line(process) == "ready"
        yield processes
        for process in processes:
            process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for process in processes:
            assert process.wait(30) == 0, process.stderr.read() if process.stderr else ""
        assert time.monotonic() - began < 30
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def workload(seed: int, count: int = 300) -> tuple[list[bytes], dict[tuple[str, str], tuple[Any, ...]], int]:
    """Messages in a wild order, the figures they must come to, and how many cannot be read."""
    chance = random.Random(seed)  # noqa: S311
    began = datetime(2024, 1, 2, 12, tzinfo=UTC)
    rows = []
    for number in range(count):
        moment = began + timedelta(seconds=chance.randrange(600))
        as_of = LATE + timedelta(seconds=number)
        series = chance.choice(["WTI", "Brent"])
        rows.append(price(moment, f"{chance.randrange(1, 10_000)}.{number:06}", as_of=as_of, series=series))
    rows += chance.choices(rows, k=count // 10)
    newest: dict[tuple[str, datetime], dict[str, Any]] = {}
    for row in rows:
        key = row["series"], row["event_time"]
        if key not in newest or row["as_of"] > newest[key]["as_of"]:
            newest[key] = row
    expected: dict[tuple[str, str], list[Decimal]] = {}
    for (series, moment), row in newest.items():
        expected.setdefault((series, f"{moment:%H:%M}"), []).append(row["price"])
    values = [*encoded(*rows), *[b"poison %d" % number for number in range(7)]]
    chance.shuffle(values)
    return values, {key: (len(prices), sum(prices)) for key, prices in expected.items()}, 7


def check(
    settings: Settings, values: list[bytes], expected: dict[tuple[str, str], tuple[Any, ...]], poison: int
) -> None:
    """Read, stored, told and loaded: the same sets, the same sums, nothing twice."""

    def state() -> tuple[int, int, int]:
        ((behind,),) = ask(
            settings,
            "SELECT coalesce(sum(sequence - told + sequence - loaded), -1)::int FROM marketdata.analytics_feeds "
            "WHERE consumer_group = %(group)s",
        )
        return sum(feeds(settings)[:2]), behind, len(windows(settings))

    try:
        until(lambda: state() == (len(values), 0, len(expected)))
    except AssertionError:
        # The line that helps: what is missing.
        assert state() == (len(values), 0, len(expected))
    assert feeds(settings)[:2] == (len(values) - poison, poison)
    stored = {(series, f"{moment:%H:%M}"): figures[:2] for (series, moment), figures in windows(settings).items()}
    assert stored == expected
    messages = told(settings)
    assert set(Counter((message["record_id"], message["batch_id"]) for message in messages).values()) == {1}
    last = {
        (message["series"], message["window_start"][11:16]): (message["count"], message["total"])
        for message in latest(messages)
    }
    assert last == expected
    query = "SELECT series, strftime(window_start, '%H:%M') AS minute, count, total FROM commodity_aggregates"
    rows = open_lakehouse(settings).query(query).to_pylist()
    assert len(rows) == len(expected)
    assert {(row["series"], row["minute"]): (row["count"], row["total"]) for row in rows} == expected
    letters = ask(
        settings,
        "SELECT value FROM marketdata.dead_letters JOIN marketdata.analytics_feeds USING (feed_id) "
        "WHERE consumer_group = %(group)s",
    )
    assert sorted(bytes(value) for (value,) in letters) == sorted(b"poison %d" % number for number in range(poison))


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_again_and_again_it_loses_and_repeats_nothing(step: str, settings: Settings) -> None:
    values, expected, poison = workload(STEPS.index(step))
    for number in range(2):
        send(settings, *values[number * 100 : (number + 1) * 100])
        process = start(settings, step)
        try:
            assert process.wait(180) == -signal.SIGKILL, process.stderr.read() if process.stderr else ""
        finally:
            process.kill()
            process.communicate()
    send(settings, *values[200:])
    with consuming(settings):
        check(settings, values, expected, poison)


def test_one_that_slept_in_its_transaction_is_fenced_and_its_successor_does_not_wait_for_it(settings: Settings) -> None:
    values, expected, poison = workload(21)
    send(settings, *values[:100])
    sleeper = start(settings, "asleep in the transaction", member="sleeper")
    try:
        assert [next_line(sleeper), next_line(sleeper)] == ["ready", "asleep"]
        send(settings, *values[100:])
        with consuming(settings, "successor"):
            check(settings, values, expected, poison)
            sleeper.send_signal(signal.SIGCONT)
            assert sleeper.wait(60) == 75, "it went on"
            check(settings, values, expected, poison)
    finally:
        sleeper.kill()
        _, said = sleeper.communicate()
    assert "FencedError" in said


def test_three_members_have_one_partition_each_and_the_others_take_over_from_a_killed_one(settings: Settings) -> None:
    values, expected, poison = workload(22, count=600)
    with consuming(settings, "one", "two") as members:
        third = start(settings, member="three")
        try:
            until(lambda: set(owners(settings).values()) == {"one", "two", "three"})
            for number in range(3):
                send(settings, *values[number:300:3], partition=number)
            until(lambda: sum(feeds(settings)[:2]) > 100)
        finally:
            third.kill()
            third.communicate()
        killed = time.monotonic()
        for number in range(3):
            send(settings, *values[300 + number :: 3], partition=number)
        until(lambda: set(owners(settings).values()) == {"one", "two"})
        assert time.monotonic() - killed < 30
        check(settings, values, expected, poison)
        assert all(member.poll() is None for member in members)


def test_a_partition_that_was_nobodys_when_its_member_was_killed_is_dealt_out_again(settings: Settings) -> None:
    values, expected, poison = workload(23)
    victim = start(settings, "handing a partition on", member="one")
    try:
        until(lambda: sorted(owners(settings)) == [0, 1, 2])
        with consuming(settings, "two"):
            assert victim.wait(60) == -signal.SIGKILL, victim.stderr.read() if victim.stderr else ""
            with consuming(settings, "one"):
                for number in range(3):
                    send(settings, *values[number::3], partition=number)
                check(settings, values, expected, poison)
    finally:
        victim.kill()
        victim.communicate()


def owners(settings: Settings) -> dict[int, str]:
    """The member each partition belongs to."""
    return dict(
        ask(settings, "SELECT partition, owner FROM marketdata.analytics_feeds WHERE consumer_group = %(group)s")
    )
