from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from marketdata import batches
from marketdata.batches import Interval, Lake, Manifest, content_id
from marketdata.errors import BadDataError, UsageError

INTERVAL = Interval(date(2020, 4, 20), date(2020, 4, 21))
MANIFEST = Manifest(
    dataset="commodity_prices",
    tenant="default",
    batch_id="b1",
    step="extract",
    step_version=1,
    run_id="r1",
    interval_start=INTERVAL.start,
    interval_end=INTERVAL.end,
    created_at=datetime(2020, 4, 21, 2, tzinfo=UTC),
    counts={"extracted": 3},
)


@pytest.fixture
def lake(settings_for) -> Lake:
    return Lake(settings_for())


def _write(lake: Lake, *tables: pa.Table, manifest: Manifest = MANIFEST):
    writer = lake.writer("commodity_prices", INTERVAL, manifest.batch_id)
    for table in tables:
        writer.add(table)
    return writer


def _folder(lake: Lake) -> Path:
    return Path(lake.uri.removeprefix("file://")) / "batches/commodity_prices/2020-04-20/b1"


def test_a_batch_comes_back_as_it_was_written(lake):
    writer = _write(lake, pa.table({"price": ["1", "-36.98"]}), pa.table({"price": ["3"]}))
    writer.add_file("result.json", b"{}")
    written = writer.commit(MANIFEST)
    found = lake.open(written.uri)
    assert found.manifest == written.manifest
    assert found.manifest.rows == 3
    assert pa.concat_tables(found.tables()).to_pydict() == {"price": ["1", "-36.98", "3"]}
    assert found.read("result.json") == b"{}"
    assert lake.find("commodity_prices", INTERVAL, "b1") == found


def test_without_its_manifest_a_batch_is_not_there(lake):
    _write(lake, pa.table({"price": ["1"]}))._write_part(pa.table({"price": ["1"]}))
    assert any(_folder(lake).iterdir())
    assert lake.find("commodity_prices", INTERVAL, "b1") is None
    with pytest.raises(BadDataError, match="there is no batch at"):
        lake.open(f"{lake.uri}/batches/commodity_prices/2020-04-20/b1/manifest.json")


def test_rows_are_cut_into_parts_and_keep_their_order(lake, monkeypatch):
    monkeypatch.setattr(batches, "ROWS_PER_PART", 4)
    tables = [pa.table({"n": list(range(start, start + 3))}) for start in range(0, 12, 3)]
    batch = _write(lake, *tables).commit(MANIFEST)
    assert [part.rows for part in batch.manifest.parts] == [4, 4, 4]
    assert pa.concat_tables(batch.tables())["n"].to_pylist() == list(range(12))


def test_of_two_tries_the_first_complete_one_counts_and_neither_tears_the_other(lake):
    slow = _write(lake, pa.table({"price": ["late"]}))
    first = _write(lake, pa.table({"price": ["first"]})).commit(MANIFEST)
    second = slow.commit(replace(MANIFEST, created_at=datetime(2021, 1, 1, tzinfo=UTC)))
    assert second.manifest == first.manifest
    assert pa.concat_tables(second.tables())["price"].to_pylist() == ["first"]


def test_a_changed_part_is_refused(lake):
    batch = _write(lake, pa.table({"price": ["1"]})).commit(MANIFEST)
    part = _folder(lake) / batch.manifest.parts[0].name
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(BadDataError, match="SHA-256 differs"):
        list(batch.tables())
    part.unlink()
    with pytest.raises(BadDataError, match="is missing"):
        list(batch.tables())


def test_batches_of_another_lake_are_refused(lake):
    with pytest.raises(UsageError, match="not under LAKE_URI"):
        lake.open("file:///etc/passwd")
    with pytest.raises(UsageError, match="not under LAKE_URI"):
        lake.open(lake.uri + "-other/manifest.json")


def test_a_path_cannot_leave_the_lake(lake):
    outside = Path(lake.uri.removeprefix("file://")).parent / "secret.json"
    outside.write_text("secret")
    with pytest.raises(UsageError, match="not under LAKE_URI"):
        lake.open(f"{lake.uri}/../secret.json")


def test_an_empty_interval_is_refused():
    with pytest.raises(UsageError, match="is empty"):
        Interval(date(2020, 1, 2), date(2020, 1, 2))


def test_addresses_depend_on_everything_that_determines_the_output():
    assert content_id("extract", 1, "a") == content_id("extract", 1, "a")
    assert len({content_id("extract", 1, "a"), content_id("extract", 2, "a"), content_id("extract", 1, "b")}) == 3
