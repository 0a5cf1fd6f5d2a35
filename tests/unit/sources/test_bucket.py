"""Files in a bucket are the same files: read as those of a folder, and told by their address there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore

from marketdata.errors import UnavailableError, UsageError
from marketdata.settings import Settings
from marketdata.sources import bucket, open_sources
from marketdata.sources.bucket import Bucket
from tests.unit.sources.reading import DATASET, EVER, NOW, rows

DATA = Path(__file__).parent / "data"
URI = "s3://prices/daily"


@pytest.fixture
def settings(settings_for: Callable[..., Settings]) -> Settings:
    return settings_for(marketdata_sources="files", marketdata_files=URI)


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the bucket."""
    folder = tmp_path / "objects"
    shutil.copytree(DATA, folder)
    monkeypatch.setattr(bucket, "open_store", lambda uri, _: LocalStore(folder))
    return folder


def test_the_same_rows_as_from_a_folder(
    settings: Settings, objects: Path, settings_for: Callable[..., Settings]
) -> None:
    (from_bucket,) = open_sources(settings, DATASET)
    (from_folder,) = open_sources(settings_for(marketdata_sources="files", marketdata_files=DATA), DATASET)
    taken = rows(from_bucket.fetch(EVER, NOW))
    assert taken
    assert taken == rows(from_folder.fetch(EVER, NOW))


def test_it_is_told_by_its_address_and_not_by_where_it_was_brought(settings: Settings, objects: Path) -> None:
    (first,), (second,) = open_sources(settings, DATASET), open_sources(settings, DATASET)
    assert first.fingerprint() == second.fingerprint()
    for each in objects.iterdir():
        if each.name != "mapping.yaml":
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    with pytest.raises(UsageError, match=URI):
        rows(first.fetch(EVER, NOW))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_no_name_leads_out_of_the_folder(settings: Settings, objects: Path, name: str) -> None:
    with pytest.raises(UsageError, match="leads out of"):
        Bucket(URI, settings).bring(name)


def test_an_empty_bucket_and_one_too_large_are_told(
    settings: Settings, objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "MAX_BYTES", 100)
    with pytest.raises(UsageError, match="more than the 100 that are taken"):
        Bucket(URI, settings).bring_all()
    shutil.rmtree(objects)
    objects.mkdir()
    with pytest.raises(UsageError, match="holds nothing"):
        Bucket(URI, settings).bring_all()


def test_a_store_that_does_not_answer_is_no_fault_of_ours(settings_for: Callable[..., Settings]) -> None:
    away: Any = settings_for(
        marketdata_files=URI, aws_endpoint_url="http://127.0.0.1:9", aws_access_key_id="k", aws_secret_access_key="s"
    )
    with pytest.raises(UnavailableError, match=URI):
        Bucket(URI, away).bring("mapping.yaml")
