"""`marketdata query`: one SELECT on the lake, printed for people or for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from marketdata.datasets import Dataset
from marketdata.errors import UsageError
from marketdata.lakehouse import open_lakehouse
from marketdata.observability import runs
from marketdata.settings import Settings
from marketdata.tasks.screen import console, plain

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS_ON_A_SCREEN = 100


def query(settings: Settings, sql: str, form: str, at: Mapping[str, int] | None = None) -> None:
    """Print the answer as ``table``, ``json`` (an array of objects) or ``csv`` on standard output.

    Args:
        at: snapshot ids by table, where the tables are to be read as they were.
    """
    answer = open_lakehouse(settings).query(sql, at=at)
    {"table": _table, "json": _json, "csv": _csv}[form](answer)


def snapshots_after(settings: Settings, dataset: Dataset, run_id: str) -> dict[str, int]:
    """Snapshot of each table right after a run's load.

    Raises:
        UsageError: no such run is on record, or it has loaded nothing.
    """
    steps = {step.step: step for step in runs.steps(settings, dataset.name, run_id)}
    if not steps:
        raise UsageError(f"no run {run_id!r} of {dataset.name} is on record; nothing was read", "marketdata runs list")
    load = steps.get("load")
    if load is None or load.state != "done":
        state = "was not reached" if load is None else f"is {load.state}"
        raise UsageError(
            f"the tables of run {run_id!r} are not on record: its load {state}; nothing was read",
            f"see what it did: marketdata runs show {run_id!r}",
        )
    snapshots: dict[str, int] = load.result["snapshots"]
    return snapshots


def _json(answer: pa.Table) -> None:
    json.dump(answer.to_pylist(), sys.stdout, default=str, indent=1)
    sys.stdout.write("\n")


def _csv(answer: pa.Table) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(answer.column_names)
    for batch in answer.to_batches():
        writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _table(answer: pa.Table) -> None:
    import pyarrow as pa
    from rich.table import Table

    table = Table(*map(plain, answer.column_names), header_style="bold")
    for field, column in zip(answer.schema, table.columns, strict=True):
        if pa.types.is_decimal(field.type) or pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            column.justify = "right"
    for row in answer.slice(0, MOST_ROWS_ON_A_SCREEN).to_pylist():
        table.add_row(*("" if value is None else plain(value) for value in row.values()))
    screen = console()
    screen.print(table)
    more = len(answer) - MOST_ROWS_ON_A_SCREEN
    screen.print(
        f"{len(answer)} rows"
        + (f", the first {MOST_ROWS_ON_A_SCREEN} shown; --format csv gives all" if more > 0 else "")
    )
