"""What the consumer's store forgets, and what comes of it when somebody speaks of it again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import pytest

from marketdata import postgres as transactions
from marketdata.datasets import COMMODITY_PRICES
from marketdata.lakehouse import open_lakehouse
from marketdata.observability import runs
from marketdata.settings import Settings
from marketdata.streaming import forgetting, window_store
from marketdata.streaming import windows as stream_windows
from marketdata.streaming.analytics import TopicSinks
from marketdata.tasks.analytics import load_changes
from tests.contract.prices import LATE, price
from tests.contract.test_analytics import LETTERS, ask, at, encoded, own_analytics, running, send, until, windows

DAY = 24 * 60


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_windows, "QUIET", stream_windows.SECOND // 2)


@pytest.fixture
def settings(embedded: Settings, settings_for: Callable[..., Settings]) -> Settings:
    return own_analytics(embedded, settings_for)


def age(settings: Settings, table: str, column: str, days: int) -> None:
    """As if it had happened so many days before."""
    with window_store.connected(settings) as postgres:
        postgres.execute(
            f"UPDATE marketdata.{table} SET {column} = {column} - make_interval(days => {days}) WHERE feed_id IN "
            "(SELECT feed_id FROM marketdata.analytics_feeds WHERE consumer_group = %s)",
            (settings.analytics_group,),
        )


def test_a_window_that_was_forgotten_is_made_anew_by_its_revision(settings: Settings) -> None:
    with running(settings) as member:
        sinks = TopicSinks(settings, lambda: member.consumer.feeds)
        old, ticks, newest = price(at(0)), [price(at(DAY), "1"), price(at(DAY, 1), "2")], price(at(100 * DAY))
        send(settings, *encoded(old, *ticks, newest))
        until(lambda: len(windows(settings)) == 3)
        forgetting.windows(settings)
        assert len(windows(settings)) == 3, "they are young"
        age(settings, "price_windows", "computed_at", 36)
        load_changes(settings)
        forgetting.windows(settings)
        assert len(windows(settings)) == 3, "no topic has been told of them"
        sinks.deliver()
        forgetting.windows(settings)
        kept = {at for _, at in windows(settings)}
        assert kept == {ticks[0]["event_time"], newest["event_time"]}, "one of two prices, and the newest, stay"

        send(settings, *encoded(price(at(0), "80", as_of=LATE)), *encoded(price(at(DAY, 1), "3", as_of=LATE)))
        until(lambda: len(windows(settings)) == 3 and windows(settings)["WTI", at(DAY)][1] == 4)
        load_changes(settings)
        sinks.close()
    rows = open_lakehouse(settings).query("SELECT count, total FROM commodity_aggregates ORDER BY window_start")
    assert [(row["count"], row["total"]) for row in rows.to_pylist()] == [
        (1, Decimal(80)), (2, Decimal(4)), (1, Decimal("70.10")),
    ]  # fmt: skip


def test_letters_are_forgotten_when_their_topic_forgets_them(settings: Settings) -> None:
    count = f"SELECT count(*) {LETTERS}"
    with running(settings) as member:
        send(settings, b"broken", b"asked for", partition=1)
        until(lambda: ask(settings, count) == [(2,)])
        assert forgetting.letters(settings, COMMODITY_PRICES) == 0, "they are young"
        age(settings, "dead_letters", "failed_at", 31)
        assert forgetting.letters(settings, COMMODITY_PRICES) == 0, "the topic does not have them"
        sinks = TopicSinks(settings, lambda: member.consumer.feeds)
        sinks.deliver()
        sinks.close()
    with window_store.connected(settings) as postgres:
        postgres.execute("UPDATE marketdata.dead_letters SET asked_at = failed_at WHERE value = 'asked for'")
    assert forgetting.letters(settings, COMMODITY_PRICES) == 1
    assert ask(settings, count) == [(1,)], "somebody waits for it"


def test_a_lock_that_somebody_sleeps_on_does_not_hold_a_step_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transactions, "_TEN_SECONDS", transactions._TEN_SECONDS.replace("10s", "3s"))
    runs.latest(settings, "commodity_prices", 1)
    with window_store.connected(settings) as sleeper, sleeper.transaction():
        sleeper.execute("LOCK TABLE marketdata.run_steps")
        with runs.recorded(settings, "commodity_prices", "held up", "load"):
            pass
    assert "the run record was not written" in caplog.text
    assert "statement timeout" in caplog.text


def test_the_record_of_runs_is_kept_for_a_time(settings: Settings) -> None:
    settings = settings.model_copy(update={"tenant": settings.analytics_group})
    for run_id in ("old", "young"):
        with runs.recorded(settings, "commodity_prices", run_id, "load"):
            pass
    with window_store.connected(settings) as postgres:
        postgres.execute(
            "UPDATE marketdata.run_steps SET started_at = started_at - interval '9 days' "
            "WHERE tenant = %s AND run_id = 'old'",
            (settings.tenant,),
        )
    assert runs.forget(settings, "another dataset", timedelta(days=8)) == 0
    assert runs.forget(settings, "commodity_prices", timedelta(days=8)) == 1
    assert [steps[0].run_id for steps in runs.latest(settings, "commodity_prices", 5)] == ["young"]
