"""Load: the changed records of a batch into the table, and the refused rows into its quarantine table."""

from __future__ import annotations

import logging
from dataclasses import asdict

from marketdata.batches import Batch, Lake
from marketdata.datasets import Dataset, quarantine
from marketdata.lakehouse import Loaded, open_lakehouse
from marketdata.settings import Settings

log = logging.getLogger(__name__)


def load(settings: Settings, dataset: Dataset, batch: Batch) -> dict[str, object]:
    """Merge a batch into the table in one commit; a repeated call changes nothing."""
    import pyarrow as pa

    lakehouse = open_lakehouse(settings)
    loaded = Loaded.of([0] * 5, None, None, 0.0)
    if batch.manifest.rows:
        lakehouse.ensure(dataset)
        loaded = lakehouse.load(dataset, batch)
    log.info("loaded", extra={"inserted": loaded.inserted, "updated": loaded.updated})
    verdict = Lake(settings).parent(batch)
    if refused := list(verdict.tables()):
        lakehouse.ensure(quarantine(dataset))
        lakehouse.quarantine(
            dataset, pa.concat_tables(refused).drop_columns(["row_index"]), run_id=batch.manifest.run_id
        )
    return asdict(loaded)
