"""What a lakehouse does, whichever engine writes the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    import pyarrow as pa

    from marketdata.batches import Batch
    from marketdata.datasets import Dataset

WRITER = "marketdata.writer"
"""Table property: the one engine that writes the table, ``pyiceberg`` or ``trino``. The other one reads."""

ORPHANS_AFTER = timedelta(days=7)
"""Age of a file that nobody can still be about to commit: a run ends after one hour."""


def outdated(committed: Sequence[datetime], since: datetime) -> int:
    """How many of a table's snapshots no run has found since then: another one had followed each.

    Args:
        committed: when each was, oldest first.
    """
    return sum(later < since for later in committed[1:])


@dataclass(frozen=True)
class Loaded:
    """What became of a batch's rows; every row is counted in exactly one of the five.

    Args:
        inserted: rows of records the table did not have.
        updated: rows that replaced an older revision.
        repeated: rows an earlier try of this batch had put into the table.
        unchanged: rows whose content the table had from another batch.
        superseded: rows older than what the table has.
        snapshot_before: snapshot the decision was made on; None for a table without one.
        snapshot_after: snapshot that holds the result; equal to `snapshot_before` where nothing changed.
        query_id: Trino's id of the MERGE; None where nothing changed or pyiceberg wrote.
        seconds: duration.
    """

    inserted: int
    updated: int
    repeated: int
    unchanged: int
    superseded: int
    snapshot_before: int | None
    snapshot_after: int | None
    query_id: str | None
    seconds: float

    @classmethod
    def of(
        cls, outcomes: Sequence[int], before: int | None, after: int | None, seconds: float, query_id: str | None = None
    ) -> Self:
        """From the counts in the order of the fields."""
        inserted, updated, repeated, unchanged, superseded = outcomes
        return cls(inserted, updated, repeated, unchanged, superseded, before, after, query_id, seconds)

    @property
    def from_this_batch(self) -> int:
        """Rows the table has from this batch: the same number however often the load is repeated."""
        return self.inserted + self.updated + self.repeated


@dataclass(frozen=True)
class Snapshot:
    """One commit of a table."""

    snapshot_id: int
    parent_id: int | None
    committed_at: datetime
    operation: str
    summary: Mapping[str, str]


@dataclass(frozen=True)
class Maintained:
    """What maintenance did to a table.

    Args:
        files_before: files of the table when it began, those of deleted rows included.
        files_after: files when it ended.
        expired: snapshots that are no longer kept.
    """

    files_before: int
    files_after: int
    expired: int


class Lakehouse(Protocol):
    """Iceberg tables, one per dataset, in namespace `trino_schema`; every method may raise `UnavailableError`."""

    def ensure(self, dataset: Dataset) -> None:
        """Create the table, or add new optional columns to it, where needed.

        Raises:
            UsageError: the table is not what the dataset says; the message names the columns.
        """
        ...

    def load(self, dataset: Dataset, batch: Batch, run_id: str | None = None) -> Loaded:
        """Merge a transformed batch by record id in one commit; a call that changes nothing makes none.

        A row of a new record is inserted. A row of a known one replaces it only if its content hash differs and its
        `as_of` is greater (equal: if its content hash is greater). A repeated call finds its rows and changes nothing.

        Args:
            run_id: run that loads; default: the one that wrote the batch.

        Raises:
            BadDataError: the batch has a record twice, or rows that do not fit the schema.
            UsageError: the other engine writes this table.
            TryLaterError: other writers kept winning; nothing was changed.
        """
        ...

    def quarantine(self, dataset: Dataset, rows: pa.Table, run_id: str = "") -> Loaded:
        """Add refused rows to the dataset's quarantine table; those it has already are left as they are.

        The same row may be there more than once: it is kept once, and the others count as unchanged.
        """
        ...

    def current(self, dataset: Dataset, keys: pa.Table, bounds: tuple[datetime, datetime] | None = None) -> pa.Table:
        """The table's state of some records; nothing where there is no table yet.

        Args:
            dataset: also a quarantine dataset.
            keys: table with column ``record_id`` (``quarantine_id``).
            bounds: earliest and latest event time of these records; spares reading the rest of the table.

        Returns:
            ``record_id``, ``content_hash``, ``as_of``, ``batch_id`` (``quarantine_id``, ``batch_id``) of those it has.
        """
        ...

    def query(self, sql: str, max_rows: int | None = None, at: Mapping[str, int] | None = None) -> pa.Table:
        """The answer to one reading statement.

        Args:
            at: snapshot ids by table: the statement then sees these tables as they were, and no others.

        Raises:
            UsageError: it is not one SELECT, WITH, SHOW or DESCRIBE, or the engine refuses it; or a snapshot has
                expired, or the statement names a table that `at` does not.
        """
        ...

    def snapshot(self, dataset: Dataset) -> int | None:
        """Id of the table's current snapshot; None where there is no table yet, or nothing was ever in it."""
        ...

    def history(self, dataset: Dataset) -> list[Snapshot]:
        """The table's snapshots, oldest first; none where there is no table yet."""
        ...

    def maintain(self, dataset: Dataset, keep: timedelta) -> Maintained | None:
        """Merge small files, expire snapshots and remove what dead loads left; None where there is no table yet.

        The table's rows stay as they are at every moment, whatever loads meanwhile and wherever it is killed. The
        current snapshot is kept whatever its age. A repeated call has little to do.

        Args:
            keep: what was current at any moment since so long ago is kept, whenever it was committed.

        Raises:
            UsageError: the other engine writes this table.
            TryLaterError: loads kept winning; the table is as they left it.
        """
        ...

    def drop_namespace(self) -> None:
        """Remove the namespace and its tables, where it is there: for one that a drill has made for itself."""
        ...

    def check(self) -> None:
        """Reach the engine within 10 s.

        Raises:
            UnavailableError: it does not answer; the message names host and port.
        """
        ...
