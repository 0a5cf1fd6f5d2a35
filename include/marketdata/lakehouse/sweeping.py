"""Files that nothing names any more: what dead loads and expired snapshots leave in the lake."""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import UTC, datetime

from marketdata.batches import open_store, store_says
from marketdata.errors import MarketdataError, UnavailableError
from marketdata.lakehouse.contract import ORPHANS_AFTER
from marketdata.settings import Settings

log = logging.getLogger(__name__)

AT_ONCE = 1000


def sweep(settings: Settings, folder: str, named: Collection[str] = ()) -> int:
    """Delete files that are not named and older than `ORPHANS_AFTER`; how many those were.

    Args:
        folder: address; everything below belongs to whoever calls.
        named: addresses of files to keep, whatever their age.

    Raises:
        MarketdataError: a named file is not there, so names are not to be relied on; nothing was deleted.
        UnavailableError: the store does not answer.
    """
    from obstore.exceptions import BaseError

    before = datetime.now(UTC) - ORPHANS_AFTER
    try:
        store = open_store(folder, settings)
        there = {
            f"{folder}/{found['path']}": found["last_modified"] for found in (f for some in store.list() for f in some)
        }
        missing = [name for name in named if name.startswith(f"{folder}/") and name not in there]
        if missing:
            raise MarketdataError(
                f"{len(missing)} files that the table names are not in {folder}, e.g. {missing[0]}; nothing was deleted"
            )
        old = [name for name, modified in there.items() if modified < before and name not in named]
        for first in range(0, len(old), AT_ONCE):
            store.delete([name.removeprefix(f"{folder}/") for name in old[first : first + AT_ONCE]])
    except BaseError as error:
        raise UnavailableError(
            f"cannot sweep {folder}: {store_says(error)}; what is named was left untouched",
            "check LAKE_URI and the store behind it",
        ) from None
    if old:
        log.info("removed files that nothing names", extra={"folder": folder, "files": len(old)})
    return len(old)
