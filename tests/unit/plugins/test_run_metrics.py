"""The plugin: visibly off without a gateway, light to import, and nothing it meets reaches Airflow."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from marketdata import settings as settings_module
from marketdata.observability import push

PLUGIN = Path(__file__).resolve().parents[3] / "plugins" / "run_metrics.py"


@pytest.fixture
def plugin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_metrics_under_test", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def with_settings(settings_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(**overrides: Any) -> None:
        chosen = settings_for(**overrides)
        monkeypatch.setattr(settings_module, "load", lambda: chosen)

    return use


class Courier:
    """Remembers what it was told."""

    def __init__(self, *arguments: Any) -> None:
        self.told: list[Any] = []

    def started(self) -> None:
        self.told.append("started")

    def running(self, dag_id: str) -> None:
        self.told.append(dag_id)

    def ended(self, outcome: Any) -> None:
        self.told.append(outcome)


def dag_run(**overrides: Any) -> Any:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    fields = {"dag_id": "a-dag", "run_id": "a-run", "clear_number": 2, "start_date": now, "end_date": now}
    return SimpleNamespace(**{**fields, **overrides})


def test_without_a_gateway_it_is_off_and_says_so_once(
    plugin: ModuleType, with_settings: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    with_settings(postgres_dsn="postgresql://nobody@127.0.0.1:1/none")
    caplog.set_level("INFO")
    listener = plugin.RunMetricsListener()
    for _ in range(3):
        listener.on_dag_run_failed(dag_run=dag_run())
        listener.on_dag_run_running(dag_run=dag_run())
    assert [record.getMessage() for record in caplog.records] == ["run metrics are off: PUSHGATEWAY_URL is not set"]


def test_it_tells_how_a_run_ended(
    plugin: ModuleType, with_settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_settings(pushgateway_url="http://127.0.0.1:1", postgres_dsn="postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setattr(push, "Courier", Courier)
    listener = plugin.RunMetricsListener()
    listener.on_dag_run_running(dag_run=dag_run())
    listener.on_dag_run_failed(dag_run=dag_run())
    listener.on_dag_run_success(dag_run=dag_run(clear_number=None))
    begun, failed, succeeded = listener._courier.told
    assert begun == "a-dag"
    assert (failed.dag_id, failed.run_id, failed.cleared, failed.state) == ("a-dag", "a-run", 2, "failed")
    assert (succeeded.cleared, succeeded.state) == (0, "success")


def test_a_job_that_starts_is_told_and_a_task_process_is_not(
    plugin: ModuleType, with_settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_settings(pushgateway_url="http://127.0.0.1:1", postgres_dsn="postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setattr(push, "Courier", Courier)
    listener = plugin.RunMetricsListener()
    listener.on_starting(component=type("TaskRunnerMarker", (), {})())
    assert listener._courier is None
    listener.on_starting(component=type("Job", (), {})())
    assert listener._courier.told == ["started"]


def test_a_fork_starts_anew(
    plugin: ModuleType, with_settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_settings(pushgateway_url="http://127.0.0.1:1", postgres_dsn="postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setattr(push, "Courier", Courier)
    listener = plugin.RunMetricsListener()
    first = listener._ready()
    assert listener._ready() is first
    monkeypatch.setattr(os, "getpid", lambda: -2)
    assert listener._ready() is not first


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"pushgateway_url": "http://127.0.0.1:1"}, id="no database"),
        pytest.param(
            {"pushgateway_url": "http://127.0.0.1:1", "postgres_dsn": "postgresql://nobody@127.0.0.1:1/none"},
            id="a database that refuses",
        ),
    ],
)
def test_nothing_escapes(
    plugin: ModuleType,
    with_settings: Callable[..., None],
    overrides: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with_settings(**overrides)
    listener = plugin.RunMetricsListener()
    listener.on_dag_run_failed(dag_run=dag_run())
    assert "run metrics" in caplog.text


def test_importing_the_plugin_imports_neither_the_package_nor_a_client() -> None:
    program = (
        f"import sys, runpy; runpy.run_path({str(PLUGIN)!r});"
        "print([m for m in sys.modules if m.split('.')[0] in ('marketdata', 'prometheus_client', 'psycopg')])"
    )
    environment = {**os.environ, "AIRFLOW__CORE__PLUGINS_FOLDER": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_airflow_takes_it_as_a_listener(plugin: ModuleType) -> None:
    from airflow.listeners.listener import get_listener_manager

    manager = get_listener_manager()
    (listener,) = plugin.RunMetrics.listeners
    manager.add_listener(listener)
    try:
        assert manager.has_listeners
        hooks = {hook.plugin for hook in manager.hook.on_dag_run_failed.get_hookimpls()}
        assert listener in hooks
    finally:
        manager.pm.unregister(listener)
