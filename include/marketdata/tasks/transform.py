"""Transform: the accepted rows, typed, normalised and identified; one row per record, its newest revision."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from marketdata.batches import Batch, Lake, Manifest, content_id
from marketdata.datasets import Dataset
from marketdata.datasets.conform import canonical, connect, digest, projection
from marketdata.settings import Settings

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

STEP_VERSION = 1


def transform(settings: Settings, dataset: Dataset, verdict: Batch) -> Batch:
    """Turn the rows that the verdict accepted into records.

    Of several rows of one record the one with the greatest `as_of` is kept (ties: greatest content hash): those with
    its content are exact duplicates, the others are superseded. The output depends on the input batch alone.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lake = Lake(settings)
    raw = lake.parent(verdict)
    batch_id = content_id("transform", STEP_VERSION, verdict.manifest.batch_id, dataset.version)
    if found := lake.find(dataset.name, verdict.manifest.interval, batch_id):
        log.info("found this step's own output", extra={"batch": found.uri, "records": found.manifest.rows})
        return found

    connection = connect()
    refused = quarantined_rows(verdict)
    repeated = _repeated_keys(connection, dataset, raw, refused)
    constants = {
        "tenant": settings.tenant,
        "dataset": dataset.name,
        "ingested_at": raw.manifest.created_at,
        "run_id": raw.manifest.run_id,
        "batch_id": batch_id,
        "schema_version": dataset.version,
    }
    schema = dataset.arrow_schema()
    writer = lake.writer(dataset.name, raw.manifest.interval, batch_id)
    contested: list[pa.Table] = []
    accepted = 0
    for part in _accepted(raw, refused):
        accepted += len(part)
        connection.register("part", part)
        records = connection.sql(_records(dataset), params=constants).to_arrow_table()
        connection.unregister("part")
        is_contested = pc.is_in(records["key_hash"], value_set=repeated)
        contested.append(records.filter(is_contested))
        writer.add(records.filter(pc.invert(is_contested)).select(schema.names).cast(schema))

    duplicates = superseded = 0
    if contested:
        connection.register("contested", pa.concat_tables(contested))
        connection.execute(
            "CREATE TEMP TABLE ranked AS SELECT *, row_number() OVER newest AS place, "
            "first_value(content_hash) OVER newest AS winner FROM contested "
            "WINDOW newest AS (PARTITION BY record_id ORDER BY as_of DESC, content_hash DESC)"
        )
        kept = connection.sql("SELECT * FROM ranked WHERE place = 1 ORDER BY record_id").to_arrow_table()
        writer.add(kept.select(schema.names).cast(schema))
        duplicates, superseded = connection.execute(
            "SELECT count(*) FILTER (content_hash = winner), count(*) FILTER (content_hash <> winner) FROM ranked "
            "WHERE place > 1"
        ).fetchall()[0]
    return writer.commit(
        Manifest(
            dataset=dataset.name,
            tenant=settings.tenant,
            batch_id=batch_id,
            step="transform",
            step_version=STEP_VERSION,
            run_id=raw.manifest.run_id,
            interval_start=raw.manifest.interval_start,
            interval_end=raw.manifest.interval_end,
            created_at=raw.manifest.created_at,
            parent=verdict.uri,
            schema_version=dataset.version,
            counts={
                "accepted": accepted,
                "records": accepted - duplicates - superseded,
                "exact_duplicates": duplicates,
                "superseded": superseded,
            },
        )
    )


def quarantined_rows(verdict: Batch) -> NDArray[np.int64]:
    """Row numbers (0-based, in the raw batch) that the gate refused."""
    import numpy as np

    parts = [table["row_index"].to_numpy() for table in verdict.tables()]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _accepted(raw: Batch, refused: NDArray[np.int64]) -> Iterator[pa.Table]:
    import numpy as np
    import pyarrow as pa

    first = 0
    for table in raw.tables():
        keep = np.ones(len(table), dtype=bool)
        keep[refused[(refused >= first) & (refused < first + len(table))] - first] = False
        first += len(table)
        if keep.any():
            yield table.filter(pa.array(keep))


def _repeated_keys(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, raw: Batch, refused: NDArray[np.int64]
) -> pa.UInt64Array:
    """64-bit hashes of the keys that stand more than once among the accepted rows; eight bytes a row are held."""
    import numpy as np
    import pyarrow as pa

    hashes = [np.empty(0, dtype=np.uint64)]
    for part in _accepted(raw, refused):
        connection.register("part", part)
        query = f"SELECT {_key_hash(dataset)} AS key_hash FROM (SELECT {projection(dataset)} FROM part)"  # noqa: S608
        hashes.append(np.asarray(connection.execute(query).fetchnumpy()["key_hash"], dtype=np.uint64))
        connection.unregister("part")
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    return pa.array(values[counts > 1], pa.uint64())


def _key_hash(dataset: Dataset) -> str:
    return f"hash({', '.join(dataset.key)})"


def _records(dataset: Dataset) -> str:
    """SQL: rows of ``part`` → all columns of the dataset, and the hash of the key."""
    computed = {
        "record_id": digest("$tenant", "$dataset", *(canonical(dataset.column(name)) for name in dataset.key)),
        "tenant": "$tenant",
        "price_date": f"CAST(timezone('UTC', {dataset.event_time}) AS DATE)",
        "ingested_at": "$ingested_at",
        "run_id": "$run_id",
        "batch_id": "$batch_id",
        "content_hash": digest(*(canonical(column) for column in dataset.business_columns)),
        "schema_version": "$schema_version",
    }
    columns = ", ".join(c.name if c.raw else f"{computed[c.name]} AS {c.name}" for c in dataset.columns)
    return f"SELECT {columns}, {_key_hash(dataset)} AS key_hash FROM (SELECT {projection(dataset)} FROM part)"  # noqa: S608
