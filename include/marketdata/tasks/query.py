"""`marketdata query`: one SELECT on the lake, printed for people or for programs."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING

from marketdata.lakehouse import open_lakehouse
from marketdata.settings import Settings
from marketdata.tasks.screen import console, plain

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS_ON_A_SCREEN = 100


def query(settings: Settings, sql: str, form: str) -> None:
    """Print the answer as ``table``, ``json`` (an array of objects) or ``csv`` on standard output."""
    answer = open_lakehouse(settings).query(sql)
    {"table": _table, "json": _json, "csv": _csv}[form](answer)


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
