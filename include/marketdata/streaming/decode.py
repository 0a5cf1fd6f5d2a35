"""Messages to columns: what `encode` wrote, read back, and what cannot be read told apart with its reason.

The type a message is decoded into is derived from the dataset's columns, as its JSON Schema is: what the schema refuses
is refused here. Texts become numbers for a whole batch at once; only where a batch fails are its messages tried one by
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from marketdata.datasets import Dataset
from marketdata.datasets.dataset import INTEGER
from marketdata.streaming.windows import MEMBER, Book, Records

if TYPE_CHECKING:
    from confluent_kafka import Message
    from numpy.typing import NDArray

PRICE_DIGITS = 18
MILLIONTH = Decimal("0.000001")
_EXACT = Context(PRICE_DIGITS, traps=[Inexact, InvalidOperation])

LONGEST_REASON = 500
"""Characters; what is said of a long message may repeat it."""

FUTURE = 5 * 60 * 1_000_000
"""Microseconds an event may be ahead of its arrival: one of the year 2126 must not move the watermark."""

EARLIEST = int(datetime(1677, 9, 22, tzinfo=UTC).timestamp()) * 1_000_000
"""Microseconds since 1970: the first day all of which a timestamp in nanoseconds holds; many readers count in these.
A year before 1 is worse: PostgreSQL stores it, and its driver cannot read it back."""


@dataclass(frozen=True)
class Letter:
    """A message that cannot be read, and why."""

    offset: int
    appended: int
    key: bytes | None
    value: bytes | None
    reason: str


class Raw(NamedTuple):
    """A message as it lies in its partition; `appended` in microseconds since 1970."""

    offset: int
    appended: int
    key: bytes | None
    value: bytes | None

    @classmethod
    def of(cls, message: Message) -> Raw:
        return cls(message.offset() or 0, message.timestamp()[1] * 1000, message.key(), message.value())


@dataclass(frozen=True)
class Decoded:
    """
    Args:
        ingested: when each record's batch was extracted, microseconds since 1970.
    """

    records: Records
    ingested: NDArray[np.int64]
    letters: list[Letter]


class Reader:
    """Reads messages of a dataset, one partition's at a time."""

    def __init__(self, dataset: Dataset, book: Book) -> None:
        fields: list[Any] = []
        for column in dataset.columns:
            # Times stay text: Arrow reads them four times faster, many at once.
            type_: Any = Decimal if column.decimal() else int if column.type == INTEGER else str
            named = column.message_name
            fields.append((named, type_) if column.required else (named, type_ | None, None))
        fields.sort(key=len)  # those that may be missing come last
        self._read: Callable[[bytes], Any] = msgspec.json.Decoder(msgspec.defstruct("Row", fields, gc=False)).decode
        self._book = book

    def read(self, messages: Iterable[Raw]) -> Decoded:
        """Records and letters, each in the order of the messages."""
        rows: list[Any] = []
        quoted: list[tuple[int, int]] = []
        sources: list[Raw] = []
        letters = []
        for message in messages:
            try:
                row = self._read(message.value or b"")
                names = row.tenant, row.commodity, row.source, row.series, row.frequency, row.currency, row.unit
                quoted.append(self._book.quoted(names))
                rows.append(row)
                sources.append(message)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                letters.append(Letter(*message, str(error) or type(error).__name__))
        reasons = _reasons(rows, sources)
        if any(reasons):
            letters += [Letter(*m, reason) for m, reason in zip(sources, reasons, strict=True) if reason]
            letters.sort(key=lambda letter: letter.offset)
            well = [number for number, reason in enumerate(reasons) if not reason]
            rows, sources = [rows[number] for number in well], [sources[number] for number in well]
            quoted = [quoted[number] for number in well]
        letters = [replace(letter, reason=letter.reason[:LONGEST_REASON]) for letter in letters]
        members, ingested = _columns(rows, sources)
        numbers = np.array(quoted, np.int64).reshape(-1, 2)
        members["quote"] = numbers[:, 1]
        offsets = np.array([message.offset for message in sources], np.int64)
        appended = np.array([message.appended for message in sources], np.int64)
        return Decoded(Records(numbers[:, 0], members, offsets, appended), ingested, letters)


class _UnreadableError(Exception):
    pass


def _reasons(rows: list[Any], messages: list[Raw]) -> list[str]:
    """Why each row cannot become a record; empty where it can. Halves a batch until the culprits stand alone."""
    try:
        _columns(rows, messages)
    except _UnreadableError as error:
        if len(rows) == 1:
            return [str(error)]
        half = len(rows) // 2
        return _reasons(rows[:half], messages[:half]) + _reasons(rows[half:], messages[half:])
    return [""] * len(rows)


def _columns(rows: list[Any], messages: list[Raw]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    import pyarrow as pa

    members = np.zeros(len(rows), MEMBER)
    members["event_time"] = _times("timestamp", [row.timestamp for row in rows])
    members["as_of"] = _times("as_of", [row.as_of for row in rows])
    ingested = _times("ingested_at", [row.ingested_at for row in rows])
    try:
        # Arrow looks the factor up in a table that ends: it makes 0 of 1 with 45 zeros after the point, or dies.
        exact = [_EXACT.quantize(row.price, MILLIONTH) for row in rows]
        prices: pa.Array[Any] = pa.array(exact, pa.decimal128(PRICE_DIGITS, 6))
    except (DecimalException, pa.ArrowInvalid):
        raise _UnreadableError("price is not a decimal(18,6)") from None
    # The low half of 128 bits: eighteen digits fit into 63.
    members["price"] = np.frombuffer(memoryview(prices.buffers()[1] or b""), "<i8")[: 2 * len(rows) : 2]
    try:
        digests = bytes.fromhex("".join([row.content_hash[:16] for row in rows]))
    except ValueError:
        digests = b""
    if len(digests) != 8 * len(rows) or not all(len(row.content_hash) == 64 for row in rows):
        raise _UnreadableError("content_hash is not a SHA-256 in hexadecimal")
    members["content"] = np.frombuffer(digests, ">u8")
    if (members["event_time"] < EARLIEST).any():
        raise _UnreadableError("timestamp is before 1677-09-22, the first day nanoseconds hold")
    appended = np.array([message.appended for message in messages], np.int64)
    if (members["event_time"] > appended + FUTURE).any():
        raise _UnreadableError("timestamp is more than 5 minutes after the message's arrival")
    return members, ingested


def _times(name: str, texts: list[str]) -> NDArray[np.int64]:
    import pyarrow as pa

    try:
        times: NDArray[np.int64] = (
            pa.array(texts, pa.string()).cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
        )
    except pa.ArrowInvalid:
        raise _UnreadableError(f"{name} is not a date and time with a zone") from None
    return times
