"""Whole runs of the DAG by `dag.test`, on a database of their own and a `marketdata` that does as it is told."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from marketdata.engines.process import ended
from tests.fake_marketdata import Fake
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).parent / "runner.py"
ORDER = ["preflight", "extract", "validate", "transform", "publish", "load", "reconcile"]
PATIENCE_SECONDS = 120.0

BEHAVIOURS: dict[str, dict[str, Any]] = {
    "green": {},
    "publish fails twice": {"publish": {"exits": [69, 75, 0], "stderr": ["error: broker away"]}},
    "publish fails": {"publish": {"exits": [69]}},
    "bad data": {"validate": {"exits": [65], "stderr": ["error: 7 % refused"], "result": {"batch": "file:///verdict"}}},
    "no day": {},
}
PARAMETERS: dict[str, dict[str, Any]] = {
    "green": {"start": "2019-01-01", "end": "2019-01-05"},
    "no day": {"start": "2019-01-05", "end": "2019-01-05"},
}


@dataclass(frozen=True)
class Ran:
    """What a run left: its state and its tasks', rendered fields, links, calls of the fake, and the logs."""

    green: bool
    run_id: str
    tasks: dict[str, list[Any]]
    rendered: dict[str, dict[str, Any]]
    links: dict[str, str]
    calls: list[dict[str, Any]]
    logs: str

    @property
    def called(self) -> list[str]:
        return [call["words"][0] for call in self.calls]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of an Airflow of its own, its database migrated."""
    home = tmp_path_factory.mktemp("airflow")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "MARKETDATA_ENDPOINTS": str(home / "no-endpoints.json"),
        "LAKE_URI": f"file://{home}/lake",
        "POSTGRES_DSN": "postgresql://app:s3cr3t-of-the-database@127.0.0.1:1/none",
        "MARKETDATA_UNRELATED_SECRET": "s3cr3t-of-the-runner",
    }
    migrate = "from airflow.utils.db import initdb; initdb()"
    subprocess.run([sys.executable, "-c", migrate], env=environment, check=True, capture_output=True, timeout=180)
    return environment


@pytest.fixture(scope="module")
def runs(airflow: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    """Every scenario, run once; in one process, because Airflow takes 8 s to begin with."""
    fakes = {}
    for name, behaviour in BEHAVIOURS.items():
        fakes[name] = Fake(tmp_path_factory.mktemp("bin"))
        fakes[name].behave(**behaviour)
    scenarios = {name: [str(fake.folder), PARAMETERS.get(name, {})] for name, fake in fakes.items()}
    done = subprocess.run(
        [sys.executable, str(RUNNER), json.dumps(scenarios)],
        env=airflow, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    found = {}
    logs: list[str] = []
    for line in done.stdout.splitlines():
        if line.startswith("RAN "):
            name, left = json.loads(line.removeprefix("RAN "))
            found[name] = Ran(**left, calls=fakes[name].calls(), logs="\n".join(logs))
            logs = []
        else:
            logs.append(line)
    return found


def test_a_run_hands_each_step_the_batch_of_the_one_before(runs: dict[str, Ran]) -> None:
    run = runs["green"]
    assert run.green
    assert run.called in (ORDER, [*ORDER[:4], "load", "publish", "reconcile"])
    words = {call["words"][0]: call["words"] for call in run.calls}
    assert words["extract"][3:7] == ["--start", "2019-01-01", "--end", "2019-01-05"]
    for step, before in (("validate", "extract"), ("transform", "validate"), ("load", "transform")):
        assert words[step][-2:] == ["--batch", f"file:///lake/batches/{before}/manifest.json"]


def test_a_step_knows_its_run_and_nothing_of_airflow(runs: dict[str, Ran]) -> None:
    given = runs["green"].calls[-1]["env"]
    assert given["MARKETDATA_RUN_ID"] == runs["green"].run_id
    assert (given["MARKETDATA_TASK_ID"], given["MARKETDATA_TRY_NUMBER"]) == ("reconcile", "1")
    assert not [name for name in given if "AIRFLOW" in name or name == "MARKETDATA_UNRELATED_SECRET"]


def test_no_secret_is_rendered_handed_over_or_logged(runs: dict[str, Ran]) -> None:
    for run in runs.values():
        assert "s3cr3t" not in run.logs + json.dumps([run.rendered, run.links])
        assert all(fields.keys() == {"command"} for fields in run.rendered.values())


def test_a_task_links_to_its_report_and_batch(runs: dict[str, Ran]) -> None:
    links = runs["green"].links
    manifest = "?manifest=file%3A%2F%2F%2Flake%2Fbatches%2F"
    assert links["quality.validate _link_ReportLink"] == f"/marketdata/report{manifest}validate%2Fmanifest.json"
    assert links["deliver.load _link_BatchLink"] == f"/marketdata/batch{manifest}load%2Fmanifest.json"
    assert links["extract _link_ReportLink"] == ""


def test_two_failures_then_success(runs: dict[str, Ran]) -> None:
    run = runs["publish fails twice"]
    assert run.green
    assert run.tasks["publish"] == ["success", 3]
    assert "marketdata publish failed (exit 69: a dependency is down): broker away" in run.logs


def test_three_failures_fail_the_run_and_reconcile_does_not_hide_it(runs: dict[str, Ran]) -> None:
    run = runs["publish fails"]
    assert not run.green
    assert run.tasks["publish"] == ["failed", 3]
    assert run.tasks["load"] == ["success", 1]
    assert run.tasks["reconcile"] == ["failed", 1], "it ran, and once"
    assert run.called[-1] == "reconcile"
    assert "the run has failed: deliver.publish (failed)" in run.logs


def test_bad_data_is_not_tried_again_and_reaches_neither_topic_nor_table(runs: dict[str, Ran]) -> None:
    run = runs["bad data"]
    assert not run.green
    assert run.tasks["validate"] == ["failed", 1]
    assert {run.tasks[step][0] for step in ("transform", "publish", "load")} == {"upstream_failed"}
    assert run.called == ["preflight", "extract", "validate", "reconcile"]
    assert run.calls[-1]["words"][-2:] == ["--batch", ""]
    assert "(exit 65: bad data, not retried): 7 % refused" in run.logs
    assert run.links["quality.validate _link_ReportLink"].endswith("file%3A%2F%2F%2Fverdict"), "its report is linked"


def test_parameters_without_a_day_fail_at_once(runs: dict[str, Ran]) -> None:
    run = runs["no day"]
    assert not run.green
    assert run.tasks["extract"] == ["failed", 1]
    assert "extract" not in run.called
    assert "the run's interval [2019-01-05, 2019-01-05) holds no day" in run.logs


@pytest.fixture
def main(fake: Fake, airflow: dict[str, str]) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts `python -m marketdata.orchestration.run`, with the fake."""

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        code = (
            "import sys; from pathlib import Path; from marketdata.orchestration import local, run\n"
            "local.SCRIPTS = Path(sys.argv[1]); sys.exit(run.main(sys.argv[2:]))"
        )
        words = [sys.executable, "-c", code, str(fake.folder), *arguments]
        return subprocess.Popen(words, env=airflow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return start


def test_a_drill_that_failed_is_not_tried_again_and_cleared_all_the_same(
    fake: Fake, main: Callable[..., subprocess.Popen[bytes]]
) -> None:
    fake.behave(chaos={"exits": [65], "stderr": ["error: 31 s to recover"]})
    conf = {"scenarios": "consumer-crash,broker-failure", "consumers": 2, "dry_run": False}
    assert main("--dag-id", "chaos-drill", "--conf", json.dumps(conf)).wait(PATIENCE_SECONDS) == 1
    assert [call["words"] for call in fake.calls()] == [
        ["drill-check"],
        ["chaos", "--scenario", "consumer-crash,broker-failure", "--consumers", "2", "--no-dry-run"],
        ["drill-clear"],
    ]
    assert len({call["env"]["MARKETDATA_RUN_ID"] for call in fake.calls()}) == 1, "they name the same ground"


def test_a_dag_that_is_not_there_is_wrong_use(main: Callable[..., subprocess.Popen[bytes]]) -> None:
    assert main("--dag-id", "no-such-dag").wait(PATIENCE_SECONDS) == 64


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end_does_so_at_once_and_is_failed(
    fake: Fake, airflow: dict[str, str], main: Callable[..., subprocess.Popen[bytes]], number: signal.Signals
) -> None:
    fake.behave(preflight={"code": "(here / 'pid').write_text(str(os.getpid())); time.sleep(600)"})
    moment = datetime.now(UTC)
    process = main("--conf", '{"lookback_days": 3}', "--at", moment.isoformat())
    pid = fake.folder / "pid"
    try:
        until(
            "the task runs", lambda: (pid.exists() and pid.read_text()) or process.poll() is not None, PATIENCE_SECONDS
        )
        command = psutil.Process(int(pid.read_text()))
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 128 + number
    finally:
        process.kill()
        process.wait()
    until("the command has ended", lambda: ended(command))
    with sqlite3.connect(f"{airflow['AIRFLOW_HOME']}/airflow.db") as database:
        query = "SELECT state FROM dag_run WHERE run_id = ?"
        assert database.execute(query, (f"manual__{moment.isoformat()}",)).fetchall() == [("failed",)]
