"""The rows a suite refused, with the reason a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from marketdata.datasets import Dataset, quarantine
from marketdata.datasets.conform import connect, digest
from marketdata.quality.frames import Chunk
from marketdata.quality.suite import Rule

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

SHOWN_CHARACTERS = 80
"""Of an offending value in a reason; the quarantined row has all of it."""

_UNPRINTABLE = r"[\p{Cc}\p{Zl}\p{Zp}\x{202A}-\x{202E}\x{2066}-\x{2069}]+"
"""What could move a terminal's cursor or reverse a line when a reason is printed."""


@dataclass(frozen=True)
class Refusals:
    """The quarantined rows of a chunk.

    Args:
        rows: their numbers in the chunk, ascending.
        table: the rows as `schema` says.
        reasons: reason without its value → number of rows, one reason in full.
    """

    rows: NDArray[np.intp]
    table: pa.Table
    reasons: Mapping[str, tuple[int, str]]


def schema(dataset: Dataset) -> pa.Schema:
    """The quarantine table's columns, and `row_index`: the row's number in the raw batch, from 0."""
    import pyarrow as pa

    return quarantine(dataset).arrow_schema().append(pa.field("row_index", pa.int64(), nullable=False))


def refuse(
    dataset: Dataset,
    chunk: Chunk,
    broken: Mapping[Rule, NDArray[np.intp]],
    *,
    quarantined_at: datetime,
    context: Mapping[str, str],
) -> Refusals:
    """Quarantine the rows of a chunk that break a rule.

    Args:
        broken: rule → rows of the chunk that break it, in the order of the suite.
        quarantined_at: time of the batch's extraction, UTC.
        context: tenant, batch_id and run_id of the batch.
    """
    import numpy as np
    import pyarrow as pa

    rules = list(broken)
    rows = np.unique(np.concatenate([np.empty(0, dtype=np.intp), *broken.values()]))
    if not len(rows):
        return Refusals(rows, schema(dataset).empty_table(), {})
    first = np.full(len(rows), -1, dtype=np.int32)
    names = np.full(len(rows), "", dtype=object)
    for number, (rule, failing) in enumerate(broken.items()):
        here = np.searchsorted(rows, failing)
        names[here] += np.where(first[here] < 0, "", ",") + rule.id
        first[here] = np.where(first[here] < 0, number, first[here])

    frame = chunk.frame.iloc[rows]
    refused = chunk.table.take(pa.array(rows, pa.int64()))
    for name, values in {
        "rules_broken": pa.array(names, pa.string()),
        "says": _of_rule([rule.says for rule in rules], first),
        "quoted": _of_rule([rule.column for rule in rules], first),
        "bound": pa.array(_bounds(frame, rules, first), from_pandas=True),
        "event": pa.array(_events(dataset, frame, rules, first), pa.string()),
        "row_index": pa.array(rows + chunk.first, pa.int64()),
    }.items():
        refused = refused.append_column(name, values)

    connection = connect()
    connection.register("refused", refused)
    parameters = {**context, "dataset": dataset.name, "quarantined_at": quarantined_at}
    table = connection.sql(_rows(dataset), params=parameters).to_arrow_table()
    reasons = connection.execute(
        f"SELECT says || event, count(*), any_value({_reason(dataset)}) FROM refused GROUP BY 1"  # noqa: S608
    ).fetchall()
    connection.close()
    return Refusals(rows, table.cast(schema(dataset)), {says: (count, example) for says, count, example in reasons})


def _rows(dataset: Dataset) -> str:
    said = ", ".join(column.name for column in dataset.raw_columns)
    # No clock, run or batch: the same bad row has the same id tomorrow. `as_of` may be the time of an extraction.
    meant = ", ".join(column.name for column in dataset.business_columns if column.raw)
    identity = digest("$tenant", "$dataset", f"to_json(struct_pack({meant}))", "rules_broken")
    return f"""
        SELECT {identity} AS quarantine_id, $tenant AS tenant, $dataset AS dataset, $batch_id AS batch_id,
            $run_id AS run_id, $quarantined_at AS quarantined_at, commodity, series, source, event_time,
            rules_broken AS rules, {_reason(dataset)} AS reason, {_value(dataset)} AS value,
            CAST(to_json(struct_pack({said})) AS VARCHAR) AS row, origin, TRY_CAST(origin_row AS INTEGER) AS origin_row,
            row_index
        FROM refused ORDER BY row_index"""  # noqa: S608 - column names of the contract


def _value(dataset: Dataset) -> str:
    cases = " ".join(f"WHEN '{column.name}' THEN {column.name}" for column in dataset.raw_columns)
    return f"CASE quoted {cases} END"


def _reason(dataset: Dataset) -> str:
    shown = f"regexp_replace(trim({_value(dataset)}), '{_UNPRINTABLE}', '?', 'g')"
    cut = (
        f"CASE WHEN length({shown}) > {SHOWN_CHARACTERS} THEN left({shown}, {SHOWN_CHARACTERS}) || '…' ELSE {shown} END"
    )
    bound = r"regexp_replace(CAST(bound AS VARCHAR), '\.0$', '')"
    limit = f"CASE WHEN bound IS NOT NULL THEN ' (limit ' || {bound} || ')' ELSE '' END"
    return f"says || coalesce(': ' || nullif({cut}, ''), ' (nothing said)') || {limit} || event"


def _of_rule(texts: list[str], first: NDArray[np.int32]) -> pa.Array[Any]:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(first, pa.int32()), pa.array(texts, pa.string()))


def _bounds(frame: pd.DataFrame, rules: list[Rule], first: NDArray[np.int32]) -> NDArray[np.float64]:
    """The bound that a row's first broken rule compares with, NaN where it has none."""
    import numpy as np

    bounds = np.full(len(frame), np.nan)
    for number, rule in enumerate(rules):
        if rule.limit:
            bounds = np.where(first == number, frame[rule.limit].to_numpy(), bounds)
    return bounds


def _events(dataset: Dataset, frame: pd.DataFrame, rules: list[Rule], first: NDArray[np.int32]) -> NDArray[Any]:
    """Where a number is refused on a day with a name, that name."""
    import numpy as np

    events = np.full(len(frame), "", dtype=object)
    numeric = np.array([dataset.column(rule.column).decimal() is not None for rule in rules])
    days = frame[dataset.event_time].to_numpy().astype("datetime64[D]")
    for event in dataset.events:
        here = numeric[first] & (frame["series"] == event.series).to_numpy() & (days == np.datetime64(event.day))
        events[here] = f" (known event {event.day}: {event.says})"
    return events
