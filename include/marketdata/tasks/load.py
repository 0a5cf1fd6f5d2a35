"""Load: the changed records of a batch into the table, and the refused rows into its quarantine table."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from marketdata.batches import Batch, Lake
from marketdata.datasets import Dataset, quarantine
from marketdata.lakehouse import Loaded, open_lakehouse
from marketdata.settings import Settings

log = logging.getLogger(__name__)


def load(settings: Settings, dataset: Dataset, batch: Batch) -> dict[str, Any]:
    """Merge a batch into the table in one commit; a repeated call changes nothing.

    Returns:
        What became of its rows, and under ``snapshots`` the snapshot of each table that has one, right after it.
    """
    import pyarrow as pa

    lakehouse = open_lakehouse(settings)
    if batch.manifest.rows:
        loaded = lakehouse.load(dataset, batch)
    else:
        current = lakehouse.snapshot(dataset)
        loaded = Loaded.of([0] * 5, current, current, 0.0)
    log.info("loaded", extra={"inserted": loaded.inserted, "updated": loaded.updated})
    verdict = Lake(settings).parent(batch)
    if refused := list(verdict.tables()):
        rows = pa.concat_tables(refused).drop_columns(["row_index"])
        refused_then = lakehouse.quarantine(dataset, rows, run_id=batch.manifest.run_id).snapshot_after
    else:
        refused_then = lakehouse.snapshot(quarantine(dataset))
    snapshots = {dataset.name: loaded.snapshot_after, quarantine(dataset).name: refused_then}
    return {**asdict(loaded), "snapshots": {table: then for table, then in snapshots.items() if then is not None}}
