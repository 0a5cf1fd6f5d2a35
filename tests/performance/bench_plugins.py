"""What run metrics and Slack alerts cost: real runs with both plugins beside the same runs without, and each call.

``python -m tests.performance.bench_plugins`` needs the Debian package prometheus-pushgateway; it starts two
Airflows, each on a PostgreSQL of its own.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import psycopg

from marketdata import engines
from marketdata.observability.outcomes import Outcome
from marketdata.observability.push import BUDGET_SECONDS, Courier
from marketdata.settings import CHECKOUT, ENDPOINTS_VARIABLE, Settings
from tests.engines.installation import Installation, installation
from tests.engines.slack import slack_server
from tests.waiting import until

RUNS = 200
DAG = "commodity-price-pipeline"

REAL_RUNS = {"succeeds": 50, "fails": 20}
"""DAG → how many runs of it with the plugins, and without."""

WARM_UP = 2
"""Runs before them, which also pay for what is new."""

BOTH = ("run_metrics", "slack_alerts")

_DAGS = """
from airflow.sdk import DAG, BaseOperator


class Quick(BaseOperator):
    def execute(self, context):
        if self.dag_id == "fails":
            raise ValueError("as asked")


with DAG("succeeds", schedule=None):
    Quick(task_id="first") >> Quick(task_id="second")
with DAG("fails", schedule=None):
    Quick(task_id="only")
"""

_CLOCK = '''
"""Loads plugins as Airflow would, and notes how long that and each call of their listeners took."""

import functools
import importlib.machinery
import importlib.util
import json
import os
import sys
import time


def note(what, began, about):
    line = {"pid": os.getpid(), "what": what, "ms": (time.perf_counter() - began) * 1000, "about": about}
    with open(os.environ["CLOCK_FILE"], "a") as file:
        file.write(json.dumps(line) + "\\n")


def timed(name, function):
    @functools.wraps(function)
    def call(*arguments):
        began = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            about = [getattr(one, "run_id", type(one).__name__) for one in arguments]
            note(name, began, about[0])

    return call


def load(name):
    began = time.perf_counter()
    loader = importlib.machinery.SourceFileLoader(name, os.path.join(os.environ["CLOCK_FOLDER"], name + ".py"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module
    loader.exec_module(module)
    note(name + " loads", began, "")
    for plugin in [one for one in vars(module).values() if isinstance(one, type) and vars(one).get("listeners")]:
        globals()[plugin.__name__] = plugin
        for listener in plugin.listeners:
            for hook in [attribute for attribute in dir(listener) if attribute.startswith("on_")]:
                setattr(listener, hook, timed(name + " " + hook, getattr(listener, hook)))


for name in os.environ["CLOCK_PLUGINS"].split():
    load(name)
'''


class _NoAirflow:
    def finished(self, since: datetime) -> list[Outcome]:
        return []

    def dags(self) -> list[str]:
        return []


@contextmanager
def postgres() -> Iterator[Settings]:
    """Settings of a PostgreSQL of its own, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="marketdata-bench-", ignore_cleanup_errors=True) as folder:
        own = {"MARKETDATA_HOME": folder, ENDPOINTS_VARIABLE: f"{folder}/engines/endpoints.json"}
        with patch.dict(os.environ, own):
            try:
                yield engines.up(Settings(), ["postgres"])
            finally:
                engines.down(Settings())


def run(settings: Settings, runs: int = RUNS) -> dict[str, Any]:
    """Milliseconds a caller of the run metrics waits: median, p99, max.

    Args:
        settings: with `postgres_dsn` and `pushgateway_url` of servers that run.
    """
    logging.getLogger("marketdata").setLevel(logging.ERROR)
    courier = Courier(settings, _NoAirflow())
    began = time.perf_counter()
    courier.started()
    start = time.perf_counter() - began
    refused = Courier(settings.model_copy(update={"pushgateway_url": "http://127.0.0.1:9"}), _NoAirflow())
    return {
        "runs": runs,
        "process starts, ms": round(start * 1000, 1),
        "run begins": _timed(courier, lambda n: courier.running(DAG), runs),
        "run ends": _timed(courier, lambda n: courier.ended(_outcome(n)), runs),
        "run ends, told again": _timed(courier, lambda n: courier.ended(_outcome(n)), runs),
        "run ends, no gateway": _timed(refused, lambda n: refused.ended(_outcome(runs + n)), runs),
    }


def _outcome(number: int) -> Outcome:
    ended = datetime.now(UTC)
    return Outcome(DAG, f"bench-{number}", 0, "success", ended - timedelta(seconds=60), ended)


def _timed(courier: Courier, work: Callable[[int], object], runs: int) -> dict[str, float]:
    waited = []
    for number in range(runs):
        courier._allowance = BUDGET_SECONDS  # runs minutes apart, not one after the other
        began = time.perf_counter()
        work(number)
        waited.append((time.perf_counter() - began) * 1000)
    return spread(waited)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, p99 (nearest rank) and max."""
    ordered = sorted(values)
    at = {"median": statistics.median(ordered), "p99": ordered[int(len(ordered) * 0.99) - 1], "max": ordered[-1]}
    return {name: round(value, 2) for name, value in at.items()}


def real_runs(gateway: str) -> dict[str, Any]:
    """The same runs of two real Airflows, one without the plugins and one with them, one run after the other in turns.

    Args:
        gateway: address of a Pushgateway.

    Returns:
        ``without`` and ``with``: milliseconds that runs, and tasks, of each DAG took, as Airflow noted them; ``task``:
        milliseconds of both plugins in a task's process, loading them included, by how it ended; ``run``: milliseconds
        their listeners held up the scheduler over a whole run, likewise; ``calls``: each loading, each listener call.
    """
    found: dict[str, Any] = {"without": defaultdict(dict), "with": defaultdict(dict)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        slack = stack.enter_context(slack_server())
        for part, text in (("dags/bench.py", _DAGS), ("plugins/clock.py", _CLOCK)):
            (folder / part).parent.mkdir()
            (folder / part).write_text(text)
        clock = folder / "clock.jsonl"
        both = {}
        for arm in found:
            extra = {
                "AIRFLOW__CORE__PLUGINS_FOLDER": str(folder / "plugins"),
                "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",  # a run's end is seen at once, in both
                "AIRFLOW_CONN_SLACK_DEFAULT": json.dumps(slack.bot),
                "PUSHGATEWAY_URL": gateway,
                "CLOCK_PLUGINS": " ".join(BOTH if arm == "with" else ()),
                "CLOCK_FOLDER": str(CHECKOUT / "plugins"),
                "CLOCK_FILE": str(clock),
            }
            settings = stack.enter_context(postgres())
            airflow = stack.enter_context(installation(settings, folder / "dags", extra, folder / arm))
            until("Airflow knows the DAGs", lambda airflow=airflow: airflow.ready(set(REAL_RUNS)), 120)
            both[arm] = (airflow, settings)
        for dag_id, count in REAL_RUNS.items():
            ids: dict[str, list[str]] = {arm: [] for arm in both}
            for number in range(count + WARM_UP):
                for arm in sorted(both, reverse=number % 2 == 0):
                    ids[arm].append(_run(*both[arm], dag_id))
            for arm, (_, settings) in both.items():
                for table in ("dag_run", "task_instance"):
                    milliseconds = [ms for (ms,) in _rows(settings, _TOOK.format(table), ids[arm][WARM_UP:])]
                    found[arm][dag_id][table] = spread(milliseconds)
        return {**found, **_attributed(clock)}


def _run(airflow: Installation, settings: Settings, dag_id: str) -> str:
    """Trigger a run and wait for its end."""
    run_id = airflow.trigger(dag_id)
    ended = "SELECT 1 FROM dag_run WHERE run_id = %s AND state IN ('success', 'failed')"
    until(f"{dag_id} ends", lambda: _rows(settings, ended, run_id))
    return run_id


_TOOK = "SELECT (extract(epoch FROM end_date - start_date) * 1000)::float8 FROM {} WHERE run_id = ANY(%s)"


def _rows(settings: Settings, query: str, *values: Any) -> list[tuple[Any, ...]]:
    metadata = urlsplit(settings.require("postgres_dsn"))._replace(path="/airflow").geturl()
    with psycopg.connect(metadata) as connection:
        return connection.execute(query, values).fetchall()


def _attributed(clock: Path) -> dict[str, Any]:
    """What the clock noted, put to tasks and to runs by how they ended."""
    by_process, by_run = defaultdict(list), defaultdict(list)
    for entry in map(json.loads, clock.read_text().splitlines()):
        by_process[entry["pid"]].append(entry)
        if "dag_run" in entry["what"]:
            by_run[entry["about"]].append(entry)
    tasks = [entries for entries in by_process.values() if any(one["about"] == "TaskRunnerMarker" for one in entries)]
    calls = defaultdict(list)
    for place, groups in (("task", tasks), ("run", list(by_run.values()))):
        for entry in [one for entries in groups for one in entries]:
            calls[f"{place}: {entry['what']}"].append(entry["ms"])
    return {
        "task": _by_end(tasks),
        "run": _by_end(by_run.values()),
        "calls": {what: spread(milliseconds) for what, milliseconds in sorted(calls.items())},
    }


def _by_end(groups: Iterable[list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    sums = defaultdict(list)
    for entries in groups:
        failed = any(one["what"].endswith("_failed") for one in entries)
        sums["failed" if failed else "succeeded"].append(sum(one["ms"] for one in entries))
    return {end: spread(milliseconds) for end, milliseconds in sums.items()}


def measure() -> dict[str, Any]:
    """Everything, on a PostgreSQL and a Pushgateway of its own."""
    from tests.engines.monitoring import pushgateway

    with postgres() as settings, tempfile.TemporaryDirectory() as folder, pushgateway(Path(folder)) as address:
        found = real_runs(address)
        return {**found, "run metrics alone": run(settings.model_copy(update={"pushgateway_url": address}))}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
