"""`marketdata run`: the whole pipeline here and now, shown while it goes, and what it did for people and machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from marketdata import engines
from marketdata.datasets import Dataset
from marketdata.errors import MarketdataError
from marketdata.observability import runs
from marketdata.observability.runs import Step
from marketdata.settings import Settings
from marketdata.sources import open_sources
from marketdata.streaming import topics
from marketdata.tasks.runs import series_table, steps_table, summary_of
from marketdata.tasks.screen import console, plain
from marketdata.tasks.turns import LONGEST_SECONDS, turn

HISTORY_START = date(1800, 1, 1)
"""Before the first day of every source."""

LOOKBACK_DAYS = 30
EXAMPLE_QUERY = "SELECT commodity, count(*) FROM commodity_prices GROUP BY 1"
POLL_SECONDS = 0.2


def run(settings: Settings, dataset: Dataset, start: date | None, end: date | None) -> int:
    """Run the pipeline once through Airflow, in this process group, on the engines that are set or embedded.

    Returns:
        The exit code: 0, or that of the step that failed.
    """
    screen = console()
    sources = open_sources(settings, dataset)
    with turn(settings, screen):
        with screen.status("starting the engines") as status:
            settings = engines.up(settings, ["kafka", "postgres"], say=status.update)
            topics.apply(settings)
            environment = engines.airflow_environment(settings)
            engines.migrate_airflow(settings)
        fingerprints = sorted(source.fingerprint() for source in sources)
        conf, says = _interval(settings, dataset, fingerprints, start, end)
        moment = datetime.now(UTC).isoformat()
        run_id = f"manual__{moment}"
        names = ", ".join(source.name for source in sources)
        screen.print(
            f"[bold]commodity-price-pipeline[/]  {says}; sources: {names}\n[dim]run {run_id}[/]", soft_wrap=True
        )
        log = settings.marketdata_home / "logs" / f"{run_id}.log"
        command = [sys.executable, "-m", "marketdata.orchestration.run", "--at", moment, "--conf", json.dumps(conf)]
        code = _follow(screen, settings, dataset, run_id, command, environment, log)
    steps = runs.steps(settings, dataset.name, run_id)
    _write_json(settings, run_id, conf, steps, code)
    return _report(screen, settings, steps, code, log)


def _interval(
    settings: Settings, dataset: Dataset, fingerprints: list[str], start: date | None, end: date | None
) -> tuple[dict[str, Any], str]:
    today = datetime.now(UTC).date()
    if start or end:
        first, last = start or HISTORY_START, end or today + timedelta(days=1)
        return {"start": str(first), "end": str(last), "lookback_days": 0}, f"days [{first}, {last})"
    if not _has_history(settings, dataset, fingerprints):
        last = today + timedelta(days=1)
        return {"start": str(HISTORY_START), "end": str(last), "lookback_days": 0}, "first run: the whole history"
    first = today - timedelta(days=1)
    return (
        {"start": str(first), "end": str(today), "lookback_days": LOOKBACK_DAYS},
        f"newest interval: {first}, and revisions of the {LOOKBACK_DAYS} days before",
    )


def _has_history(settings: Settings, dataset: Dataset, fingerprints: list[str]) -> bool:
    for steps in runs.latest(settings, dataset.name, limit=1000):
        done = {step.step: step for step in steps if step.state == "done"}
        if "reconcile" in done and "extract" in done:
            result = done["extract"].result
            if result.get("start") == str(HISTORY_START) and result.get("fingerprints") == fingerprints:
                return True
    return False


def _follow(
    screen: Console,
    settings: Settings,
    dataset: Dataset,
    run_id: str,
    command: list[str],
    environment: dict[str, str],
    log: Path,
) -> int:
    """Run the DAG in a child process and show its steps until it ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LONGEST_SECONDS
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        ) as child,
        Live(console=screen, refresh_per_second=8, transient=True) as live,
    ):
        try:
            while child.poll() is None and time.monotonic() < deadline:
                live.update(steps_table(runs.steps(settings, dataset.name, run_id)))
                time.sleep(POLL_SECONDS)
        finally:
            if child.poll() is None:
                child.terminate()
    return child.returncode


def _report(screen: Console, settings: Settings, steps: list[Step], code: int, log: Path) -> int:
    summary = summary_of(steps)
    screen.print(steps_table(steps))
    screen.print()
    if code != 0 or not summary:
        failed = next((step for step in steps if step.state == "failed"), None)
        says = f"{failed.step}: {plain(failed.error)}" if failed else "Airflow could not run the DAG"
        screen.print(f"[red bold]the run failed[/]  {says}", soft_wrap=True)
        screen.print(f"log: {log}", soft_wrap=True)
        return (failed and failed.exit_code) or MarketdataError.exit_code
    if summary["extracted"] == 0:
        screen.print("[green bold]nothing new[/]: the sources have no data for these days")
    elif summary["published"] == summary["loaded"] == 0:
        screen.print("[green bold]nothing new[/]: every record is in the topic and in the table already")
    if summary["by_series"]:
        screen.print(series_table(summary))
    for reason, rows in summary["reasons"].items():
        screen.print(f"quarantined {rows:,}: {plain(reason)}", soft_wrap=True)
    if summary["extracted"]:
        screen.print(
            f"proved: extracted {summary['extracted']:,} = records {summary['records']:,} + quarantined "
            f"{summary['quarantined']:,} + exact duplicates {summary['exact_duplicates']:,} + superseded "
            f"{summary['superseded']:,}; every record is in the topic and in the table, once",
            soft_wrap=True,
        )
    marketdata = os.path.relpath(sys.argv[0])
    screen.print("\nlook further:", style="bold")
    for says, command in (
        ("read the topic", f"{marketdata} topics read {settings.kafka_topic} --limit 10"),
        ("query the table", f'{marketdata} query "{EXAMPLE_QUERY}"'),
        ("open the report", summary["report"]),
        ("open the UI", "make up"),
    ):
        screen.print(f"  {says:<16} {command}", soft_wrap=True)
    return 0


def _write_json(settings: Settings, run_id: str, conf: dict[str, Any], steps: list[Step], code: int) -> None:
    content = {
        "run_id": run_id,
        "conf": conf,
        "state": "success" if code == 0 else "failed",
        "steps": [{**asdict(step), "seconds": step.seconds} for step in steps],
        "summary": summary_of(steps),
    }
    target = settings.marketdata_home / "run.json"
    target.with_suffix(".tmp").write_text(json.dumps(content, default=str, indent=1))
    target.with_suffix(".tmp").replace(target)
