"""The objects under an ``s3://`` address, brought into a temporary folder for the readers of files.

A pod has no folder of its own that anyone could put files into; a bucket is what every installation on a cluster has.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from marketdata.batches import open_store, store_says
from marketdata.errors import UnavailableError, UsageError
from marketdata.settings import Settings

MAX_BYTES = 192 * 2**20
"""Of all objects together: the temporary folder of a pod holds 256Mi."""


class Bucket:
    """The objects under `uri`; `folder` holds those that were brought, and lives as long as this does."""

    def __init__(self, uri: str, settings: Settings) -> None:
        self.uri = uri.rstrip("/")
        self._store = open_store(self.uri, settings)
        self._temporary = TemporaryDirectory(prefix="marketdata-files-")
        self.folder = Path(self._temporary.name).resolve()

    def bring(self, name: str) -> bool:
        """Bring one object; False if there is none of that name.

        Raises:
            UnavailableError: the store does not answer.
            UsageError: its name would lead out of the folder.
        """
        from obstore.exceptions import BaseError

        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise UsageError(f"{name} leads out of {self.uri}; nothing was read", "name the object otherwise")
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as file:
                for chunk in self._store.get(name).stream():
                    file.write(chunk)
        except FileNotFoundError:
            target.unlink()
            return False
        except BaseError as error:
            raise self._unavailable(error) from None
        return True

    def bring_all(self) -> None:
        """Bring every object.

        Raises:
            UnavailableError: the store does not answer.
            UsageError: there is none, or they are too large together.
        """
        from obstore.exceptions import BaseError

        try:
            found = {str(each["path"]): int(each["size"]) for page in self._store.list() for each in page}
        except BaseError as error:
            raise self._unavailable(error) from None
        if not found:
            raise UsageError(
                f"MARKETDATA_FILES: {self.uri} holds nothing; nothing was read", "correct it, or put files there"
            )
        if (size := sum(found.values())) > MAX_BYTES:
            raise UsageError(
                f"{self.uri} holds {size} bytes, more than the {MAX_BYTES} that are taken; nothing was read",
                "split the files over several addresses",
            )
        for name in sorted(found):
            self.bring(name)

    def _unavailable(self, error: Exception) -> UnavailableError:
        why = store_says(error)
        return UnavailableError(f"cannot read {self.uri}: {why}", "check MARKETDATA_FILES and the store behind it")
