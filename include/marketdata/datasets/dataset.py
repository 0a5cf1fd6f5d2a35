"""`Dataset`: what a dataset is, said once, in plain types.

The Kafka message, the Iceberg table, the Arrow schemas, the quarantine table and the reference page are derived from
it. Arrow is imported only when a schema is asked for, so that DAG files stay light.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

TEXT, TIMESTAMP, DATE, INTEGER = "string", "timestamp", "date", "integer"
LONG, DOUBLE, BOOLEAN = "long", "double", "boolean"
_DECIMAL = re.compile(r"decimal\((\d+),(\d+)\)")


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: name in the table; lower_snake_case.
        type: ``string``, ``decimal(p,s)``, ``timestamp`` (UTC, microseconds), ``date``, ``integer`` (32 bits), ``long``
            (64), ``double`` or ``boolean``.
        doc: one line for people.
        required: a row without it is quarantined.
        raw: it comes from the source, as text; the others are computed by `transform`.
        business: it enters the content hash; never a clock or a run id.
        parse: DuckDB expression of the raw text ``{}`` where the type's own is not enough.
        message: name in the Kafka message where that differs.
    """

    name: str
    type: str
    doc: str
    required: bool = True
    raw: bool = False
    business: bool = False
    parse: str | None = None
    message: str = ""

    @property
    def message_name(self) -> str:
        return self.message or self.name

    def decimal(self) -> tuple[int, int] | None:
        """(precision, scale) of a decimal column."""
        match = _DECIMAL.fullmatch(self.type)
        return (int(match[1]), int(match[2])) if match else None

    def arrow_type(self) -> pa.DataType:
        import pyarrow as pa

        if decimal := self.decimal():
            return pa.decimal128(*decimal)
        types: dict[str, pa.DataType] = {
            TEXT: pa.string(),
            TIMESTAMP: pa.timestamp("us", "UTC"),
            DATE: pa.date32(),
            INTEGER: pa.int32(),
            LONG: pa.int64(),
            DOUBLE: pa.float64(),
            BOOLEAN: pa.bool_(),
        }
        return types[self.type]

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema of the column in a message."""
        if self.decimal():
            schema: dict[str, Any] = {"type": "number"}
        elif self.type == TIMESTAMP:
            schema = {"type": "string", "format": "date-time"}
        elif self.type == DATE:
            schema = {"type": "string", "format": "date"}
        else:
            schema = {"type": {LONG: "integer", DOUBLE: "number"}.get(self.type, self.type)}
        if not self.required:
            schema["type"] = [schema["type"], "null"]
        return {**schema, "description": self.doc}

    def avro_field(self) -> dict[str, Any]:
        """Avro schema of the column in a message."""
        field: dict[str, Any] = {"name": self.message_name, "doc": self.doc}
        if decimal := self.decimal():
            precision, scale = decimal
            type_: Any = {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}
        elif self.type == TIMESTAMP:
            type_ = {"type": "long", "logicalType": "timestamp-micros"}
        elif self.type == DATE:
            type_ = {"type": "int", "logicalType": "date"}
        else:
            type_ = {INTEGER: "int"}.get(self.type, self.type)
        return {**field, "type": type_} if self.required else {**field, "type": ["null", type_], "default": None}


@dataclass(frozen=True)
class KnownEvent:
    """A day on which a value that breaks a rule is history, not an error of the source."""

    series: str
    day: date
    says: str


@dataclass(frozen=True)
class Dataset:
    """A dataset's contract.

    Args:
        name: lower_snake_case; names the table, the suite file and the folder of batches.
        version: of the schema; written into every row.
        columns: in the order of table and message.
        key: columns whose values identify a row (they make the ``record_id``).
        event_time: column that says when the row's fact happened.
        topic: default Kafka topic.
        message_key: column whose value is the Kafka message key.
        dead_letters: topic of messages that cannot be read, where several datasets share one; default: the dataset's
            topic with ``-dlq``.
        aliases: column → {lower-case text the source may use: canonical value}.
        ranges: (commodity, unit) → (lowest, highest) plausible price.
        events: days with a name.
    """

    name: str
    version: int
    doc: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    event_time: str
    topic: str
    message_key: str
    dead_letters: str = ""
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ranges: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    events: tuple[KnownEvent, ...] = ()

    @property
    def raw_columns(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.raw)

    @property
    def business_columns(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.business)

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    def arrow_schema(self) -> pa.Schema:
        """Arrow schema of a transformed batch and of the table."""
        import pyarrow as pa

        return pa.schema([pa.field(c.name, c.arrow_type(), nullable=not c.required) for c in self.columns])

    def raw_schema(self) -> pa.Schema:
        """Arrow schema of an extracted batch: text as the source said it, and where it stood."""
        import pyarrow as pa

        return pa.schema(
            [(c.name, pa.string()) for c in self.raw_columns] + [("origin", pa.string()), ("origin_row", pa.int64())]
        )

    def message_schema(self) -> dict[str, Any]:
        """JSON Schema of a message on the topic."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.name,
            "description": self.doc,
            "type": "object",
            "properties": {c.message_name: c.json_schema() for c in self.columns},
            "required": [c.message_name for c in self.columns if c.required],
            "additionalProperties": True,
        }

    def avro_schema(self) -> dict[str, Any]:
        """Avro schema of a message on the topic."""
        return {
            "type": "record",
            "name": "".join(word.title() for word in self.name.split("_")),
            "namespace": "marketdata",
            "doc": self.doc,
            "fields": [column.avro_field() for column in self.columns],
        }


QUARANTINE_COLUMNS = (
    Column("quarantine_id", TEXT, "SHA-256 of tenant, dataset, origin, the row's values and the rules it broke."),
    Column("tenant", TEXT, "Tenant."),
    Column("dataset", TEXT, "Dataset the row was meant for."),
    Column("batch_id", TEXT, "Batch that first brought the row."),
    Column("run_id", TEXT, "Run that first brought the row."),
    Column("quarantined_at", TIMESTAMP, "When that batch was extracted, UTC."),
    Column("commodity", TEXT, "What the source said.", required=False),
    Column("series", TEXT, "What the source said.", required=False),
    Column("source", TEXT, "Provider.", required=False),
    Column("event_time", TEXT, "What the source said.", required=False),
    Column("rules", TEXT, "Rules broken, separated by commas; the first one is the reason."),
    Column("reason", TEXT, "The reason for people: rule, value, and the known event where there is one."),
    Column("value", TEXT, "The offending value as the source said it.", required=False),
    Column("row", TEXT, "The whole row as JSON, as the source said it."),
    Column("origin", TEXT, "File or address the row came from.", required=False),
    Column("origin_row", INTEGER, "Row number there, the first data row being 1.", required=False),
)
"""Columns of every quarantine table."""


def quarantine(dataset: Dataset) -> Dataset:
    """The dataset of the rows `dataset` refused."""
    return Dataset(
        name=f"{dataset.name}_quarantine",
        version=1,
        doc=f"Rows refused by the quality gate of {dataset.name}.",
        columns=QUARANTINE_COLUMNS,
        key=("quarantine_id",),
        event_time="quarantined_at",
        topic="",
        message_key="quarantine_id",
    )
