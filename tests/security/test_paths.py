"""Addresses and files that lead out of where they belong: nothing outside is read, and nothing is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from marketdata.batches import Batch, Interval, Lake, Manifest
from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import BadDataError, MarketdataError, UsageError
from marketdata.settings import Settings
from marketdata.sources import open_sources
from marketdata.tasks.publish import publish
from marketdata.tasks.transform import transform
from marketdata.tasks.validate import validate

MADE = datetime(2020, 4, 22, tzinfo=UTC)
DAY = Interval(date(2020, 4, 20), date(2020, 4, 21))
HIDDEN = "root:x:0:0:hidden"


@pytest.fixture
def settings(settings_for: Callable[..., Settings], tmp_path: Path) -> Settings:
    (tmp_path / "lake").mkdir()
    (tmp_path / "secret.txt").write_text(HIDDEN)
    (tmp_path / "lake-of-another").mkdir()
    return settings_for()


@pytest.fixture
def batch(settings: Settings) -> Batch:
    """An empty batch, as `extract` leaves one where there was no data."""
    manifest = Manifest(
        dataset="commodity_prices", tenant="default", batch_id="0123456789abcdef", step="extract", step_version=1,
        run_id="manual__1", interval_start=DAY.start, interval_end=DAY.end, created_at=MADE,
        details={"sources": ["archive"], "fingerprints": []},
    )  # fmt: skip
    return Lake(settings).writer(manifest.dataset, DAY, manifest.batch_id).commit(manifest)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


ADDRESSES = [
    "",
    "manifest.json",
    "/etc/passwd",
    "file:///etc/passwd",
    "file:///etc/shadow#{lake}/",
    "http://169.254.169.254/latest/meta-data/",
    "s3://another-lake/batches/commodity_prices/2020-04-20/0123456789abcdef/manifest.json",
    "{lake}",
    "{lake}/",
    "{lake}/batches",
    "{lake}/../secret.txt",
    "{lake}/batches/../../secret.txt",
    "{lake}/batches/commodity_prices/2020-04-20/../../../../secret.txt",
    "{lake}/batches/commodity_prices/2020-04-20/%2e%2e/manifest.json",
    "{lake}/batches/commodity_prices/2020-04-20/..%2f..%2f/manifest.json",
    "{lake}/batches/commodity_prices/2020-04-20/..\\..\\/manifest.json",
    "{lake}/batches/commodity_prices/2020-04-20/0123456789abcdef/./manifest.json",
    "{lake}/batches/commodity_prices/2020-04-20/0123456789abcdef/manifest.json/../manifest.json",
    "{lake}/batches/commodity_prices/2020-04-20/0123456789abcdef/manifest.json\n",
    "{lake}/batches/commodity_prices/2020-04-20/0123456789abcdef/manifest.json\x00.parquet",
    "{lake}//batches/commodity_prices/2020-04-20/0123456789abcdef/manifest.json",
    "{lake}-of-another/batches/commodity_prices/2020-04-20/0123456789abcdef/manifest.json",
    "{lake}/batches/commodity_prices'; DROP TABLE x; --/2020-04-20/0123456789abcdef/manifest.json",
    "{lake}/batches/commodity_prices/2020-04-20/{{{{ 7 * 7 }}}}/manifest.json",
    "{lake}/batches/commodity_prices/2020-04-20/$(touch owned)/manifest.json",
    "{lake}/batches/commodity_prices/2020-04-20/\x1b[31m/manifest.json",
    "{lake}/link/passwd",
    "{lake}/batches/commodity_prices/2020-04-20/" + "a" * 10_000,
    "--help",
]


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda address: repr(address)[:60])
def test_only_a_manifest_of_this_lake_is_opened(batch: Batch, tmp_path: Path, address: str) -> None:
    (tmp_path / "lake" / "link").symlink_to("/etc")
    before = content(tmp_path)
    with pytest.raises(UsageError) as caught:
        batch.lake.open(address.format(lake=batch.lake.uri))
    assert HIDDEN not in str(caught.value)
    assert len(str(caught.value)) < 1_000
    assert str(caught.value).isprintable(), "nothing in it speaks to a terminal"
    assert content(tmp_path) == before


NO_MANIFESTS: dict[str, bytes] = {
    "empty": b"",
    "no text": b"PAR1\xff\xfe\x00",
    "a list": b"[]",
    "an empty object": b"{}",
    "text": b'"manifest"',
    "null": b"null",
    "a number": b"1e999999",
    "deep": b"[" * 100_000,
    "deep in braces": b'{"a":' * 100_000,
    "another file": HIDDEN.encode(),
    "twice": b"{}{}",
}


@pytest.mark.parametrize("name", NO_MANIFESTS)
def test_what_is_no_manifest_is_bad_data(batch: Batch, tmp_path: Path, name: str) -> None:
    (tmp_path / "lake" / batch.folder / "manifest.json").write_bytes(NO_MANIFESTS[name])
    with pytest.raises(BadDataError, match="is not a manifest") as caught:
        batch.lake.open(batch.uri)
    assert HIDDEN not in str(caught.value)


def test_a_manifest_that_names_another_batch_is_refused(batch: Batch, tmp_path: Path) -> None:
    other = tmp_path / "lake" / batch.folder.replace("0123456789abcdef", "fedcba9876543210")
    other.mkdir()
    (other / "manifest.json").write_bytes(batch.manifest.to_json())
    with pytest.raises(BadDataError, match="names another batch"):
        batch.lake.open(batch.uri.replace("0123456789abcdef", "fedcba9876543210"))


@pytest.mark.parametrize(
    "name",
    [
        "../../../../../secret.txt",
        "/etc/passwd",
        "..",
        "a/b.parquet",
        "%2e%2e/secret.txt",
        "..\\secret.txt",
        "a\x00.x",
        "",
    ],
)
@pytest.mark.parametrize("place", ["parts", "files"])
def test_a_manifests_files_lie_beside_it(batch: Batch, tmp_path: Path, place: str, name: str) -> None:
    said = json.loads(batch.manifest.to_json())
    file = {"name": name, "size_bytes": 1, "sha256": "0" * 64, "rows": 1}
    said[place] = [file] if place == "parts" else {"report.html": file}
    (tmp_path / "lake" / batch.folder / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(BadDataError, match="is not a manifest"):
        batch.lake.open(batch.uri)


@pytest.mark.parametrize("parent", ["file:///etc/passwd", "s3://other/manifest.json", "{lake}/../secret.txt"])
def test_a_batch_is_not_made_from_one_of_another_lake(batch: Batch, parent: str) -> None:
    made = replace(batch, manifest=replace(batch.manifest, parent=parent.format(lake=batch.lake.uri)))
    with pytest.raises(UsageError):
        batch.lake.parent(made)


def test_another_tenants_batch_is_refused(batch: Batch, settings: Settings, tmp_path: Path) -> None:
    before = content(tmp_path)
    stranger = Lake(settings.model_copy(update={"tenant": "another"}))
    with pytest.raises(UsageError, match="is a batch of tenant default, not of another"):
        stranger.open(batch.uri)
    assert content(tmp_path) == before


@pytest.mark.parametrize("step", [validate, transform, publish])
def test_a_step_that_is_refused_its_batch_writes_nothing(
    batch: Batch, settings: Settings, tmp_path: Path, step: Callable[..., Any]
) -> None:
    """The manifest names a part that is not what it says."""
    said = json.loads(batch.manifest.to_json())
    said["parts"] = [{"name": "part-00000-0.parquet", "size_bytes": 1, "sha256": "0" * 64, "rows": 1}]
    said["rows"] = 1
    folder = tmp_path / "lake" / batch.folder
    (folder / "manifest.json").write_text(json.dumps(said))
    (folder / "part-00000-0.parquet").write_text(HIDDEN)
    before = content(tmp_path)
    with pytest.raises(MarketdataError) as caught:
        step(settings, COMMODITY_PRICES, batch.lake.open(batch.uri))
    assert caught.value.exit_code in (64, 65)
    assert HIDDEN not in str(caught.value)
    assert content(tmp_path) == before


MAPPING = """entries:
  - files: "{files}"
    source: test
    commodity: Oil
    series: WTI
    frequency: daily
    currency: USD
    unit: bbl
    date: {{column: Date}}
    price: Price
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What MARKETDATA_FILES names: a folder beside which there is something to steal."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text(HIDDEN)
    (tmp_path / "stolen.csv").write_text(f"Date,Price\n2020-04-20,{HIDDEN}\n")
    (folder / "mapping.yaml").write_text(MAPPING.format(files="*.csv"))
    return folder


def fetched(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    settings = settings.model_copy(update={"marketdata_sources": "files", "marketdata_files": folder})
    return [
        row
        for source in open_sources(settings, COMMODITY_PRICES)
        for table in source.fetch(DAY, MADE)
        for row in table.to_pylist()
    ]


@pytest.mark.parametrize(
    "files",
    ["../*.csv", "/etc/*", "sub/../../*.csv", "..", "**/../../*", "C:/x.csv", "..\\*.csv", "\\\\host\\share\\*.csv"],
)
def test_a_mapping_does_not_lead_out_of_its_folder(
    settings_for: Callable[..., Settings], folder: Path, files: str
) -> None:
    (folder / "mapping.yaml").write_text(MAPPING.format(files=files.replace("\\", "\\\\")))
    with pytest.raises(UsageError) as caught:
        fetched(settings_for(), folder)
    assert HIDDEN not in str(caught.value)


def test_a_link_out_of_the_folder_is_not_followed(settings_for: Callable[..., Settings], folder: Path) -> None:
    (folder / "a.csv").symlink_to("../stolen.csv")
    with pytest.raises(UsageError, match="leads out of"):
        fetched(settings_for(), folder)


def test_a_linked_folder_is_not_followed(settings_for: Callable[..., Settings], folder: Path, tmp_path: Path) -> None:
    (folder / "mapping.yaml").write_text(MAPPING.format(files="sub/*.csv"))
    (folder / "sub").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="leads out of"):
        fetched(settings_for(), folder)


def test_a_mapping_that_is_a_link_is_not_shown(settings_for: Callable[..., Settings], folder: Path) -> None:
    """What a mapping holds is repeated where it is wrong: it would show any file of the machine."""
    (folder / "mapping.yaml").unlink()
    (folder / "mapping.yaml").symlink_to("../secret.txt")
    with pytest.raises(UsageError, match="leads out of") as caught:
        fetched(settings_for(), folder)
    assert HIDDEN not in str(caught.value)


def test_what_is_no_file_is_not_opened(settings_for: Callable[..., Settings], folder: Path) -> None:
    """A pipe nobody writes into would hold the run for ever."""
    (folder / "a.csv").write_text("Date,Price\n2020-04-20,17\n")
    os.mkfifo(folder / "b.csv")
    (folder / "c.csv").mkdir()
    (folder / "d.csv").symlink_to("/dev/zero")
    assert [row["price"] for row in fetched(settings_for(), folder)] == ["17"]


def test_names_that_speak_to_a_terminal_are_written_as_escapes(
    settings_for: Callable[..., Settings], folder: Path
) -> None:
    (folder / "\x1b[31ma\nerror: b\x07.csv").write_text("Day,Price\n2020-04-20,17\n")
    with pytest.raises(BadDataError) as caught:
        fetched(settings_for(), folder)
    assert str(caught.value).isprintable()
    assert "\\x1b[31ma\\nerror: b\\x07.csv" in str(caught.value)
