"""Every step of a run SIGKILLed: before it writes, between its data and its commit, before it can say that it is done.

Nothing of a killed try is to be seen before its commit, and all of it after; the run, tried again from that step on,
ends with each record once in topic and table, and proves it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from marketdata.batches import Batch, Interval, Lake
from marketdata.datasets import COMMODITY_PRICES
from marketdata.lakehouse import open_lakehouse
from marketdata.settings import Settings
from marketdata.tasks.extract import extract
from marketdata.tasks.load import load
from marketdata.tasks.publish import publish
from marketdata.tasks.reconcile import reconcile
from marketdata.tasks.transform import transform
from marketdata.tasks.validate import validate
from tests.contract.test_lakehouse import new_schema
from tests.contract.topic import held, own_topic
from tests.faults.children import environment
from tests.unit.tasks.test_extract_validate import MAPPING

DAYS = Interval(date(2020, 4, 1), date(2020, 5, 1))
FIRST = date(2020, 4, 1)
PRICES = {FIRST + timedelta(days=number): Decimal(f"{20 + number}.5") for number in range(30)}
BELOW_ZERO = date(2020, 4, 20)

DIE_AT = """
import importlib, os, signal, sys
module, name, moment, containing, *arguments = sys.argv[1:]
owner = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    owner = getattr(owner, part)
original = getattr(owner, last)

def call(*args, **kwargs):
    here = containing in str(args[1:2])
    if here and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **kwargs)
    if here:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, last, call)
from marketdata.tasks.cli import app
app(arguments)
"""


class Point(NamedTuple):
    """Where a step dies: before or after a call, of those whose first argument contains a text."""

    step: str
    moment: str
    function: str
    when: str
    containing: str = ""
    done: bool = False
    """Whether all of the step is to be seen."""


PUT = "marketdata.batches:Lake.put"
SEND = "marketdata.streaming.publish:_Transaction"
WRITE = "marketdata.lakehouse.embedded:_Write.commit"
TABLE = "marketdata.lakehouse.embedded:EmbeddedLakehouse"
CATALOG = "pyiceberg.catalog.sql:SqlCatalog.commit_table"
POINTS = [
    *[
        point
        for step in ("extract", "validate", "transform")
        for point in (
            Point(step, "before the write", PUT, "before"),
            Point(step, "between data file and manifest", PUT, "before", "manifest.json"),
            Point(step, "between commit and acknowledgement", PUT, "after", "manifest.json", done=True),
        )
    ],
    Point("publish", "before the write", f"{SEND}.produce", "before"),
    Point("publish", "between data and marker", f"{SEND}.flush", "after"),
    Point("publish", "between marker and commit", f"{SEND}._insist", "before", "commit"),
    Point("publish", "between commit and acknowledgement", f"{SEND}.commit", "after", done=True),
    Point("load", "before the write", f"{TABLE}.load", "before"),
    Point("load", "between data file and manifest", WRITE, "before"),
    Point("load", "between manifest and commit", CATALOG, "before"),
    Point("load", "between commit and acknowledgement", f"{TABLE}.load", "after", done=True),
    Point("load", "before the quarantine", f"{TABLE}.quarantine", "before", done=True),
    Point("load", "between quarantine and acknowledgement", f"{TABLE}.quarantine", "after", done=True),
    Point("reconcile", "before it has looked", "marketdata.tasks.reconcile:reconcile", "before"),
    Point("reconcile", "between proof and acknowledgement", "marketdata.tasks.reconcile:reconcile", "after", done=True),
]


class Run:
    """A run's steps, one after the other; each may be repeated."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.batches: dict[str, Batch] = {}
        self.proof: dict[str, Any] = {}

    def step(self, name: str) -> None:
        settings, batches = self.settings, self.batches
        if name == "extract":
            batches[name] = extract(settings, COMMODITY_PRICES, DAYS, lookback_days=0, run_id="r1", attempt_of_run=0)
        elif name == "validate":
            batches[name] = validate(settings, COMMODITY_PRICES, batches["extract"])
        elif name == "transform":
            batches[name] = transform(settings, COMMODITY_PRICES, batches["validate"])
        elif name == "publish":
            publish(settings, COMMODITY_PRICES, batches["transform"])
        elif name == "load":
            load(settings, COMMODITY_PRICES, batches["transform"])
        else:
            self.proof = reconcile(settings, COMMODITY_PRICES, batches["transform"].uri)

    def arguments(self, name: str) -> list[str]:
        """The command a pod would run for a step."""
        command = [name, "--dataset", "commodity_prices", "--run-id", "r1"]
        if name == "extract":
            return [*command, "--start", str(DAYS.start), "--end", str(DAYS.end)]
        before = {"validate": "extract", "transform": "validate"}.get(name, "transform")
        return [*command, "--batch", self.batches[before].uri]

    def seen(self) -> dict[str, int]:
        """What anybody can see of each step: complete batches, messages, rows."""
        lake = Lake(self.settings)
        steps = Counter(
            lake.open(f"{lake.uri}/{entry['path']}").manifest.step
            for entries in lake._store.list("batches")
            for entry in entries
            if entry["path"].endswith("/manifest.json")
        )
        return {**steps, "publish": len(held(self.settings)), "load": len(self.table())}

    def table(self) -> list[dict[str, Any]]:
        lakehouse = open_lakehouse(self.settings)
        lakehouse.ensure(COMMODITY_PRICES)
        rows: list[dict[str, Any]] = lakehouse.query("SELECT * FROM commodity_prices").to_pylist()
        return rows


STEPS = ("extract", "validate", "transform", "publish", "load", "reconcile")


@pytest.fixture
def run(embedded: Settings, settings_for: Callable[..., Settings], tmp_path: Path) -> Run:
    files = tmp_path / "files"
    files.mkdir()
    (files / "mapping.yaml").write_text(MAPPING)
    rows = [f"{day},{'-36.98' if day == BELOW_ZERO else price}" for day, price in PRICES.items()]
    (files / "prices.csv").write_text("\n".join(["Date,Price", *rows]) + "\n")
    return Run(
        own_topic(embedded, settings_for, trino_schema=new_schema(), marketdata_sources="files", marketdata_files=files)
    )


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point.step}, {point.moment}")
def test_a_step_killed_at_any_point_leaves_nothing_in_part_and_the_next_try_completes_the_run(
    point: Point, run: Run
) -> None:
    number = STEPS.index(point.step)
    for step in STEPS[:number]:
        run.step(step)
    before = run.seen()
    module, _, name = point.function.partition(":")
    killed = subprocess.run(
        [sys.executable, "-c", DIE_AT, module, name, point.when, point.containing, *run.arguments(point.step)],
        env=environment(
            run.settings, MARKETDATA_SOURCES="files", MARKETDATA_FILES=str(run.settings.marketdata_files),
            MARKETDATA_RESULT=str(run.settings.marketdata_home / "result.json"),
        ),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (run.settings.marketdata_home / "result.json").exists()

    whole = {"extract": 1, "validate": 1, "transform": 1, "publish": 29, "load": 29}
    done = {point.step: whole[point.step]} if point.done and point.step in whole else {}
    assert run.seen() == {**before, **done}

    for step in STEPS[number:]:
        run.step(step)
        if step != "reconcile":
            run.step(step)
    assert run.seen() == whole
    wanted = {datetime(day.year, day.month, day.day, tzinfo=UTC): price for day, price in PRICES.items()}
    del wanted[datetime(BELOW_ZERO.year, BELOW_ZERO.month, BELOW_ZERO.day, tzinfo=UTC)]
    assert {row["event_time"]: row["price"] for row in run.table()} == wanted
    messages = held(run.settings)
    assert {datetime.fromisoformat(one["timestamp"]): one["price"] for one in messages} == wanted
    assert {one["record_id"] for one in messages} == {row["record_id"] for row in run.table()}
    refused = open_lakehouse(run.settings).query("SELECT value FROM commodity_prices_quarantine").to_pylist()
    assert [row["value"] for row in refused] == ["-36.98"]
    assert {name: run.proof[name] for name in ("extracted", "quarantined", "records")} == {
        "extracted": 30, "quarantined": 1, "records": 29,
    }  # fmt: skip
