"""Backfills through Airflow's own scheduler, repeated, overlapping, with their tasks killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import psutil
import pytest

from tests.laptop import Laptop
from tests.waiting import until

DEADLINE_SECONDS = 600


@pytest.fixture(scope="module")
def laptop(new_home: Callable[[str], Path]) -> Iterator[Laptop]:
    """A laptop with Airflow up. What a killed task waits before its next try is no part of the test."""
    machine = Laptop(
        new_home("laptop"),
        {
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        },
    )
    try:
        machine.marketdata("engines", "up", "--airflow")
        yield machine
    finally:
        machine.marketdata("engines", "down")


def days(laptop: Laptop) -> list[str]:
    return [row["price_date"] for row in laptop.query("SELECT DISTINCT price_date FROM commodity_prices ORDER BY 1")]


def state(laptop: Laptop) -> tuple[list[tuple[str, str]], list[tuple[str, str]], Decimal]:
    """Identities in the topic, identities in the table, and the sum of the table's prices."""
    messages = sorted((m["record_id"], m["content_hash"]) for m in laptop.messages())
    rows = laptop.query("SELECT record_id, content_hash, price FROM commodity_prices ORDER BY 1, 2")
    return messages, [(r["record_id"], r["content_hash"]) for r in rows], sum(Decimal(r["price"]) for r in rows)


def steps_under_way(laptop: Laptop, step: str) -> list[psutil.Process]:
    """The processes of a step that belong to this laptop, whoever else runs the same."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("/marketdata") for word in words) and step in words:
            try:
                if process.environ().get("MARKETDATA_HOME") == str(laptop.home):
                    found.append(process)
            except psutil.Error:
                continue
    return found


def kill_one(laptop: Laptop, step: str) -> bool:
    """Whether one was killed: it may end a moment before."""
    for victim in steps_under_way(laptop, step):
        with suppress(psutil.NoSuchProcess):
            victim.kill()
            return True
    return False


def test_three_days_give_three_price_dates_and_a_repetition_changes_nothing(laptop):
    laptop.marketdata("backfill", "--from", "2018-12-03", "--to", "2018-12-05")
    assert days(laptop) == ["2018-12-03", "2018-12-04", "2018-12-05"]
    before = state(laptop)
    assert len(before[0]) == len(before[1]) == 3
    laptop.marketdata("backfill", "--from", "2018-12-03", "--to", "2018-12-05", "--reprocess", "completed")
    assert state(laptop) == before


def test_overlapping_backfills_with_killed_tasks_lose_nothing_and_repeat_nothing(laptop):
    first = laptop.start("backfill", "--from", "2018-12-10", "--to", "2018-12-11")
    for step in ("extract", "publish", "load"):
        until(f"a {step} is killed", lambda step=step: kill_one(laptop, step), DEADLINE_SECONDS)
    second = laptop.start("backfill", "--from", "2018-12-11", "--to", "2018-12-12", "--reprocess", "completed")
    # One backfill of a DAG at a time is Airflow's rule: whoever comes second is told to try later.
    out, err = second.communicate(timeout=DEADLINE_SECONDS)
    assert second.returncode in (0, 75), out + err
    out, err = first.communicate(timeout=DEADLINE_SECONDS)
    assert first.returncode == 0, out + err
    laptop.marketdata("backfill", "--from", "2018-12-11", "--to", "2018-12-12", "--reprocess", "completed")

    messages, rows, _ = state(laptop)
    assert messages == rows
    assert len(set(messages)) == len(messages) == 3 + 3
    assert days(laptop)[3:] == ["2018-12-10", "2018-12-11", "2018-12-12"]
