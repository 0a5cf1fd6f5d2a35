"""The ``archive`` source: real prices on any machine that reaches a package registry.

WTI at Cushing, daily 1986-01-02 to 2019-01-03 (FRED, series DCOILWTICO), in the data of the `arch` package (licence
NCSA). The file is read where it lies; `arch` itself, which brings statsmodels and SciPy, is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from marketdata.batches import Interval, content_id
from marketdata.datasets import Dataset
from marketdata.errors import UsageError
from marketdata.sources.files import VERSION, read_file
from marketdata.sources.mapping import PACKAGED, load

if TYPE_CHECKING:
    import pyarrow as pa

_FOLDER = "data/wti"


class ArchiveSource:
    """The WTI history inside `arch`."""

    name = "archive"

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._mapping = load(PACKAGED / "archive.yaml")
        (self._entry,) = self._mapping.entries
        self._path = _package() / _FOLDER / self._entry.files
        if not self._path.is_file():
            raise UsageError(
                f"this version of `arch` has no {_FOLDER}/{self._entry.files}",
                "install the group `embedded` of the lock",
            )

    def fingerprint(self) -> str:
        return content_id(self.name, VERSION, self._mapping.digest)

    def fetch(self, interval: Interval, now: datetime) -> Iterator[pa.Table]:
        origin = f"arch/{_FOLDER}/{self._entry.files}"
        return read_file(self._path, origin, self._entry, self._dataset, interval, now)


def _package() -> Path:
    spec = find_spec("arch")  # of a top-level package: finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "the archive source needs the package `arch`, which is not installed; nothing was read",
            "install the dependency group `embedded`, or choose other sources with MARKETDATA_SOURCES",
        )
    return Path(next(iter(spec.submodule_search_locations)))
