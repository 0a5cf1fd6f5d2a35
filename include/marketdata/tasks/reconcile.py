"""Reconcile: the run's proof, by sets of record ids and content hashes, that nothing is lost and nothing there twice.

extracted = accepted + quarantined; accepted = records + exact duplicates + superseded; every record of the batch is in
the topic and in the table, or a newer revision of it is; the topic holds as many messages of the batch as its marker in
the ledger counts. What is counted is what the stores hold, not what steps said.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from marketdata.batches import Batch, Lake
from marketdata.datasets import Dataset, quarantine
from marketdata.datasets.conform import connect
from marketdata.errors import BadDataError
from marketdata.lakehouse import open_lakehouse
from marketdata.settings import Settings
from marketdata.streaming import ledger
from marketdata.streaming.consume import ledger_state, records_of
from marketdata.tasks.transform import quarantined_rows

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

log = logging.getLogger(__name__)

SERIES = ("source", "commodity", "series", "frequency")
KEYS_NAMED = 5
"""Keys an error message names; the log has the first hundred."""


def reconcile(settings: Settings, dataset: Dataset, batch_uri: str) -> dict[str, Any]:
    """Compare what was extracted with what topic and table hold.

    Args:
        batch_uri: the transformed batch; empty where the run did not get so far.

    Returns:
        The run's summary: totals, and rows per source, commodity, series and frequency.

    Raises:
        BadDataError: something is missing, stale or there twice; the message names the first keys.
        TryLaterError: the ledger does not know the batch.
    """
    if not batch_uri:
        raise BadDataError(
            "the run ended before its batch was transformed; nothing of it was published or loaded",
            "the first failed step says why",
        )
    lake = Lake(settings)
    batch = lake.open(batch_uri)
    verdict = lake.parent(batch)
    raw = lake.parent(verdict)
    connection = connect()
    differences = _rows_add_up(raw, verdict, batch)
    if batch.manifest.rows:
        _register_batch(connection, batch)
        differences += _topic(connection, settings, dataset, batch)
        differences += _table(connection, settings, dataset, batch)
    if verdict.manifest.rows:
        differences += _quarantine_table(connection, settings, dataset, verdict)
    if differences:
        log.error("the run does not reconcile", extra={"differences": differences[:100]})
        raise BadDataError(
            f"batch {batch.manifest.batch_id} does not reconcile: {'; '.join(differences[:KEYS_NAMED])}",
            "topic and table were left as they are; clear the failed publish or load of this run, then reconcile; "
            "messages that the topic has lost since come back from a backup alone",
        )
    return _summary(connection, raw, verdict, batch)


def _rows_add_up(raw: Batch, verdict: Batch, batch: Batch) -> list[str]:
    refused = quarantined_rows(verdict)
    counts = batch.manifest.counts
    checks = {
        "rows extracted = rows judged": (raw.manifest.rows, verdict.manifest.counts["rows"]),
        "each quarantined row stands once": (len(refused), len(set(refused.tolist()))),
        "extracted = accepted + quarantined": (raw.manifest.rows, counts["accepted"] + len(refused)),
        "accepted = records + exact duplicates + superseded": (
            counts["accepted"],
            batch.manifest.rows + counts["exact_duplicates"] + counts["superseded"],
        ),
    }
    return [f"{says}: {left} against {right}" for says, (left, right) in checks.items() if left != right]


def _register_batch(connection: duckdb.DuckDBPyConnection, batch: Batch) -> None:
    columns = ["record_id", "content_hash", "as_of", *SERIES, "event_time"]
    for number, table in enumerate(batch.tables()):
        connection.register("part", table.select(columns))
        verb = "CREATE TEMP TABLE batch AS" if number == 0 else "INSERT INTO batch"
        connection.execute(f"{verb} SELECT * FROM part")  # noqa: S608 - a verb of this module
        connection.unregister("part")


def _topic(connection: duckdb.DuckDBPyConnection, settings: Settings, dataset: Dataset, batch: Batch) -> list[str]:
    fold, marker = ledger.read_with(settings, dataset, batch.manifest.batch_id)
    published = records_of(settings, dataset, marker)
    keys = connection.sql("SELECT record_id FROM batch").to_arrow_table()
    _hold(connection, "topic", ledger_state(settings, dataset, fold, keys))
    connection.register("published", published)
    lost = []
    # The ledger goes on knowing records whose messages are gone: only their number tells.
    if len(published) != marker.published:
        lost.append(f"the topic holds {len(published)} messages of the batch, its marker counts {marker.published}")
    twice = _named(
        connection, "SELECT record_id FROM published GROUP BY record_id HAVING count(*) > 1", "is in the topic twice"
    )
    foreign = _named(
        connection,
        "SELECT record_id FROM published ANTI JOIN batch USING (record_id, content_hash)",
        "is in the topic, but not as this batch has it",
    )
    connection.execute("CREATE TEMP TABLE published_now AS SELECT record_id FROM published")
    return lost + twice + foreign + _behind(connection, "topic")


def _table(connection: duckdb.DuckDBPyConnection, settings: Settings, dataset: Dataset, batch: Batch) -> list[str]:
    keys = connection.sql("SELECT record_id FROM batch").to_arrow_table()
    bounds = connection.execute("SELECT min(event_time), max(event_time) FROM batch").fetchall()[0]
    state = open_lakehouse(settings).current(dataset, keys, bounds)
    _hold(connection, "held_table", state)
    twice = _named(
        connection, "SELECT record_id FROM held_table GROUP BY record_id HAVING count(*) > 1", "is in the table twice"
    )
    connection.execute(
        "CREATE TEMP TABLE loaded_now AS SELECT record_id FROM held_table WHERE batch_id = ?", [batch.manifest.batch_id]
    )
    return twice + _behind(connection, "held_table")


def _quarantine_table(
    connection: duckdb.DuckDBPyConnection, settings: Settings, dataset: Dataset, verdict: Batch
) -> list[str]:
    import pyarrow as pa

    refused = pa.concat_tables(list(verdict.tables()))
    held = open_lakehouse(settings).current(quarantine(dataset), refused)
    connection.register("refused", refused.select(["quarantine_id"]))
    connection.register("held_refused", held)
    return _named(
        connection,
        "SELECT DISTINCT quarantine_id FROM refused ANTI JOIN held_refused USING (quarantine_id)",
        "is missing in the quarantine table",
    )


def _hold(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    connection.register("rows", rows)
    connection.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM rows")  # noqa: S608 - a name of this module
    connection.unregister("rows")


def _behind(connection: duckdb.DuckDBPyConnection, store: str) -> list[str]:
    """Records of the batch that the store does not hold, neither as they are nor in a newer revision."""
    return _named(
        connection,
        f"""SELECT batch.record_id FROM batch LEFT JOIN {store} AS held USING (record_id)
            WHERE held.content_hash IS NULL OR (held.content_hash <> batch.content_hash
            AND (held.as_of, held.content_hash) <= (batch.as_of, batch.content_hash))""",  # noqa: S608
        f"is missing or stale in the {store.removeprefix('held_')}",
    )


def _named(connection: duckdb.DuckDBPyConnection, query: str, says: str) -> list[str]:
    return [f"{key} {says}" for (key,) in connection.execute(f"{query} LIMIT 100").fetchall()]


def _summary(connection: duckdb.DuckDBPyConnection, raw: Batch, verdict: Batch, batch: Batch) -> dict[str, Any]:
    per_series: dict[tuple[str, ...], dict[str, int]] = {}

    def add(rows: list[dict[str, Any]], *names: str) -> None:
        for row in rows:
            key = tuple(row[name] or "" for name in SERIES)
            per_series.setdefault(key, {}).update({name: row[name] for name in names})

    add(verdict.manifest.counts["by_series"], "extracted", "quarantined")
    if batch.manifest.rows:
        rows = connection.sql(
            f"""SELECT {", ".join(SERIES)}, count(*) AS records,
                count(published_now.record_id) AS published,
                count(*) - count(published_now.record_id) AS already_published,
                count(loaded_now.record_id) AS loaded, count(*) - count(loaded_now.record_id) AS already_loaded
                FROM batch LEFT JOIN published_now USING (record_id) LEFT JOIN loaded_now USING (record_id)
                GROUP BY ALL ORDER BY ALL"""  # noqa: S608
        ).to_arrow_table()
        add(rows.to_pylist(), "records", "published", "already_published", "loaded", "already_loaded")
    names = ("extracted", "quarantined", "records", "published", "already_published", "loaded", "already_loaded")
    by_series = [
        {**dict(zip(SERIES, key, strict=True)), **{name: values.get(name, 0) for name in names}}
        for key, values in sorted(per_series.items())
    ]
    counts = batch.manifest.counts
    return {
        **{name: sum(row[name] for row in by_series) for name in names},
        "exact_duplicates": counts["exact_duplicates"],
        "superseded": counts["superseded"],
        "by_series": by_series,
        "reasons": verdict.manifest.counts["reasons"],
        "batch": batch.uri,
        "batch_id": batch.manifest.batch_id,
        "report": verdict.file_uri("report.html"),
        "asked": raw.manifest.details["asked"],
    }
