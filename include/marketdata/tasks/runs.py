"""`marketdata runs`, and the table every run ends with: what each step did, and rows per commodity and series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from marketdata.datasets import Dataset
from marketdata.errors import UsageError
from marketdata.observability import runs
from marketdata.observability.runs import Step
from marketdata.settings import Settings
from marketdata.tasks.screen import console, plain

STEPS = ("preflight", "extract", "validate", "transform", "publish", "load", "reconcile")
"""In the order of the pipeline."""

_STYLES = {"done": "green", "failed": "red", "running": "yellow"}


def show_list(settings: Settings, dataset: Dataset, limit: int) -> None:
    """Print the last runs, newest first."""
    columns = ("started", "steps done", "extracted", "quarantined", "published", "loaded")
    table = Table("run", *columns, header_style="bold", box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for column in table.columns[3:]:
        column.justify = "right"
    for steps in runs.latest(settings, dataset.name, limit):
        summary = summary_of(steps)
        states = {step.step: step.state for step in steps}
        failed = [name for name, state in states.items() if state == "failed"]
        done = f"{sum(state == 'done' for state in states.values())} of {len(STEPS)}"
        table.add_row(
            plain(steps[0].run_id),
            f"{steps[0].started_at:%Y-%m-%d %H:%M:%S}",
            f"[red]failed: {', '.join(failed)}[/]" if failed else done,
            *(
                f"{summary[name]:,}" if name in summary else ""
                for name in ("extracted", "quarantined", "published", "loaded")
            ),
        )
    console().print(table)


def show(settings: Settings, dataset: Dataset, run_id: str) -> None:
    """Print one run.

    Raises:
        UsageError: no such run is on record.
    """
    steps = runs.steps(settings, dataset.name, run_id)
    if not steps:
        raise UsageError(f"no run {run_id!r} of {dataset.name} is on record", "marketdata runs list")
    screen = console()
    screen.print(steps_table(steps))
    if summary := summary_of(steps):
        screen.print(series_table(summary))


def summary_of(steps: Sequence[Step]) -> dict[str, Any]:
    """What reconcile proved; empty where the run did not get so far."""
    return next((step.result for step in steps if step.step == "reconcile" and step.state == "done"), {})


def steps_table(steps: Sequence[Step]) -> Table:
    """Each step of a run: state, seconds, rows, error."""
    by_name = {step.step: step for step in steps}
    table = Table("step", "state", "seconds", "rows", "", header_style="bold", box=None, pad_edge=False)
    table.columns[2].justify = table.columns[3].justify = "right"
    for name in STEPS:
        step = by_name.get(name)
        if step is None:
            table.add_row(f"[dim]{name}", "[dim]waiting", "", "", "")
            continue
        seconds = f"{step.seconds:.1f}" if step.seconds is not None else ""
        rows = next((f"{step.result[k]:,}" for k in _ROWS.get(name, ()) if k in step.result), "")
        table.add_row(name, f"[{_STYLES[step.state]}]{step.state}", seconds, rows, plain(step.error or ""))
    return table


_ROWS = {
    "extract": ("rows",),
    "validate": ("accepted",),
    "transform": ("rows",),
    "publish": ("published",),
    "load": ("inserted",),
    "reconcile": ("records",),
}


def series_table(summary: dict[str, Any]) -> Table:
    """Rows per commodity and series."""
    headers = {
        "extracted": "extracted",
        "quarantined": "quaran-\ntined",
        "published": "published",
        "already_published": "already\npublished",
        "loaded": "loaded",
        "already_loaded": "already\nloaded",
    }
    table = Table("commodity", "series", "source", *headers.values(), header_style="bold", box=None, pad_edge=False)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in sorted(summary["by_series"], key=lambda row: (row["commodity"], row["series"], row["source"])):
        series = f"{row['series']}, {row['frequency']}"
        table.add_row(*map(plain, (row["commodity"], series, row["source"])), *(f"{row[name]:,}" for name in headers))
    table.add_section()
    table.add_row("[bold]all", "", "", *(f"[bold]{summary[name]:,}" for name in headers))
    return table
