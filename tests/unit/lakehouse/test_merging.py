from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketdata.datasets import COMMODITY_PRICES, quarantine
from marketdata.errors import BadDataError
from marketdata.lakehouse import merging
from marketdata.lakehouse.merging import INSERTED, REPEATED, SUPERSEDED, UNCHANGED, UPDATED, Rows, decide, months, shape
from marketdata.settings import Settings
from tests.contract.prices import EARLY, LATE, batch_of, price, table

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def test_the_shape_follows_from_the_dataset() -> None:
    prices, refused = shape(COMMODITY_PRICES), shape(quarantine(COMMODITY_PRICES))

    assert (prices.identity, prices.revised, prices.dated) == ("record_id", True, True)
    assert (refused.identity, refused.revised, refused.dated) == ("quarantine_id", False, False)


@pytest.mark.parametrize(
    ("new", "outcome"),
    [
        ({}, REPEATED),
        ({"batch": "b2"}, UNCHANGED),
        ({"batch": "b2", "as_of": LATE}, UNCHANGED),
        ({"batch": "b2", "content_hash": "z"}, UPDATED),
        ({"batch": "b2", "content_hash": "a"}, SUPERSEDED),
        ({"batch": "b2", "content_hash": "a", "as_of": LATE}, UPDATED),
        ({"batch": "b2", "content_hash": "z", "as_of": EARLY - timedelta(microseconds=1)}, SUPERSEDED),
        ({"batch": "b1", "content_hash": "z", "as_of": LATE}, UPDATED),
        ({"series": "Brent"}, INSERTED),
    ],
)
def test_what_becomes_of_a_row(new: dict[str, Any], outcome: int) -> None:
    state = table([price(content_hash="m"), price("2024-01-03")])
    rows = table([price(**{"content_hash": "m", **new})])

    assert decide(shape(COMMODITY_PRICES), rows, state).tolist() == [outcome]


def test_outcomes_stand_in_the_order_of_the_rows() -> None:
    days = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(5000)]
    state = table([price(day) for day in days[::2]])
    outcome = decide(shape(COMMODITY_PRICES), table([price(day) for day in days]), state)

    assert outcome.tolist() == [REPEATED, INSERTED] * 2500


def test_a_record_that_the_table_has_twice_is_told_and_not_built_upon() -> None:
    """Outcomes would stand at other rows than theirs."""
    state = table([price(), price(batch="b2"), price("2024-01-03")])
    with pytest.raises(BadDataError, match="holds 1 of these records a second time; nothing was loaded"):
        decide(shape(COMMODITY_PRICES), table([price(), price("2024-01-04")]), state)


@given(st.integers(-8_000_000_000_000_000, 8_000_000_000_000_000).map(lambda us: EPOCH + timedelta(microseconds=us)))
def test_months_are_counted_from_1970_down_and_up(moment: datetime) -> None:
    column = pa.chunked_array([pa.array([moment], pa.timestamp("us", "UTC"))])
    (month,) = months(column).tolist()

    assert month == (moment.year - 1970) * 12 + moment.month - 1


@pytest.mark.parametrize("parts", [1, 3])
def test_slices_are_whole_months_in_order_and_bounded(
    parts: int, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "ROWS_PER_PART", 70)
    days = [price(datetime(1969, 6, 1, tzinfo=UTC) + timedelta(days=day)) for day in range(400)]
    rows = Rows(COMMODITY_PRICES, batch_of(settings_for(), days[::-1], parts=parts))
    slices = list(rows.slices())

    event_times = [slice_["event_time"].to_pylist() for slice_ in slices]
    assert list(itertools.chain.from_iterable(event_times)) == [day["event_time"] for day in days]
    assert all(len(slice_) <= 70 for slice_ in slices)
    of_months = [set(months(slice_["event_time"]).tolist()) for slice_ in slices]
    assert not any(first & second for first, second in itertools.combinations(of_months, 2))


def test_no_rows_have_no_slices_and_no_files(settings_for: Callable[..., Settings]) -> None:
    nothing = batch_of(settings_for(), [])

    assert list(Rows(COMMODITY_PRICES, nothing).slices()) == []
    assert list(merging.parts(COMMODITY_PRICES, nothing)) == []
    assert list(merging.parts(COMMODITY_PRICES, table([]))) == []


def test_files_are_the_batch_s_own_unless_their_schema_differs(settings_for: Callable[..., Settings]) -> None:
    days = [price(datetime(1969, 6, 1, tzinfo=UTC) + timedelta(days=day)) for day in (5, 3, 0, 4)]
    batch = batch_of(settings_for(), days, parts=2)
    own = list(merging.parts(COMMODITY_PRICES, batch))
    assert [bytes(part.content) for part in own] == [bytes(content) for content in batch.contents()]
    assert [(part.rows, part.first, part.last) for part in own] == [
        (2, days[2]["event_time"], days[0]["event_time"]), (2, days[1]["event_time"], days[3]["event_time"]),
    ]  # fmt: skip

    turned = table(days).select(table([]).schema.names[::-1])
    (part,) = merging.parts(COMMODITY_PRICES, turned)
    assert pq.read_table(pa.BufferReader(part.content)).equals(table(days))
