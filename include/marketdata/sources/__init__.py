"""Where prices come from: ``archive`` (inside a package), ``files`` (a folder), ``api`` (JSON over HTTP)."""

from __future__ import annotations

from marketdata.datasets import Dataset
from marketdata.errors import UsageError
from marketdata.settings import Settings
from marketdata.sources.source import Source

__all__ = ["Source", "open_sources"]


def _archive(settings: Settings, dataset: Dataset) -> Source:  # noqa: ARG001 - one signature for every source
    from marketdata.sources.archive import ArchiveSource

    return ArchiveSource(dataset)


def _files(settings: Settings, dataset: Dataset) -> Source:
    from marketdata.sources.files import FilesSource

    return FilesSource.from_settings(settings, dataset)


def _api(settings: Settings, dataset: Dataset) -> Source:
    from marketdata.sources.api import ApiSource

    return ApiSource.from_settings(settings, dataset)


_SOURCES = {"archive": _archive, "files": _files, "api": _api}


def open_sources(settings: Settings, dataset: Dataset) -> list[Source]:
    """The sources ``MARKETDATA_SOURCES`` names, in its order. None stands in for another that fails.

    Raises:
        UsageError: a name is unknown or said twice, no name is there, or a source lacks a setting.
    """
    names = [name.strip() for name in settings.marketdata_sources.split(",") if name.strip()]
    remedy = f"sources: {', '.join(_SOURCES)}"
    if not names:
        raise UsageError("MARKETDATA_SOURCES names no source", remedy)
    for position, name in enumerate(names):
        if name not in _SOURCES:
            raise UsageError(f"MARKETDATA_SOURCES: no source is named {name!r}", remedy)
        if name in names[:position]:
            raise UsageError(f"MARKETDATA_SOURCES names {name} twice", "name each source once")
    return [_SOURCES[name](settings, dataset) for name in names]
