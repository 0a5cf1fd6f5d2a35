"""One-minute windows of event time: what belongs to a window, when it is due, what its figures are. Pure, no clock.

A window's content is a *fold*: of each price (one event time of one series) the revision with the greatest (`as_of`,
content hash). A fold does not care how often a record is read, in which order or in which batches, so a restart that
reads again, a duplicate, a late record and a backfill of 1986 all end in the same figures to the last digit.

The watermark of a series, the greatest event time it has shown, decides only *when* a window is handed on: once it is
30 s past the window's end, or once the window has been quiet and the log's own clock has passed it. What comes later
is late; it changes the stored window and is handed on at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Members = NDArray[np.void]
Integers = NDArray[np.int64]

SECOND = 1_000_000
WINDOW = 60 * SECOND
"""Length of a window in microseconds, as all times here; windows are numbered from 1970."""

LATENESS = 30 * SECOND
QUIET = 5 * SECOND
"""A window whose series has stopped is handed on this long after its last record arrived."""

MEMBER = np.dtype([("event_time", "<i8"), ("as_of", "<i8"), ("content", "<u8"), ("price", "<i8"), ("quote", "<u2")])
"""A price: times in microseconds since 1970, the first eight bytes of its content hash, millionths, quote's number."""

LONGEST_NAME = 200
"""Bytes of each name of a series: PostgreSQL's index takes 2,700 together."""

Key = tuple[str, str, str, str, str]
"""Tenant, commodity, source, series, frequency."""

Quote = tuple[str, str]
"""Currency and unit."""


@dataclass
class Series:
    """What is known of a series.

    Args:
        series_id: where it is stored; None before its first window is.
        quotes: the currencies and units it was ever quoted in, in the order they came.
        watermark: greatest event time seen.
        newest: number of the newest window that is stored: a later one cannot be.
    """

    key: Key
    series_id: int | None = None
    quotes: list[Quote] = field(default_factory=list)
    watermark: int = -(2**62)
    newest: int = -(2**62)


@dataclass(frozen=True)
class Records:
    """Records of one partition in the order of their offsets; all arrays of one length.

    Args:
        series: index of each record's series in the book.
    """

    series: Integers
    members: Members
    offsets: Integers
    appended: Integers


@dataclass
class Open:
    """Records of a window that have not been handed on."""

    series: int
    window: int
    first_offset: int
    appended: int
    chunks: list[Members] = field(default_factory=list)
    _figures: tuple[Members, Figures] | None = field(default=None, repr=False)

    def add(self, members: Members, offset: int, appended: int) -> None:
        self.chunks.append(members)
        self.first_offset = min(self.first_offset, offset)
        self.appended = max(self.appended, appended)
        self._figures = None

    def figures(self) -> tuple[Members, Figures]:
        """What these records come to by themselves."""
        if self._figures is None:
            members = fold(self.chunks[0] if len(self.chunks) == 1 else np.concatenate(self.chunks))
            self._figures = members, figures(members)
        return self._figures

    def merged(self, stored: bytes) -> tuple[Members | None, Figures]:
        """What they come to with those that are stored; no members where they change nothing."""
        members, alone = self.figures()
        after = fold(np.concatenate((np.frombuffer(stored, MEMBER), members)))
        return (None, alone) if after.tobytes() == stored else (after, figures(after))


class Book:
    """Every series this process has met, by number."""

    def __init__(self) -> None:
        self.series: list[Series] = []
        self._numbers: dict[Key, int] = {}
        self._quoted: dict[tuple[str, ...], tuple[int, int]] = {}

    def number(self, key: Key) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.series)
            self.series.append(Series(key))
        return number

    def quoted(self, names: tuple[str, ...]) -> tuple[int, int]:
        """Number of the series and of the quote within it.

        Args:
            names: key, currency, unit.

        Raises:
            ValueError: a name is one that no table can hold.
        """
        found = self._quoted.get(names)
        if found is None:
            if any(len(name.encode()) > LONGEST_NAME or "\0" in name for name in names):
                raise ValueError(f"a name of the series is longer than {LONGEST_NAME} bytes, or holds U+0000")
            number = self.number(names[:5])  # type: ignore[arg-type]
            quote = names[5], names[6]
            quotes = self.series[number].quotes
            if quote not in quotes:
                quotes.append(quote)
            found = self._quoted[names] = number, quotes.index(quote)
        return found

    def restore(self, key: Key, series_id: int, quotes: list[Quote], watermark: int, newest: int) -> None:
        """Take over what is stored of a series, from whoever had it before."""
        series = self.series[self.number(key)]
        if series.quotes[: len(quotes)] != quotes:
            series.quotes[:] = quotes
            self._quoted.clear()
        series.series_id = series_id
        series.watermark = max(series.watermark, watermark)
        series.newest = max(series.newest, newest)


class Windows:
    """Open windows of one partition."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._open: dict[tuple[int, int], Open] = {}

    def add(self, records: Records, counted_from: int = 0) -> int:
        """Put records into their windows.

        Args:
            counted_from: offset before which records have been counted by an earlier reader.

        Returns:
            How many were late: their window had closed by the watermark before they came.
        """
        event_time = records.members["event_time"]
        number = event_time // WINDOW
        order = np.lexsort((np.arange(len(number)), records.series))
        late = 0
        for part in _runs(records.series[order]):
            indices = order[part]
            series = self._book.series[int(records.series[indices[0]])]
            seen = np.maximum.accumulate(np.concatenate(([series.watermark], event_time[indices])))
            behind = (number[indices] + 1) * WINDOW + LATENESS <= seen[:-1]
            late += int((behind & (records.offsets[indices] >= counted_from)).sum())
            series.watermark = int(seen[-1])
        order = np.lexsort((number, records.series))  # stable: by offset within a window
        sorted_series, sorted_number = records.series[order], number[order]
        starts = np.flatnonzero(np.concatenate(([True], (np.diff(sorted_series) != 0) | (np.diff(sorted_number) != 0))))
        members = records.members[order]
        first_offset = np.minimum.reduceat(records.offsets[order], starts).tolist()
        appended = np.maximum.reduceat(records.appended[order], starts).tolist()
        keys = zip(sorted_series[starts].tolist(), sorted_number[starts].tolist(), strict=True)
        ends = [*starts[1:].tolist(), len(order)]
        for key, start, end, offset, at in zip(keys, starts.tolist(), ends, first_offset, appended, strict=True):
            window = self._open.get(key)
            if window is None:
                window = self._open[key] = Open(*key, offset, at)
            window.add(members[start:end], offset, at)
        return late

    def due(self, clock: int) -> list[Open]:
        """Windows to be handed on.

        Args:
            clock: of the log: when the last record was appended, or now where there are no more.
        """
        found = []
        for window in self._open.values():
            closes = (window.window + 1) * WINDOW + LATENESS
            if self._book.series[window.series].watermark >= closes or clock >= max(closes, window.appended + QUIET):
                found.append(window)
        return found

    def close(self, windows: list[Open]) -> None:
        """Forget windows that have been stored."""
        for window in windows:
            del self._open[window.series, window.window]

    def __iter__(self) -> Iterator[Open]:
        return iter(self._open.values())

    def __len__(self) -> int:
        return len(self._open)


def fold(members: Members) -> Members:
    """Of each event time the newest revision, in order of event time."""
    if len(members) == 1:
        return members
    # The last keys only matter where somebody gives two contents one hash: even then no order of arrival decides.
    keys = ("quote", "price", "content", "as_of", "event_time")
    order = np.lexsort([members[key] for key in keys])
    ordered = members[order]
    event_time = ordered["event_time"]
    return ordered[np.concatenate((event_time[1:] != event_time[:-1], [True]))]


@dataclass(frozen=True, slots=True)
class Figures:
    """What the prices of a window came to, in millionths; volatility in units.

    Args:
        quote: number of the last price's currency and unit; the figures are of the prices in these.
        others: prices in another currency or unit.
    """

    quote: int
    count: int
    others: int
    first: int
    last: int
    min: int
    max: int
    total: int
    average: int
    volatility: float | None


def figures(members: Members) -> Figures:
    """Figures of a fold."""
    if len(members) == 1:
        price = int(members["price"][0])
        return Figures(int(members["quote"][0]), 1, 0, price, price, price, price, price, price, None)
    quote = int(members["quote"][-1])
    same = members["price"][members["quote"] == quote]
    prices = same.tolist()
    total = sum(prices)
    return Figures(
        quote=quote,
        count=len(prices),
        others=len(members) - len(prices),
        first=prices[0],
        last=prices[-1],
        min=min(prices),
        max=max(prices),
        total=total,
        average=_half_even(total, len(prices)),
        volatility=volatility(prices),
    )


def volatility(prices: list[int]) -> float | None:
    """Realised volatility √Σ ln²(pᵢ/pᵢ₋₁) of prices in order of event time (Andersen, Bollerslev 1998).

    Its squares add up: the minutes' make the hour's, save the moves between them. Not annualised. The sum is exact
    until it is rounded once, so its digits do not depend on who adds it up. None of fewer than two prices, and where
    one of them is not above zero.
    """
    if len(prices) < 2 or min(prices) <= 0:
        return None
    logarithms = list(map(math.log, prices))
    moves = map(float.__sub__, logarithms[1:], logarithms)
    return math.sqrt(math.fsum([move * move for move in moves]))


def _half_even(total: int, count: int) -> int:
    quotient, rest = divmod(total, count)
    return quotient + (2 * rest > count or (2 * rest == count and quotient % 2 == 1))


def _runs(values: NDArray[Any]) -> Iterator[slice]:
    """Slices of equal neighbours."""
    starts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist()]
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        yield slice(start, end)
