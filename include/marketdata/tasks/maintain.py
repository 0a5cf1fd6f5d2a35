"""Maintain: small files merged, old snapshots expired, and forgotten what nobody can ask for again (docs/adr/0019)."""

from __future__ import annotations

import logging
from datetime import timedelta

from marketdata.datasets import DERIVED, Dataset, quarantine
from marketdata.lakehouse import open_lakehouse
from marketdata.observability import runs
from marketdata.settings import Settings
from marketdata.streaming import forgetting

log = logging.getLogger(__name__)

KEEP_SNAPSHOTS = timedelta(days=30)
"""Of tables that runs load: a run of the look-back a scheduled run has can be travelled to."""

KEEP_STREAMED = timedelta(days=7)
"""Of tables that are loaded every five minutes: 2,000 snapshots."""

KEEP_RUNS = timedelta(days=400)
"""The record of runs: this month beside that of last year."""


def maintain(settings: Settings, dataset: Dataset) -> dict[str, int]:
    """Maintain the tables of a dataset, then what PostgreSQL keeps about it; safe to repeat and beside any load.

    Returns:
        What was there, is there and was forgotten, by name.
    """
    lakehouse = open_lakehouse(settings)
    derived = dataset.name in DERIVED
    done = dict.fromkeys(("files_before", "files_after", "expired"), 0)
    for table in (dataset,) if derived else (dataset, quarantine(dataset)):
        maintained = lakehouse.maintain(table, KEEP_STREAMED if derived else KEEP_SNAPSHOTS)
        if maintained is not None:
            done["files_before"] += maintained.files_before
            done["files_after"] += maintained.files_after
            done["expired"] += maintained.expired
    if derived:
        done["windows"] = forgetting.windows(settings)
    else:
        done["letters"] = forgetting.letters(settings, dataset)
        done["runs"] = runs.forget(settings, dataset.name, KEEP_RUNS)
    log.info("maintained", extra=done)
    return done
