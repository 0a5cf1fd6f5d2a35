"""`Source`: where an extraction's rows come from."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from marketdata.batches import Interval

if TYPE_CHECKING:
    import pyarrow as pa


class Source(Protocol):
    """A place prices come from. Raw means raw: values are the text the source said."""

    @property
    def name(self) -> str:
        """The name it has in ``MARKETDATA_SOURCES``."""
        ...

    def fingerprint(self) -> str:
        """Hash of what determines how it is read: reader version, mapping, address. Holds no secret and no data."""
        ...

    def fetch(self, interval: Interval, now: datetime) -> Iterator[pa.Table]:
        """The rows of `interval`, in tables of the dataset's raw schema; none where the source has none.

        A row whose date cannot be read belongs to every interval: it is for the quality gate to judge, not to be lost.

        Args:
            interval: days [start, end), UTC.
            now: time of the extraction; the rows' ``as_of`` where the source says no other.

        Raises:
            UsageError: a setting or a mapping is wrong.
            BadDataError: the source gave something that cannot be read; it names the file and row, or the offset.
            UnavailableError: the source cannot be reached.
        """
        ...
