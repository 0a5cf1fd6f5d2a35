"""Deltas and their fold, against a plain maximum."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from marketdata.batches import Lake
from marketdata.errors import BadDataError, UsageError
from marketdata.streaming.fold import (
    FORMAT,
    NEWEST,
    Delta,
    Marker,
    Offsets,
    delta_rows,
    delta_schema,
    deltas_in,
    read_delta,
    workspace,
    write_delta,
)

Row = tuple[bytes, bytes, int]


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def table(rows: list[Row]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], []]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, delta_schema().types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=delta_schema())


def folded(lake: Lake, files: list[Delta]) -> dict[bytes, tuple[int, bytes]]:
    newest = f"SELECT record_id, {NEWEST} AS newest FROM deltas GROUP BY record_id"
    with workspace() as connection, deltas_in(connection, lake, files):
        rows = connection.sql(f"SELECT record_id, newest.as_of, newest.content_hash FROM ({newest})").fetchall()
    return {bytes(record): (as_of, bytes(content)) for record, as_of, content in rows}


@pytest.fixture
def lake(settings_for: Callable[..., Any]) -> Lake:
    return Lake(settings_for())


def test_the_fold_is_the_maximum_whatever_the_order(lake: Lake) -> None:
    chance = random.Random(7)  # noqa: S311
    rows = [(digest(chance.randrange(40)), digest(chance.randrange(5)), chance.randrange(-3, 3)) for _ in range(500)]
    wanted: dict[bytes, tuple[int, bytes]] = {}
    for record, content, as_of in rows:
        wanted[record] = max(wanted.get(record, (as_of, content)), (as_of, content))
    for _ in range(3):
        chance.shuffle(rows)
        files = [write_delta(lake, "ledger", table(rows[start : start + 83])) for start in range(0, 500, 83)]
        chance.shuffle(files)
        assert folded(lake, files) == wanted


def test_the_same_rows_make_the_same_object(lake: Lake) -> None:
    rows = table([(digest(1), digest(2), 3)])
    assert write_delta(lake, "ledger/x", rows) == write_delta(lake, "ledger/x", rows)
    assert read_delta(lake, write_delta(lake, "ledger/x", rows)).equals(rows)


def test_rows_of_a_batch_become_32_bytes_also_from_slices() -> None:
    stamp = datetime(1960, 1, 1, 0, 0, 0, 7, tzinfo=UTC)
    rows = pa.table(
        {
            "record_id": [f"{number:064x}" for number in range(5)],
            "content_hash": [f"{number + 100:064x}" for number in range(5)],
            "as_of": pa.array([stamp] * 5, pa.timestamp("us", "UTC")),
        }
    )
    got = delta_rows(pa.concat_tables([rows.slice(0, 3), rows.slice(3)]).slice(1, 3)).to_pylist()
    assert [row["record_id"] for row in got] == [digest(1), digest(2), digest(3)]
    assert [row["content_hash"] for row in got] == [digest(101), digest(102), digest(103)]
    assert {row["as_of"] for row in got} == {-315619199999993}


@pytest.mark.parametrize("bad", ["", "a" * 63, "a" * 65, "g" * 64, None])
def test_what_is_no_hash_is_refused(bad: str | None) -> None:
    stamps = pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 2, pa.timestamp("us", "UTC"))
    rows = pa.table({"record_id": ["a" * 64, bad], "content_hash": ["b" * 64] * 2, "as_of": stamps})
    with pytest.raises(BadDataError):
        delta_rows(rows)


def test_a_missing_or_damaged_delta_stops_with_its_name(lake: Lake, tmp_path: Path) -> None:
    delta = write_delta(lake, "ledger", table([(digest(1), digest(2), 3)]))
    file = tmp_path / "lake" / delta.path
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    with pytest.raises(BadDataError, match=f"{delta.sha256}.*SHA-256 differs"):
        folded(lake, [delta])
    file.unlink()
    with pytest.raises(BadDataError, match=f"{delta.sha256}.*missing"):
        folded(lake, [delta])


MARKER = Marker(
    dataset="commodity_prices",
    tenant="default",
    batch_id="b",
    run_id="r",
    published=3,
    already_published=2,
    superseded=1,
    revised=1,
    delta=(Delta("ledger/x.parquet", "0" * 64, 3),),
    offsets=(Offsets(0, 5, 9),),
    published_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


def test_a_marker_survives_the_topic() -> None:
    assert Marker.from_json(MARKER.to_json()) == MARKER


def test_a_marker_of_a_newer_version_or_a_stranger_is_refused() -> None:
    with pytest.raises(UsageError, match=f"format {FORMAT + 1}"):
        Marker.from_json(replace(MARKER, format=FORMAT + 1).to_json())
    for stranger in (b"", b"hello", b"[]", b'{"format": 1}'):
        with pytest.raises(UsageError, match="not a marker"):
            Marker.from_json(stranger)
