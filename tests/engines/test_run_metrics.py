"""Run outcomes on a real PostgreSQL and Pushgateway: each counted once, whatever is reported how often and when."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from marketdata import engines
from marketdata.observability import outcomes, push
from marketdata.observability.outcomes import Outcome
from marketdata.observability.push import BUDGET_SECONDS, REFILL_SECONDS, Courier
from marketdata.settings import ENDPOINTS_VARIABLE, Settings
from tests.engines.monitoring import pushgateway, unhurried
from tests.waiting import until

DAG = "commodity-price-pipeline"
LIMITS = {name: getattr(push, name) for name in ("BUDGET_SECONDS", "PUSH_SECONDS", "STATEMENT")}
T0 = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)


def outcome(run: str = "run-1", state: Any = "success", cleared: int = 0, minute: int = 0, dag: str = DAG) -> Outcome:
    began = T0 + timedelta(minutes=minute)
    return Outcome(dag, run, cleared, state, began, began + timedelta(seconds=30))


@dataclass
class Airflow:
    """What Airflow's metadata would say."""

    ended: list[Outcome] = field(default_factory=list)
    dag_ids: list[str] = field(default_factory=list)

    def finished(self, since: datetime) -> list[Outcome]:
        return [found for found in self.ended if found.ended_at >= since]

    def dags(self) -> list[str]:
        return self.dag_ids


@pytest.fixture(scope="session")
def postgres(new_home: Callable[[str], Path]) -> Iterator[str]:
    """A PostgreSQL of this folder's own."""
    home = new_home("metrics-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARKETDATA_HOME", str(home))
        patch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
        settings = engines.up(Settings(), ["postgres"])
        try:
            yield settings.require("postgres_dsn")
        finally:
            engines.down(Settings(), ["postgres"])


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pushgateway(tmp_path_factory.mktemp("pushgateway")) as address:
        yield address


@contextmanager
def limits() -> Iterator[None]:
    """Deliveries are given up as in production, until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LIMITS.items():
            patch.setattr(push, name, value)
        yield


@pytest.fixture
def settings(
    postgres: str, gateway: str, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings on empty tables and an empty gateway; but within `limits`, nothing is given up."""
    unhurried(monkeypatch)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS marketdata CASCADE")
    for dag in (DAG, "another-dag", "lonely-dag"):
        requests.delete(f"{gateway}/metrics/job/{dag}", timeout=10)
    return settings_for(postgres_dsn=postgres, pushgateway_url=gateway)


def pushed(gateway: str, dag: str = DAG) -> dict[str, float]:
    """Values at the gateway by metric and labels."""
    lines = requests.get(f"{gateway}/metrics", timeout=10).text.splitlines()
    found = {}
    for line in lines:
        if not line.startswith("#") and f'job="{dag}"' in line:
            name, _, value = line.rpartition(" ")
            found[name.replace('instance="",', "").replace(f'job="{dag}",', "").replace(f'job="{dag}"', "")] = float(
                value
            )
    return found


def counts(gateway: str, dag: str = DAG) -> tuple[float, float, float]:
    """Runs in all, successes, failures."""
    found = pushed(gateway, dag)
    total, good, bad = (
        found.get(f'batch_jobs{kind}_total{{namespace="production"}}', -1) for kind in ("", "_success", "_failed")
    )
    return total, good, bad


def test_counters_start_at_zero_for_every_known_dag_before_any_run(settings: Settings) -> None:
    Courier(settings, Airflow(dag_ids=["another-dag"])).started()
    assert counts(settings.require("pushgateway_url")) == (0, 0, 0)
    assert counts(settings.require("pushgateway_url"), "another-dag") == (0, 0, 0)
    found = pushed(settings.require("pushgateway_url"))
    assert found['kafka_producer_records_total{topic="commodity-prices"}'] == 0
    assert not [name for name in found if "last" in name], "no run has ended: nothing may look like an outcome"


def test_two_runs_give_one_then_two(settings: Settings) -> None:
    courier = Courier(settings, Airflow())
    courier.ended(outcome("run-1"))
    assert counts(courier._gateway) == (1, 1, 0)
    courier.ended(outcome("run-2", "failed", minute=1))
    assert counts(courier._gateway) == (2, 1, 1)
    found = pushed(courier._gateway)
    assert found['batch_job_last_run_success{namespace="production"}'] == 0
    assert found['batch_job_duration_seconds{namespace="production"}'] == 30
    assert found['batch_job_last_success_timestamp_seconds{namespace="production"}'] == outcome().ended_at.timestamp()


def test_a_repeated_event_counts_once_over_processes_and_time(settings: Settings) -> None:
    for _ in range(2):
        courier = Courier(settings, Airflow([outcome()]))
        courier.ended(outcome())
        courier.ended(replace(outcome(), ended_at=outcome().ended_at + timedelta(seconds=1)))
    assert counts(courier._gateway) == (1, 1, 0)


def test_a_late_event_does_not_become_the_last_run(settings: Settings) -> None:
    courier = Courier(settings, Airflow())
    courier.ended(outcome("newer", "success", minute=30))
    courier.ended(outcome("older", "failed", minute=0))
    assert counts(courier._gateway) == (2, 1, 1)
    assert pushed(courier._gateway)['batch_job_last_run_success{namespace="production"}'] == 1


def test_a_failure_that_was_cleared_or_marked_successful_stays_counted(settings: Settings) -> None:
    courier = Courier(settings, Airflow())
    courier.ended(outcome("cleared", "failed"))
    courier.ended(outcome("cleared", "success", cleared=1, minute=5))
    assert counts(courier._gateway) == (2, 1, 1)
    courier.ended(outcome("marked", "failed", minute=6))
    courier.ended(outcome("marked", "success", minute=6))
    assert counts(courier._gateway) == (4, 2, 2)


def test_an_event_that_was_lost_is_found_by_the_next_one_and_by_the_next_process(settings: Settings) -> None:
    airflow = Airflow([outcome("lost", "failed")])
    Courier(settings, airflow).started()
    assert counts(settings.require("pushgateway_url")) == (1, 0, 1)
    courier = Courier(settings, airflow)
    courier.started()
    airflow.ended.append(replace(outcome("lost-too", "failed"), ended_at=datetime.now(UTC)))
    courier.ended(outcome("told", minute=10))
    assert counts(courier._gateway) == (3, 1, 2)


def test_what_a_dead_gateway_refused_goes_with_the_next_run_of_any_dag(settings: Settings) -> None:
    gateway = settings.require("pushgateway_url")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    courier = Courier(settings.model_copy(update={"pushgateway_url": nobody}), Airflow())
    courier.ended(outcome(state="failed", dag="lonely-dag"))
    courier._gateway = gateway
    courier.ended(outcome("other"))
    assert counts(gateway) == (1, 1, 0)
    assert counts(gateway, "lonely-dag") == (1, 0, 1)


@contextmanager
def hanging() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]


def waits(courier: Courier) -> list[float]:
    """Seconds that each of a courier's callers waits from now on, but not those by which it is woken late."""
    waited: list[float] = []
    wait = courier._idle.wait

    def listed(seconds: float) -> bool:
        began = time.monotonic()
        idle = wait(seconds)
        waited.append(min(seconds, time.monotonic() - began))
        return idle

    courier._idle.wait = listed
    return waited


def test_twenty_runs_that_end_while_the_gateway_hangs_hold_their_caller_up_for_two_seconds_in_all(
    settings: Settings,
) -> None:
    gateway = settings.require("pushgateway_url")
    with limits():
        with hanging() as port:
            courier = Courier(settings.model_copy(update={"pushgateway_url": f"http://127.0.0.1:{port}"}), Airflow())
            waited = waits(courier)
            began = time.monotonic()
            for number in range(20):
                courier.ended(outcome(f"run-{number}", minute=number))
            took = time.monotonic() - began
        assert len(waited) == 20
        assert sum(waited) <= BUDGET_SECONDS * (1 + took / REFILL_SECONDS)
        assert took < 30, f"{took:.2f} s"
        until("the thread ends", lambda: courier._thread is None)
    courier._gateway = gateway
    courier.ended(outcome("last", minute=40))
    until("all 21 runs are counted", lambda: counts(gateway) == (21, 21, 0))


def test_a_hanging_database_holds_nobody_up_and_loses_nothing(settings: Settings) -> None:
    with limits(), hanging() as port:
        courier = Courier(settings, Airflow())
        real, courier._dsn = courier._dsn, f"postgresql://nobody@127.0.0.1:{port}/none"
        waited = waits(courier)
        began = time.monotonic()
        courier.ended(outcome(state="failed"))
        assert time.monotonic() - began < 30
        assert sum(waited) <= BUDGET_SECONDS
        until("the attempt ends", lambda: courier._thread is None)
    courier._dsn = real
    courier.ended(outcome("run-2", minute=1))
    until("both runs are counted", lambda: counts(courier._gateway) == (2, 1, 1))


def test_a_gateway_that_fails_every_request_changes_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.send_error(503)

        def log_message(self, *arguments: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    Courier(settings.model_copy(update={"pushgateway_url": address}), Airflow()).ended(outcome())
    server.shutdown()
    server.server_close()
    assert "503" in caplog.text
    assert "they go with the next run" in caplog.text


def test_a_process_that_pushes_slowly_never_overwrites_what_a_later_one_pushed(settings: Settings) -> None:
    slow, quick = (Courier(settings, Airflow()) for _ in range(2))
    slow.started()
    quick.started()
    computed, push = threading.Event(), slow._push

    def dawdle(*arguments: Any, **named: Any) -> None:
        computed.set()
        # Nobody may push in between; whoever would is given a second to do so.
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and counts(slow._gateway) == (0, 0, 0):
            time.sleep(0.02)
        push(*arguments, **named)

    slow._push = dawdle
    thread = threading.Thread(target=slow.ended, args=(outcome("first"),))
    thread.start()
    assert computed.wait(60)
    quick.ended(outcome("second", minute=1))
    thread.join()
    until("both end", lambda: slow._thread is None and quick._thread is None)
    assert counts(slow._gateway) == (2, 2, 0)


def test_a_process_killed_while_it_delivers_leaves_a_counter_that_is_right_in_the_end(settings: Settings) -> None:
    with hanging() as port:
        child = os.fork()
        if child == 0:
            stuck = settings.model_copy(update={"pushgateway_url": f"http://127.0.0.1:{port}"})
            Courier(stuck, Airflow()).ended(outcome(state="failed"))
            os._exit(0)
        with psycopg.connect(settings.require("postgres_dsn"), autocommit=True) as connection:
            until(
                "the outcome is written",
                lambda: (
                    outcomes._exists(connection, "marketdata.run_outcomes")
                    and connection.execute("SELECT count(*) FROM marketdata.run_outcomes").fetchone() == (1,)
                ),
            )
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    courier = Courier(settings, Airflow([outcome(state="failed")]))
    courier.ended(outcome(state="failed"))
    assert counts(courier._gateway) == (1, 0, 1)


def steps(settings: Settings, run: str, *results: tuple[str, dict[str, Any]]) -> None:
    """Write a run record."""
    from marketdata.observability.runs import recorded

    for step, result in results:
        with recorded(settings, "commodity_prices", run, step) as row:
            row.result = result


GOLD = {"source": "lbma", "commodity": "gold", "series": "PM", "frequency": "daily"}
JUNK = {"source": "lbma", "commodity": "'; DROP", "series": "", "frequency": ""}
FULL = (
    ("extract", {"rows": 12}),
    ("validate", {"batch_id": "v1", "expectations_met": 11, "expectations_broken": 1}),
    ("transform", {"batch_id": "b1", "rows": 10}),
    ("publish", {"published": 10}),
    ("load", {"inserted": 10}),
    ("reconcile", {
        "published": 10,
        "by_series": [
            {**GOLD, "extracted": 10, "quarantined": 0, "published": 10, "loaded": 10},
            {**JUNK, "extracted": 2, "quarantined": 2, "published": 0, "loaded": 0},
        ],
    }),
)  # fmt: skip


def test_records_of_a_run_come_from_its_record_by_commodity(settings: Settings) -> None:
    steps(settings, "run-1", *FULL)
    courier = Courier(settings, Airflow())
    courier.ended(outcome("run-1"))
    found = pushed(courier._gateway)
    assert found['batch_job_records{commodity="Gold",namespace="production",phase="published"}'] == 10
    assert found['batch_job_records{commodity="other",namespace="production",phase="quarantined"}'] == 2
    assert found['batch_job_records{commodity="Oil",namespace="production",phase="extracted"}'] == 0
    assert found['kafka_producer_records_total{topic="commodity-prices"}'] == 10
    assert found['gx_expectations_total{result="success",suite="commodity_prices"}'] == 11
    assert found['gx_expectations_total{result="failure",suite="commodity_prices"}'] == 1


def test_a_batch_published_before_its_run_failed_and_was_cleared_counts_once(settings: Settings) -> None:
    steps(settings, "run-1", *FULL[:4])
    courier = Courier(settings, Airflow())
    courier.ended(outcome("run-1", "failed"))
    assert pushed(courier._gateway)['kafka_producer_records_total{topic="commodity-prices"}'] == 10
    steps(settings, "run-1", *FULL[3:])
    courier.ended(outcome("run-1", "success", cleared=1, minute=5))
    found = pushed(courier._gateway)
    assert found['kafka_producer_records_total{topic="commodity-prices"}'] == 10
    assert found['gx_expectations_total{result="success",suite="commodity_prices"}'] == 11


def test_steps_of_an_earlier_attempt_do_not_count_for_a_later_one(settings: Settings) -> None:
    steps(settings, "run-1", *FULL)
    steps(settings, "run-1", ("extract", {"rows": 7}))
    courier = Courier(settings, Airflow())
    courier.ended(outcome("run-1", "failed", cleared=1))
    assert pushed(courier._gateway)['kafka_producer_records_total{topic="commodity-prices"}'] == 0


def test_the_gateway_keeps_its_counters_over_a_restart(settings: Settings, tmp_path: Path) -> None:
    with pushgateway(tmp_path) as address:
        Courier(settings.model_copy(update={"pushgateway_url": address}), Airflow()).ended(outcome())
        until("the gateway writes its file", lambda: (tmp_path / "pushgateway.data").exists())
    with pushgateway(tmp_path) as address:
        assert counts(address) == (1, 1, 0)


def test_what_is_pushed_is_the_catalogue_and_nothing_else(settings: Settings) -> None:
    from marketdata.observability.metrics import catalogue

    steps(settings, "run-1", *FULL)
    courier = Courier(settings, Airflow())
    courier.ended(outcome("run-1"))
    groups = requests.get(f"{courier._gateway}/api/v1/metrics", timeout=10).json()["data"]
    group = next(group for group in groups if group["labels"]["job"] == DAG)
    own = {"push_time_seconds", "push_failure_time_seconds", "labels", "last_push_successful"}
    found = {
        name: (family["type"].lower(), frozenset(family["metrics"][0]["labels"]) - {"instance"})
        for name, family in group.items()
        if name not in own
    }
    assert found == {metric.name: (metric.kind, frozenset(metric.labels)) for metric in catalogue()}
