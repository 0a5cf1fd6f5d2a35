"""Avro messages: rows to bytes, and bytes to rows or the reason why not.

A message begins with the schema it was written by: ``00`` and its number in the registry (Confluent's wire format), or
where no registry is set ``C3 01`` and its fingerprint (Avro's single-object encoding), by which only today's is known.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marketdata.datasets import Dataset
from marketdata.settings import Settings
from marketdata.streaming import schemas
from marketdata.streaming.decode import Letter, Raw
from marketdata.streaming.topics import Topic

if TYPE_CHECKING:
    import pyarrow as pa

REGISTERED, ALONE = b"\x00", b"\xc3\x01"
_ROWS_AT_ONCE = 20_000


def header(settings: Settings, topic: Topic) -> bytes:
    """What each message of a topic begins with.

    Raises:
        UsageError: ``SCHEMA_REGISTRY_URL`` is set, and the topic's schema is not registered there.
        UnavailableError: the registry does not answer.
    """
    if settings.schema_registry_url:
        return REGISTERED + struct.pack(">I", schemas.id_of(settings.schema_registry_url, topic))
    return ALONE + _fingerprint(topic.value_schema())


def messages(dataset: Dataset, rows: pa.Table, header: bytes) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Keys and values of the rows' messages, in order, some thousands at a time.

    Args:
        rows: rows of `dataset.arrow_schema()`.
    """
    from fastavro import parse_schema, schemaless_writer

    schema = parse_schema(dataset.avro_schema())
    for batch in rows.to_batches(max_chunksize=_ROWS_AT_ONCE):
        values = []
        for row in batch.to_pylist():
            sink = io.BytesIO()
            sink.write(header)
            schemaless_writer(sink, schema, row)
            values.append(sink.getvalue())
        yield [str(key).encode() for key in batch[dataset.message_key].to_pylist()], values


@dataclass(frozen=True)
class Read:
    """
    Args:
        rows: rows of `Dataset.arrow_schema`.
        offsets: of the message of each row.
        letters: the messages that are no rows.
    """

    rows: pa.Table
    offsets: list[int]
    letters: list[Letter]


class Reader:
    """Reads Avro messages of a dataset, one partition's at a time, by whichever schema they were written."""

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        from fastavro import parse_schema

        self._settings = settings
        self._dataset = dataset
        self._wanted: Any = parse_schema(dataset.avro_schema())
        self._alone = ALONE + _fingerprint(dataset.avro_schema())
        self._by_number: dict[int, Any] = {}

    def read(self, messages: Iterable[Raw]) -> Read:
        """Rows and letters, each in the order of the messages.

        Raises:
            UnavailableError: the registry does not answer; nothing is known of a message then.
            UsageError: a message needs the registry, and ``SCHEMA_REGISTRY_URL`` is not set.
        """
        import pyarrow as pa

        rows, offsets, letters = [], [], []
        self._by_number = {number: schema for number, schema in self._by_number.items() if schema is not None}
        for message in messages:
            try:
                rows.append(self._row(message.value or b""))
                offsets.append(message.offset)
            except _UnreadableError as error:
                letters.append(Letter(*message, str(error)))
        return Read(pa.Table.from_pylist(rows, self._dataset.arrow_schema()), offsets, letters)

    def _row(self, value: bytes) -> dict[str, Any]:
        from fastavro import schemaless_reader
        from fastavro.read import SchemaResolutionError

        content, written = self._body(value)
        try:
            row = schemaless_reader(content, written, self._wanted)
        except (EOFError, IndexError):
            raise _UnreadableError(f"truncated: the record does not end within {len(value)} bytes") from None
        except SchemaResolutionError as error:
            raise _UnreadableError(f"written by a schema that today's cannot read: {error}") from None
        except (ValueError, OverflowError) as error:
            raise _UnreadableError(f"not a record of {self._dataset.name}: {error}") from None
        if over := len(value) - content.tell():
            raise _UnreadableError(f"{over} bytes follow the record")
        return row  # type: ignore[return-value]  # the schema is a record's

    def _body(self, value: bytes) -> tuple[io.BytesIO, Any]:
        """The message, read to behind its header, and the schema it was written by."""
        content = io.BytesIO(value)
        if value.startswith(self._alone):
            content.seek(len(self._alone))
            return content, self._wanted
        if value.startswith(ALONE) and len(value) >= len(self._alone):
            raise _UnreadableError(f"{value[2:10].hex()} is not the fingerprint of today's schema")
        if value.startswith(REGISTERED) and len(value) >= 5:
            content.seek(5)
            return content, self._schema(*struct.unpack(">I", value[1:5]))
        if value[:1] in (REGISTERED, ALONE[:1]):
            raise _UnreadableError(f"truncated: {len(value)} bytes are no header")
        raise _UnreadableError(f"begins with {value[:2].hex() or 'nothing'}, and Avro messages with 00 or c301")

    def _schema(self, number: int) -> Any:
        from fastavro import parse_schema
        from fastavro.schema import SchemaParseException, UnknownType

        if number not in self._by_number:
            self._by_number[number] = schemas.by_id(self._settings.require("schema_registry_url"), number)
        schema = self._by_number[number]
        if schema is None:
            raise _UnreadableError(f"the registry has no schema {number}")
        try:
            parsed: Any = parse_schema(schema)
        except (SchemaParseException, UnknownType, KeyError):
            parsed = {}
        if parsed.get("name") != self._wanted["name"]:
            raise _UnreadableError(f"schema {number} of the registry is not of {self._wanted['name']}")
        self._by_number[number] = parsed
        return parsed


class _UnreadableError(Exception):
    pass


def _fingerprint(schema: Any) -> bytes:
    """Eight bytes of a schema, docs left out."""
    from fastavro.schema import fingerprint, to_parsing_canonical_form

    return bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
