"""Machines whose clocks are an hour ahead and an hour behind extract and consume: the results are the same.

A clock is what Python says the time is; the Kafka client's own only sets times that the topics replace by the brokers'.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

import pytest

from marketdata.batches import now
from marketdata.datasets import COMMODITY_PRICES
from marketdata.settings import Settings
from marketdata.tasks.extract import extract
from tests.contract.test_analytics import own_analytics, send
from tests.contract.topic import held, identities
from tests.faults.drill import PATIENCE, SEEDS, Members, Publisher, Reader, all_consume, counted, verify
from tests.faults.test_crash_points import DAYS, STEPS, Run, run
from tests.waiting import until

__all__ = ["run"]

CLOCKS = {"one": {"AHEAD_SECONDS": "3600"}, "two": {"AHEAD_SECONDS": "-3600"}}


@pytest.mark.parametrize("seed", SEEDS)
def test_members_whose_clocks_disagree_lose_and_repeat_nothing_and_hand_everything_on(
    seed: int, embedded: Settings, settings_for: Callable[..., Settings]
) -> None:
    settings = own_analytics(embedded, settings_for)
    poison = [b'{"poison": %d}' % number for number in range(20)]
    members = Members(settings, CLOCKS)
    reader, publisher = Reader(settings), Publisher(settings, random.Random(seed))  # noqa: S311
    try:
        send(settings, *poison)
        until("all three consume", lambda: all_consume(settings), PATIENCE)
        for name in random.Random(seed).sample(Members.NAMES, 2):  # noqa: S311 - partitions change their clock
            so_far = len(publisher.committed)
            publisher.wait_for(lambda committed, so_far=so_far: len(committed) > so_far + 1)
            members.kill(name, for_good=name == "three")
        publisher.end()
        committed = publisher.committed
        until("everything is counted", lambda: counted(settings, committed[-1].offsets), PATIENCE)
        verify(settings, committed, reader, poison)
    finally:
        publisher.end()
        members.end()
    assert members.exits == []


@pytest.mark.parametrize("hours", [(1, -1), (-1, 1)], ids=["ahead, then behind", "behind, then ahead"])
def test_what_was_extracted_by_a_wrong_clock_is_once_in_topic_and_table_whoever_reads_it_again(
    hours: tuple[int, int], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from marketdata.tasks import extract as module

    for attempt, ahead in enumerate(hours):
        monkeypatch.setattr(module, "now", lambda ahead=ahead: now() + timedelta(hours=ahead))
        run.batches["extract"] = extract(
            run.settings, COMMODITY_PRICES, DAYS, lookback_days=0, run_id="r1", attempt_of_run=attempt
        )
        for step in STEPS[1:]:
            run.step(step)
        told = {name: run.proof[name] for name in ("records", "published", "already_published", "quarantined")}
        new = 29 * (attempt == 0)
        assert told == {"records": 29, "published": new, "already_published": 29 - new, "quarantined": 1}
    assert set(identities(held(run.settings)).values()) == {1}
    assert len(run.table()) == len(held(run.settings)) == 29
