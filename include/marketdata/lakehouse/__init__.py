"""Iceberg tables: written by pyiceberg (embedded), or by Trino where ``TRINO_HOST`` is set."""

from __future__ import annotations

from marketdata.lakehouse.contract import Lakehouse, Loaded, Maintained, Snapshot
from marketdata.settings import Settings

__all__ = ["Lakehouse", "Loaded", "Maintained", "Snapshot", "open_lakehouse"]


def open_lakehouse(settings: Settings) -> Lakehouse:
    """The lakehouse of these settings; nothing is connected yet.

    Raises:
        UsageError: an address is missing.
    """
    if settings.trino_host:
        from marketdata.lakehouse.trino import TrinoLakehouse

        return TrinoLakehouse(settings)
    from marketdata.lakehouse.embedded import EmbeddedLakehouse

    return EmbeddedLakehouse(settings)
