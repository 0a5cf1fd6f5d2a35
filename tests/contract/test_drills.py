"""Drills on a real broker and a real PostgreSQL: what they measure, what they strike, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from confluent_kafka import Producer

from marketdata.batches import Lake
from marketdata.datasets import COMMODITY_PRICES
from marketdata.engines import endpoints
from marketdata.engines.process import ended
from marketdata.errors import BadDataError
from marketdata.lakehouse import open_lakehouse
from marketdata.operations import drill, proof, scenarios
from marketdata.operations.disruptions import ConsumerKilled, Elsewhere
from marketdata.operations.drill import Outcome
from marketdata.operations.ground import PREFIX, clear, own_settings
from marketdata.operations.profiles import PROFILES
from marketdata.operations.scenarios import SCENARIOS, disrupt
from marketdata.operations.traffic import Traffic
from marketdata.operations.work import Looking, Step, Work
from marketdata.settings import Settings, endpoint_file
from marketdata.streaming.brokers import reach
from marketdata.streaming.window_store import connected
from marketdata.tasks import drills
from tests.contract.prices import batch_of, price
from tests.waiting import until

BURST = PROFILES["burst"]


@pytest.fixture
def settings(embedded: Settings) -> Iterator[Settings]:
    """The embedded engines, on which no drill leaves anything."""
    yield embedded
    assert left_behind(embedded) == {}


def left_behind(settings: Settings) -> dict[str, Any]:
    """Whatever is there that a drill has made."""
    cluster = reach(settings)
    groups = cluster.admin.list_consumer_groups().result().valid
    with connected(settings) as postgres:
        # Other tests of this session have windows of their own.
        group = f"{PREFIX}%"
        feeds = postgres.execute("SELECT 1 FROM marketdata.analytics_feeds WHERE consumer_group LIKE %s", (group,))
        orphans = postgres.execute(
            "SELECT 1 FROM marketdata.price_windows w LEFT JOIN marketdata.price_series s USING (series_id) "
            "WHERE s.series_id IS NULL OR s.consumer_group LIKE %s", (group,),
        )  # fmt: skip
        found = {"feeds": feeds.fetchall(), "windows": orphans.fetchall()}
    dsn = psycopg.conninfo.make_conninfo(settings.require("postgres_dsn"), dbname="iceberg")
    with psycopg.connect(dsn) as catalog:
        found["tables"] = catalog.execute(
            "SELECT table_namespace FROM iceberg_tables WHERE table_namespace LIKE 'drill%%'"
        ).fetchall()
    found["topics"] = [name for name in cluster.metadata.topics if name.startswith(PREFIX)]
    found["groups"] = [group.group_id for group in groups if group.group_id.startswith(PREFIX)]
    found["files"] = list(Path(settings.require("lake_uri").removeprefix("file://")).glob("drills/*"))
    return {name: what for name, what in found.items() if what}


def missed(outcome: Outcome) -> set[str]:
    return {check.threshold.figure for check in outcome.checks if check.fails}


def test_a_burst_is_measured_and_its_report_lies_in_the_lake(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How fast this machine is just now decides nothing here; loss does.
    monkeypatch.setitem(PROFILES, "burst", replace(BURST, thresholds=()))
    told = drills.load_test(settings, "burst", "run-1", consumers=2, messages=5000)
    assert (told["passed"], told["failed"], told["not_run"]) == (1, 0, 0)
    batch = Lake(settings).open(told["batch"])
    (outcome,) = json.loads(batch.read("result.json"))["outcomes"]
    figures = outcome["figures"]
    assert (figures["sent"], figures["acknowledged"], figures["lost"]) == (5000, 5000, 0)
    assert outcome["samples"][-1]["stored"] == 5000
    assert all(figures[check["threshold"]["figure"]] is not None for check in outcome["checks"])
    assert all(figures[of.figure] is not None for of in BURST.judged_by), (
        "all that the profile is judged by is measured"
    )
    assert figures["windows"] > 5
    page = batch.read("report.html").decode()
    assert "<polyline" in page
    assert "Passed" in page
    assert "| Acknowledged records that the topic has not | none | 0" in batch.read("summary.md").decode()


def test_a_lost_a_repeated_and_a_miscounted_record_are_each_seen(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce, prove = Traffic._produce, proof.prove

    def faulty(traffic: Traffic, producer: Any, number: int, key: bytes, value: bytes) -> None:
        if number == 7:
            return  # said to be sent, and was not
        produce(traffic, producer, number, key, value)
        if number == 8:
            produce(traffic, producer, number, key, value)

    def tampered(traffic: Traffic) -> dict[str, float | None]:
        with connected(settings) as postgres:
            until("a window", lambda: postgres.execute(_ONE_DIGIT, (traffic.own.analytics_group,)).rowcount == 1)
        return prove(traffic)

    monkeypatch.setattr(Traffic, "_produce", faulty)
    monkeypatch.setattr(proof, "prove", tampered)
    monkeypatch.setattr(proof, "WINDOW_SECONDS", 15.0)
    outcome = drill.load(settings, replace(BURST, messages=3000, thresholds=()), "run-2", 1)
    assert outcome.state == "failed"
    assert missed(outcome) == {"lost", "repeated", "price_difference", "wrong_windows"}
    assert [outcome.figures[name] for name in ("lost", "repeated", "foreign")] == [1, 1, 0]


_ONE_DIGIT = """
UPDATE marketdata.price_windows SET total = total + 0.000001 WHERE (series_id, window_start) = (
    SELECT series_id, window_start FROM marketdata.price_windows JOIN marketdata.price_series s USING (series_id)
    WHERE s.consumer_group = %s ORDER BY window_start LIMIT 1)
"""


@pytest.mark.parametrize("name", ["consumer-crash", "broker-failure", "network-partition"])
def test_all_is_well_again_in_time_and_nothing_is_lost(settings: Settings, name: str) -> None:
    outcome = disrupt(settings, SCENARIOS[name], f"run-{name}", 2, dry_run=False)
    assert outcome.state == "passed", [str(check) for check in outcome.checks if check.fails]
    assert outcome.figures["lost"] == outcome.figures["repeated"] == 0
    recovery = outcome.figures["recovery_seconds"]
    assert recovery is not None
    assert 0 < recovery < SCENARIOS[name].within
    silence = outcome.figures["longest_silence"] or 0
    assert silence > SCENARIOS[name].hold if SCENARIOS[name].shared else silence < 5, "it was really struck"


def test_a_task_that_is_evicted_in_the_middle_publishes_each_record_once(settings: Settings) -> None:
    outcome = disrupt(settings, SCENARIOS["task-evicted"], "run-evicted", 1, dry_run=True)
    assert outcome.state == "passed", [str(check) for check in outcome.checks if check.fails]
    assert outcome.figures["tries"] == 2
    (gone,) = [event.says for event in outcome.events if "was not committed" in event.says]
    assert not gone.startswith("it was gone, with 0 messages"), "it was in the middle"


def test_an_eviction_that_repeats_records_fails_the_drill(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(here: Work, step: Step, own: Settings | None = None) -> Any:
        """As if each try sent what it likes, in no transaction."""
        producer = Producer({"bootstrap.servers": here.own.require("kafka_brokers")})
        for row in here.sent.slice(0, 10).to_pylist() * 2:
            said = {"record_id": row["record_id"], "price": float(row["price"])}
            producer.produce(here.own.kafka_topic, json.dumps(said))
        producer.flush()
        return task(here, step, own)

    task = Work.task
    monkeypatch.setattr(Work, "task", careless)
    outcome = disrupt(settings, SCENARIOS["task-evicted"], "run-careless", 1, dry_run=True)
    assert outcome.state == "failed"
    assert missed(outcome) == {"repeated", "price_difference"}


def test_a_part_of_a_batch_in_the_table_is_seen(settings: Settings) -> None:
    own = own_settings(settings, "run-looking", "trino-down")
    lakehouse = open_lakehouse(own)
    try:
        with Looking(own) as looking:
            lakehouse.load(COMMODITY_PRICES, batch_of(own, [price("2024-01-01"), price("2024-01-02")]))
            until("two are seen", lambda: 2 in looking.counts)
            lakehouse.load(COMMODITY_PRICES, batch_of(own, [price("2024-01-03", batch="b2")]))
            until("all three are seen", lambda: 3 in looking.counts)
    finally:
        clear(own)
    assert looking.counts - {0} == {2, 3}


class NeverHealed(ConsumerKilled):
    def heal(self, here: Any) -> str:
        return "nobody started the consumer again"


def test_a_consumer_that_does_not_come_back_fails_the_drill(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drill, "DRAIN_SECONDS", 3.0)
    monkeypatch.setattr(proof, "WINDOW_SECONDS", 3.0)
    scenario = replace(SCENARIOS["consumer-crash"], disruption=NeverHealed(), within=3.0)
    outcome = disrupt(settings, scenario, "run-3", 1, dry_run=False)
    assert outcome.state == "failed"
    assert outcome.figures["recovery_seconds"] is None
    assert missed(outcome) >= {"recovery_seconds", "final_lag_records", "wrong_windows", "miscounted"}


def test_a_recovery_that_is_too_slow_fails_the_drill(settings: Settings) -> None:
    scenario = replace(SCENARIOS["consumer-crash"], within=0.5)
    outcome = disrupt(settings, scenario, "run-4", 1, dry_run=False)
    assert missed(outcome) == {"recovery_seconds"}


def test_a_dry_run_strikes_nothing_that_others_use_and_nothing_run_is_no_success(settings: Settings) -> None:
    broker = _broker()
    with pytest.raises(BadDataError, match="nothing was run: dry run") as failed:
        drills.chaos(settings, "broker-failure,trino-down", "run-5", consumers=1, dry_run=True)
    assert _broker() == broker
    assert failed.value.result["not_run"] == 2
    page = Lake(settings).open(failed.value.result["batch"]).read("report.html").decode()
    assert "Dry run: it would strike what others use too." in page


def test_others_brokers_are_left_alone(settings: Settings) -> None:
    theirs = settings.model_copy(update={"kafka_brokers": "kafka.example.com:9092"})
    for name in ("broker-failure", "network-partition"):
        outcome = disrupt(theirs, SCENARIOS[name], "run-6", 1, dry_run=False)
        assert outcome.state == "not run"
        assert "no right to end" in outcome.why


def test_a_drill_that_was_killed_is_healed_and_cleared_by_its_run(settings: Settings) -> None:
    command = [str(Path(sys.executable).parent / "marketdata")]
    words = ["chaos", "--scenario", "network-partition", "--no-dry-run", "--consumers", "1", "--run-id", "run-7"]
    own = own_settings(settings, "run-7", "network-partition")
    process = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until("the broker is frozen", lambda: _broker().status() == psutil.STATUS_STOPPED, 120)
        assert process.poll() is None
        consumers = [child for child in psutil.Process(process.pid).children() if "analytics" in child.cmdline()]
        assert consumers
        process.send_signal(signal.SIGKILL)
        process.wait()
        until("its consumers have ended with it", lambda: all(ended(one) for one in consumers))
    finally:
        process.kill()
        process.wait()
        done = subprocess.run(
            [*command, "drill-clear", "--run-id", "run-7"], capture_output=True, text=True, env=dict(os.environ)
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert _broker().status() != psutil.STATUS_STOPPED
    assert own.kafka_topic not in reach(settings).metadata.topics


def _broker() -> psutil.Process:
    process = endpoints.read(endpoint_file()).engines["kafka"].process
    found = process.find() if process else None
    assert found is not None
    return found


def test_every_scenario_says_how_it_is_struck_or_where_it_is_shown(settings: Settings) -> None:
    root = Path(__file__).resolve().parents[2]
    for scenario in scenarios.SCENARIOS.values():
        if isinstance(scenario.disruption, Elsewhere):
            words = scenario.disruption.impossible(settings).split()
            (shown,) = [word for word in words if word.startswith("tests/")]
            assert (root / shown).is_file(), shown
