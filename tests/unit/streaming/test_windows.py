"""Windows: the same figures to the last digit, however the records come."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.streaming.windows import (
    LATENESS,
    MEMBER,
    QUIET,
    SECOND,
    WINDOW,
    Book,
    Figures,
    Open,
    Records,
    Windows,
    figures,
    fold,
    volatility,
)

GOLD = ("default", "Gold", "lbma", "LBMA", "daily")
OIL = ("default", "Oil", "eia", "WTI", "daily")


@dataclass(frozen=True)
class Price:
    """A record as a test says it; times in seconds."""

    at: float
    price: int
    as_of: int = 0
    content: int = 0
    key: tuple[str, str, str, str, str] = GOLD
    quote: tuple[str, str] = ("USD", "troy_oz")


def records(book: Book, prices: Iterable[Price], first_offset: int = 0, appended: float = 0.0) -> Records:
    rows, numbers = [], []
    for price in prices:
        number, quote = book.quoted((*price.key, *price.quote))
        numbers.append(number)
        rows.append((int(price.at * SECOND), price.as_of, price.content, price.price, quote))
    offsets = np.arange(first_offset, first_offset + len(rows))
    return Records(
        np.array(numbers, np.int64), np.array(rows, MEMBER), offsets, np.full(len(rows), int(appended * SECOND))
    )


def members(*prices: Price) -> np.ndarray:
    return records(Book(), prices).members


class Store:
    """What the consumer does with windows that are due, with a dictionary for PostgreSQL."""

    def __init__(self) -> None:
        self.windows: dict[tuple[object, int], bytes] = {}

    def take(self, book: Book, windows: list[Open]) -> None:
        for window in windows:
            key = book.series[window.series].key, window.window
            before = self.windows.get(key)
            found, _ = window.figures() if before is None else window.merged(before)
            if found is not None:
                self.windows[key] = found.tobytes()

    def figures(self) -> dict[tuple[object, int], Figures]:
        return {key: figures(np.frombuffer(stored, MEMBER)) for key, stored in self.windows.items()}


def consume(partitions: list[list[Price]], chance: random.Random) -> tuple[Store, int]:
    """Read partitions in random batches and order, store at random moments, die and start again now and then."""
    store = Store()
    resume, counted, late = ([0] * len(partitions) for _ in range(3))
    known: dict[object, tuple[list[tuple[str, str]], int]] = {}  # quotes and watermark, as of the last checkpoint
    while True:
        book = Book()
        for key, (quotes, watermark) in known.items():
            book.restore(key, 1, list(quotes), watermark, 0)  # type: ignore[arg-type]
        windows = [Windows(book) for _ in partitions]
        position, unstored = list(resume), [0] * len(partitions)

        def checkpoint(number: int, due: list[Open]) -> None:
            store.take(book, due)  # noqa: B023 - called within this round
            windows[number].close(due)  # noqa: B023
            counted[number] = max(counted[number], position[number])  # noqa: B023
            resume[number] = min((open_.first_offset for open_ in windows[number]), default=position[number])  # noqa: B023
            late[number] += unstored[number]  # noqa: B023
            unstored[number] = 0  # noqa: B023
            for series in book.series:  # noqa: B023
                if series.key in {price.key for price in partitions[number]}:
                    known[series.key] = list(series.quotes), series.watermark

        while unread := [number for number, some in enumerate(partitions) if position[number] < len(some)]:
            number = chance.choice(unread)
            batch = partitions[number][position[number] : position[number] + chance.randint(1, 7)]
            unstored[number] += windows[number].add(records(book, batch, position[number]), counted[number])
            position[number] += len(batch)
            if chance.random() < 0.5:
                checkpoint(number, windows[number].due(chance.choice([0, 0, 2**60])))
            if chance.random() < 0.1:
                break
        else:
            for number, open_ in enumerate(windows):
                checkpoint(number, list(open_))
            return store, sum(late)


def _price(at: float, price: int, as_of: int, content: int, quote: tuple[str, str]) -> Price:
    # A content hash says all of a price, its quote included.
    return Price(at, price, as_of, 2 * content + (quote[0] == "EUR"), quote=quote)


prices_ = st.builds(
    _price,
    at=st.integers(0, 400).map(float),
    price=st.integers(1, 10**9),
    as_of=st.integers(0, 2),
    content=st.integers(0, 2),
    quote=st.sampled_from([("USD", "troy_oz"), ("EUR", "troy_oz")]),
)


@settings(max_examples=60)
@given(
    gold=st.lists(prices_, max_size=60),
    oil=st.lists(prices_.map(lambda price: replace(price, key=OIL)), max_size=60),
    seeds=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)),
)
def test_any_batches_restarts_and_interleaving_end_in_the_same_bytes(
    gold: list[Price], oil: list[Price], seeds: tuple[int, int]
) -> None:
    (one, late), (other, late_again) = (consume([gold, oil], random.Random(seed)) for seed in seeds)  # noqa: S311
    assert one.windows == other.windows
    assert one.figures() == other.figures()
    assert late == late_again


@settings(max_examples=60)
@given(prices=st.lists(prices_, min_size=1, max_size=40), seed=st.integers(0, 2**32))
def test_duplicates_and_another_order_change_nothing(prices: list[Price], seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    # The same revision of the same price says the same, as its content hash promises.
    said = {(price.at, price.as_of, price.content): replace(price, quote=("USD", "lb")) for price in prices}
    shuffled = [*said.values(), *chance.choices(list(said.values()), k=5)]
    chance.shuffle(shuffled)
    one, _ = consume([list(said.values())], chance)
    other, _ = consume([shuffled], chance)
    assert one.figures() == other.figures()


@settings(max_examples=60)
@given(prices=st.lists(prices_, min_size=1, max_size=40), seed=st.integers(0, 2**32))
def test_the_figures_are_those_of_the_newest_revisions(prices: list[Price], seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    store, _ = consume([prices], chance)
    newest: dict[float, Price] = {}
    for price in prices:
        held = newest.get(price.at)
        if held is None or (price.as_of, price.content, price.price) > (held.as_of, held.content, held.price):
            newest[price.at] = price
    for (_, window), of in store.figures().items():
        inside = sorted((p for p in newest.values() if p.at * SECOND // WINDOW == window), key=lambda p: p.at)
        same = [p.price for p in inside if p.quote == inside[-1].quote]
        assert (of.count, of.others, of.total) == (len(same), len(inside) - len(same), sum(same))
        assert (of.first, of.last, of.min, of.max) == (same[0], same[-1], min(same), max(same))
        mean = (Decimal(sum(same)) / len(same)).quantize(Decimal(1), ROUND_HALF_EVEN)
        assert of.average == mean
    assert sum(of.count + of.others for of in store.figures().values()) == len(newest)


def test_a_window_is_due_half_a_minute_after_its_end_by_its_own_series() -> None:
    book = Book()
    windows = Windows(book)
    windows.add(records(book, [Price(10, 1)]))
    windows.add(records(book, [Price(89, 2)], 1))
    windows.add(records(book, [Price(900, 7, key=OIL, quote=("USD", "bbl"))], 2))
    assert [book.series[window.series].key for window in windows.due(0)] == []
    windows.add(records(book, [Price(90, 3)], 3))
    (due,) = windows.due(0)
    assert (due.window, due.figures()[1].count) == (0, 1)
    windows.close([due])
    assert sorted(window.window for window in windows) == [1, 15]


def test_a_quiet_window_is_due_by_the_log_s_clock() -> None:
    book = Book()
    windows = Windows(book)
    arrived = (WINDOW + LATENESS) / SECOND + 100
    windows.add(records(book, [Price(10, 1)], appended=arrived))
    assert windows.due(int(arrived * SECOND) + QUIET - 1) == []
    assert len(windows.due(int(arrived * SECOND) + QUIET)) == 1
    live = Windows(book)
    live.add(records(book, [Price(10, 1)], appended=11))
    assert live.due(WINDOW + LATENESS - 1) == []
    assert len(live.due(WINDOW + LATENESS)) == 1


def test_a_backfill_is_late_does_not_move_the_watermark_and_is_due_at_once() -> None:
    book = Book()
    windows = Windows(book)
    assert windows.add(records(book, [Price(10_000, 1)])) == 0
    assert windows.add(records(book, [Price(60, 2), Price(10_001, 3), Price(9_700, 4)], 1)) == 2
    assert book.series[0].watermark == 10_001 * SECOND
    assert sorted(window.window for window in windows.due(0)) == [1, 9_700 // 60]
    assert windows.add(records(book, [Price(60, 2)], 1), counted_from=2) == 0


def test_a_restart_reads_from_the_first_record_of_the_oldest_open_window() -> None:
    book = Book()
    windows = Windows(book)
    windows.add(records(book, [Price(10, 1), Price(70, 2), Price(71, 3)], 40))
    assert min(window.first_offset for window in windows) == 40
    windows.add(records(book, [Price(95, 4)], 43))
    windows.close(windows.due(0))
    assert min(window.first_offset for window in windows) == 41


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ([100], None),
        ([100, 100], 0.0),
        ([100, 110, 99], math.sqrt(math.log(1.1) ** 2 + math.log(0.9) ** 2)),
        ([100, 0, 99], None),
        ([-5, 10], None),
    ],
)
def test_volatility_is_the_root_of_the_sum_of_squared_log_returns(prices: list[int], expected: float | None) -> None:
    found = volatility(prices)
    assert found is expected if expected is None else found == pytest.approx(expected, abs=1e-15)


def test_the_average_is_rounded_half_to_even() -> None:
    assert [figures(members(Price(0, a), Price(1, b))).average for a, b in [(1, 2), (2, 3), (-1, -2), (5, 5)]] == [
        2, 2, -2, 5,
    ]  # fmt: skip


def test_a_fold_keeps_the_newest_revision_of_each_event_time() -> None:
    found = fold(
        members(Price(1, 10, as_of=2), Price(1, 20, as_of=1, content=9), Price(0, 30), Price(1, 40, as_of=2, content=1))
    )
    assert found["price"].tolist() == [30, 40]


@pytest.mark.parametrize("name", ["x" * 201, "nul\0"])
def test_a_name_that_no_table_holds_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="U\\+0000"):
        Book().quoted(("default", "Gold", "lbma", name, "daily", "USD", "troy_oz"))


def test_what_is_stored_wins_over_what_this_process_thought_the_quotes_were() -> None:
    book = Book()
    assert book.quoted((*GOLD, "EUR", "troy_oz")) == (0, 0)
    book.restore(GOLD, 7, [("USD", "troy_oz"), ("EUR", "troy_oz")], 5, 3)
    assert book.quoted((*GOLD, "EUR", "troy_oz")) == (0, 1)
    assert (book.series[0].series_id, book.series[0].watermark, book.series[0].newest) == (7, 5, 3)
