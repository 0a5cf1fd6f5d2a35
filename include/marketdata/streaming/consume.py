"""Reading back: a topic's first messages for people, a batch's records and the ledger's state for reconciliation."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from marketdata.datasets import Dataset
from marketdata.errors import TryLaterError
from marketdata.settings import Settings
from marketdata.streaming import ledger
from marketdata.streaming.brokers import bounds, reach, read_committed
from marketdata.streaming.fold import NEWEST, Fold, Marker, workspace
from marketdata.streaming.topics import records_topic

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 2.0
"""How long people wait for a transaction that may just be ending."""


def read_back(settings: Settings, topic: str, limit: int) -> list[bytes]:
    """Values of the first committed messages of a topic, partition by partition.

    Raises:
        UsageError: there is no such topic.
        UnavailableError: the brokers are gone.
    """
    found: list[bytes] = []
    for number, span in bounds(reach(settings), topic).items():
        try:
            for messages in read_committed(settings, topic, {number: span}, patience=PATIENCE_SECONDS):
                found += [value for message in messages if (value := message.value()) is not None]
                if len(found) >= limit:
                    return found[:limit]
        except TryLaterError:
            log.info("an open transaction hides the end of a partition", extra={"topic": topic, "partition": number})
    return found


def records_of(settings: Settings, dataset: Dataset, marker: Marker) -> pa.Table:
    """What the topic holds of a batch: ``record_id`` and ``content_hash`` of each message, as often as it is there.

    Args:
        marker: the batch's, which says where to look.

    Raises:
        UnavailableError: the brokers are gone, or the messages are (retention).
    """
    import pyarrow as pa

    parts = []
    spans = {at.partition: (at.first, at.last + 1) for at in marker.offsets}
    with workspace() as connection:
        for messages in read_committed(settings, records_topic(settings, dataset), spans):
            values = [(message.value() or b"").decode(errors="replace") for message in messages]
            connection.register("messages", pa.table({"value": pa.array(values, pa.string())}))
            parts.append(connection.sql(_FIELDS, params=[marker.batch_id]).to_arrow_table())
            connection.unregister("messages")
    schema = pa.schema([("record_id", pa.string()), ("content_hash", pa.string())])
    return pa.concat_tables([schema.empty_table(), *parts])


def ledger_state(settings: Settings, dataset: Dataset, fold: Fold, record_ids: pa.Table) -> pa.Table:
    """What has been published of some records.

    Args:
        fold: of the ledger.
        record_ids: table with column ``record_id``.

    Returns:
        ``record_id``, ``content_hash``, ``as_of`` of those that have been published.
    """
    with workspace() as connection:
        connection.register("asked", record_ids.select(["record_id"]))
        connection.execute("CREATE TEMP TABLE wanted AS SELECT DISTINCT unhex(record_id) AS record_id FROM asked")
        return ledger.query(connection, settings, dataset, fold, _STATE)[1]


# Others may write between the offsets of a batch: other tenants, and whoever else may write to the topic.
_FIELDS = """
SELECT value ->> '$.record_id' AS record_id, value ->> '$.content_hash' AS content_hash
FROM (SELECT CASE WHEN json_valid(value) THEN CAST(value AS JSON) END AS value FROM messages)
WHERE value ->> '$.batch_id' = ?
"""

_STATE = f"""
SELECT lower(hex(record_id)) AS record_id, lower(hex(newest.content_hash)) AS content_hash,
    make_timestamp(newest.as_of) AT TIME ZONE 'UTC' AS as_of
FROM (SELECT record_id, {NEWEST} AS newest FROM deltas SEMI JOIN wanted USING (record_id) GROUP BY record_id)
"""  # noqa: S608
