"""The ``files`` source: CSV, TSV, XLSX, Parquet, JSON and NDJSON of a folder or bucket, and what they mean."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from marketdata.batches import Interval, content_id
from marketdata.datasets import Dataset
from marketdata.errors import UsageError
from marketdata.settings import Settings
from marketdata.sources import formats
from marketdata.sources.bucket import Bucket
from marketdata.sources.mapping import PACKAGED, Entry, FileMapping, load
from marketdata.sources.rows import to_raw

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

MAPPING = "mapping.yaml"
"""Name of the mapping that lies with the files."""

VERSION = 1
"""Of the reading: a change that makes another raw row of the same file counts it up."""


def read_file(
    path: Path, origin: str, entry: Entry, dataset: Dataset, interval: Interval, now: datetime
) -> Iterator[pa.Table]:
    """The rows of one file, as its mapping entry says; `origin` is the file's name in rows and errors."""
    as_of = entry.as_of or now.astimezone(UTC).isoformat()
    return to_raw(formats.read(path, origin, entry.layout), dataset, entry, origin, interval, as_of)


class FilesSource:
    """The files of `folder`, or of `bucket`, that an entry of `mapping` matches, entry by entry."""

    name = "files"

    def __init__(self, folder: Path, mapping: FileMapping, dataset: Dataset, bucket: Bucket | None = None) -> None:
        self._folder = folder.resolve()
        self._bucket = bucket
        self._mapping = mapping
        self._dataset = dataset

    @classmethod
    def from_settings(cls, settings: Settings, dataset: Dataset) -> Self:
        """The folder or bucket of ``MARKETDATA_FILES``.

        Raises:
            UsageError: it is not set or not a folder, or the mapping is wrong.
            UnavailableError: the bucket's store does not answer.
        """
        folder = settings.marketdata_files
        bucket = None
        if folder is None:
            raise UsageError(
                "MARKETDATA_FILES is not set; nothing was read", "set it to the folder or bucket of the files source"
            )
        if isinstance(folder, str):
            bucket = Bucket(folder, settings)
            bucket.bring(MAPPING)
            folder = bucket.folder
        if not folder.is_dir():
            raise UsageError(
                f"MARKETDATA_FILES: {folder} is not a folder; nothing was read", "correct MARKETDATA_FILES"
            )
        own = folder / MAPPING
        if own.is_file() and not own.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{MAPPING} leads out of {folder}; nothing was read", "put the file itself there")
        packaged = PACKAGED / "commodities.yaml"
        mapping = load(settings.marketdata_files_mapping or (own if own.is_file() else packaged))
        return cls(folder, mapping, dataset, bucket)

    def fingerprint(self) -> str:
        return content_id(self.name, VERSION, self._mapping.digest, self._place())

    def fetch(self, interval: Interval, now: datetime) -> Iterator[pa.Table]:
        if self._bucket is not None:
            self._bucket.bring_all()
        for entry, path in self._matches():
            yield from read_file(path, self._origin(path), entry, self._dataset, interval, now)

    def _place(self) -> str:
        return self._bucket.uri if self._bucket is not None else str(self._folder)

    def _origin(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _matches(self) -> list[tuple[Entry, Path]]:
        matches = [(entry, path) for entry in self._mapping.entries for path in self._glob(entry.files)]
        if not matches:
            raise UsageError(
                f"no entry of the mapping {self._mapping.name} matches a file in {self._place()}; nothing was read",
                "put a mapping.yaml into the folder, or set MARKETDATA_FILES_MAPPING",
            )
        known = {path for _, path in matches} | {self._folder / self._mapping.name}
        others = (path for path in self._folder.rglob("*") if path not in known and path.is_file())
        names = [self._origin(path) for path in others]
        unmatched = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
        if unmatched:
            _log.warning(
                "no entry of the mapping %s matches, so not read: %s",
                self._mapping.name,
                ", ".join(map(repr, unmatched)),
            )
        return matches

    def _glob(self, pattern: str) -> list[Path]:
        paths = sorted(path for path in self._folder.glob(pattern) if path.is_file())
        for path in paths:
            if not path.resolve().is_relative_to(self._folder):
                raise UsageError(
                    f"{self._origin(path)} leads out of {self._place()}; nothing was read", "put the file itself there"
                )
        return paths
