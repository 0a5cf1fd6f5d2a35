"""The plugin: light to load, never in the scheduler's way, and strict about what Slack says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from marketdata.observability import slack as messages
from marketdata.observability.notices import MemoryOutbox, Notice, NotPostedError, Receipt
from marketdata.observability.slack import Message
from tests.engines.slack import TOKEN, Misbehaviour, Slack, slack_server

PLUGIN = Path(__file__).resolve().parents[3] / "plugins" / "slack_alerts.py"
MESSAGE = Message("it failed", ({"type": "section", "text": {"type": "mrkdwn", "text": "it *failed*"}},))
RUN = messages.Run("test", "dag", "run", "https://airflow.example/dags/dag/runs/run", "docs/runbooks/x.md")


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slack_alerts_under_test", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plugin() -> ModuleType:
    return load()


@pytest.fixture
def slack() -> Iterator[Slack]:
    with slack_server() as server:
        yield server


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, settings_for: Callable[..., Any]) -> Callable[[dict[str, Any]], None]:
    settings_for()
    return lambda connection: monkeypatch.setenv("AIRFLOW_CONN_SLACK_DEFAULT", json.dumps(connection))


def test_loading_it_imports_nothing_heavy() -> None:
    heavy = ("psycopg", "slack_sdk", "pydantic_settings", "marketdata.observability", "airflow.models.dagrun")
    code = (
        "import sys, runpy, airflow.plugins_manager, airflow.listeners; before = set(sys.modules); "
        f"runpy.run_path({str(PLUGIN)!r}); print([n for n in {heavy!r} if n in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("kind", ["webhook", "bot"])
def test_a_message_is_posted_through_the_provider(
    plugin: ModuleType, slack: Slack, connect: Callable[[Any], None], kind: str
) -> None:
    connect(getattr(slack, kind))
    receipt = plugin._post(MESSAGE, None, "failure/dag/run/0")
    (post,) = slack.posted
    assert post.text == "it failed"
    assert post.payload["blocks"] == list(MESSAGE.blocks)
    assert receipt == (Receipt(post.channel, post.ts) if kind == "bot" else Receipt())


def test_a_bot_answers_in_the_thread_and_the_channel(
    plugin: ModuleType, slack: Slack, connect: Callable[[Any], None]
) -> None:
    connect(slack.bot)
    first = plugin._post(MESSAGE, None, "failure/dag/run/0")
    plugin._post(MESSAGE, first, "recovery/dag/run/0")
    assert slack.posted[1].thread_ts == slack.posted[0].ts
    assert slack.posted[1].payload["reply_broadcast"] is True
    assert slack.posted[0].payload["client_msg_id"] != slack.posted[1].payload["client_msg_id"]


@pytest.mark.parametrize("kind", ["webhook", "bot"])
@pytest.mark.parametrize(
    ("act", "says", "retry_after"),
    [
        (Misbehaviour(status=429, retry_after=7), "429", 7.0),
        (Misbehaviour(status=429), "429", 30.0),
        (Misbehaviour(status=503), "503", None),
        (Misbehaviour(status=0), "", None),
    ],
)
def test_whatever_slack_does_is_one_try(
    plugin: ModuleType,
    slack: Slack,
    connect: Callable[[Any], None],
    kind: str,
    act: Misbehaviour,
    says: str,
    retry_after: float | None,
) -> None:
    connect(getattr(slack, kind))
    slack.script.append(act)
    with pytest.raises(NotPostedError) as caught:
        plugin._post(MESSAGE, None, "key")
    assert says in str(caught.value)
    assert caught.value.retry_after == retry_after
    assert len(slack.requests) == 1
    assert slack.posted == []


@pytest.mark.parametrize("kind", ["webhook", "bot"])
def test_a_slow_slack_is_given_up(
    plugin: ModuleType, slack: Slack, connect: Callable[[Any], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "POST_TIMEOUT_SECONDS", 1)
    connect(getattr(slack, kind))
    slack.script.append(Misbehaviour(delay_seconds=60))
    started = time.monotonic()
    with pytest.raises(NotPostedError):
        plugin._post(MESSAGE, None, "key")
    assert time.monotonic() - started < 30


def test_a_refusal_does_not_tell_the_secret(
    plugin: ModuleType, slack: Slack, connect: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    connect({"conn_type": "slackwebhook", "password": f"{slack.address}/services/T0/B0/S3CRET"})
    with pytest.raises(NotPostedError) as caught:
        plugin._post(MESSAGE, None, "key")
    assert "S3CRET" not in str(caught.value) + caplog.text
    connect({**slack.bot, "password": TOKEN + "S3CRET"})
    with pytest.raises(NotPostedError, match="invalid_auth"):
        plugin._post(MESSAGE, None, "key")
    assert "S3CRET" not in caplog.text


def test_a_bot_without_a_channel_says_what_is_missing(
    plugin: ModuleType, slack: Slack, connect: Callable[[Any], None]
) -> None:
    connect({"conn_type": "slack", "password": TOKEN})
    with pytest.raises(NotPostedError, match="names no channel"):
        plugin._post(MESSAGE, None, "key")


def test_without_a_connection_alerts_are_off_and_say_so_once(
    plugin: ModuleType,
    settings_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings_for()
    monkeypatch.setattr(plugin, "_connection", lambda: None)
    teller = plugin.Teller()
    teller.look()
    teller._complain("")
    teller.look()
    assert [record.getMessage() for record in caplog.records] == [
        "Slack alerts are off: connection slack_default is not set"
    ]


def test_a_listener_waits_for_nobody(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    teller = plugin.Teller()
    monkeypatch.setattr(plugin, "_teller", teller)
    answered = threading.Event()
    monkeypatch.setattr(teller, "look", lambda: answered.wait(60))
    monkeypatch.setattr(plugin, "FLUSH_SECONDS", 0)
    run = SimpleNamespace(dag_id="dag", run_id="run")
    started = time.monotonic()
    for _ in range(50):
        plugin.on_dag_run_failed(dag_run=run, msg="task_failure")
    assert time.monotonic() - started < 30
    teller._heard.clear()
    answered.set()


def test_without_postgres_a_failure_is_told_from_memory_once(
    plugin: ModuleType,
    slack: Slack,
    connect: Callable[[Any], None],
    settings_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect(slack.webhook)
    ended = SimpleNamespace(dag_id="dag", run_id="run", clear_number=0, state="failed", end_date=datetime.now(UTC))
    for settings in (settings_for(), settings_for(postgres_dsn="postgresql://etl:hunter2@127.0.0.1:1/none")):
        monkeypatch.setattr(plugin, "_settings", lambda chosen=settings: chosen)
        monkeypatch.setattr(plugin, "_ended", lambda session, since, heard: [ended] if heard else [])
        notice = Notice("failure", "dag", "run", "0", messages.failure(RUN))
        monkeypatch.setattr(plugin, "_notices", lambda session, run, said, notice=notice: [notice])
        monkeypatch.setattr(plugin, "_recoveries", lambda session, failures: [])
        before = len(slack.posted)
        teller = plugin.Teller()
        for _ in range(3):
            teller._heard[("dag", "run")] = ("task_failure", time.monotonic())
            with teller._guard:
                teller.look()
        assert len(slack.posted) == before + 1
        assert teller._heard == {}


def test_a_task_that_fails_leaves_its_error_without_secrets(
    plugin: ModuleType, settings_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(postgres_dsn="postgresql://etl:hunter2@db:5432/prices")
    monkeypatch.setattr(plugin, "_settings", lambda: settings)
    try:
        raise ValueError("hunter2 was refused by postgresql://etl:other@db")
    except ValueError as error:
        words = plugin._last_words(error)
    assert words == (
        "ValueError: *** was refused by postgresql://***@db\n"
        f"at test_slack_alerts.py:{LINE} in test_a_task_that_fails_leaves_its_error_without_secrets"
    )


LINE = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "raise ValueError(" in text)


def test_a_missed_deadline_is_told_directly_where_there_is_no_postgres(
    plugin: ModuleType, slack: Slack, connect: Callable[[Any], None]
) -> None:
    connect(slack.webhook)
    run = {"dag_id": "dag", "dag_run_id": "run", "start_date": "2026-11-21T02:00:00Z", "data_interval_start": None}
    plugin.deadline_missed(
        {"dag_run": run, "deadline": {"id": "1", "deadline_time": datetime(2026, 11, 21, tzinfo=UTC)}}
    )
    assert "missed its deadline" in json.dumps(slack.posted[0].payload)


def test_a_fork_waits_for_the_teller_but_not_for_slack(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "FORK_WAITS_SECONDS", 60)
    guard = plugin.ForkGuard()
    with guard:
        started = time.monotonic()
        with guard.open():
            guard._before()
            guard._after()
        assert time.monotonic() - started < 30
    guard._before()
    assert guard._held
    guard._after()


def test_memory_is_handed_over_when_postgres_answers_again() -> None:
    written: list[tuple[str, bool]] = []
    memory = MemoryOutbox()
    memory.add(Notice("failure", "dag", "told", "0", MESSAGE))
    memory.deliver(lambda message, thread, key: Receipt("C1", "1"))
    memory.add(Notice("failure", "dag", "waits", "0", MESSAGE))
    table: Any = SimpleNamespace(add=lambda notice, sent: written.append((notice.run_id, sent is not None)))
    memory.hand_over(table)
    assert written == [("told", True), ("waits", False)]
    assert not memory.waiting
