"""The ledger: one topic of one partition, one marker per published batch, in the transaction of the batch's records.

It is the truth about what has been published; `snapshots` only spare reading it from the beginning.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from marketdata.batches import Lake
from marketdata.datasets import Dataset
from marketdata.errors import BadDataError, UsageError
from marketdata.settings import Settings
from marketdata.streaming import snapshots
from marketdata.streaming.brokers import REACH_SECONDS, Cluster, bounds, outcome, reach, read_committed
from marketdata.streaming.fold import Fold, Marker, deltas_in
from marketdata.streaming.topics import ledger_topic

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

log = logging.getLogger(__name__)


def read(settings: Settings, dataset: Dataset, tenant: str, trust_snapshot: bool = True) -> Fold:
    """The fold of all markers that are committed by now.

    Raises:
        UsageError: the ledger topic is missing, has lost its beginning, or a message is not a marker of this version.
        TryLaterError: an open transaction hides its end.
        UnavailableError: the brokers are gone.
    """
    cluster = reach(settings)
    topic = ledger_topic(settings, dataset)
    first, end = bounds(cluster, topic)[0]
    if first > 0:
        raise UsageError(
            f"ledger {topic} at {cluster.brokers} begins at offset {first}: markers have been deleted, and without "
            "them records could be published twice; nothing was published",
            "restore the topic; a ledger is kept for ever",
        )
    empty = Fold(topic, topic_id(cluster, topic), dataset.name, tenant)
    fold = (snapshots.recall(settings, empty, end) if trust_snapshot else None) or empty
    markers = []
    for messages in read_committed(settings, topic, {0: (fold.end, end)}):
        for message in messages:
            offset = message.offset()
            if message.key() == fold.key and offset is not None:
                markers.append((offset, Marker.from_json(message.value() or b"")))
    return fold.with_markers(markers, end)


def find(settings: Settings, fold: Fold, batch_id: str) -> tuple[int, Marker] | None:
    """The marker of a batch and its offset, as the topic has it; None if the batch was never published."""
    if batch_id in fold.fresh:
        return fold.batches[batch_id], fold.fresh[batch_id]
    if batch_id in fold.batches:
        offset = fold.batches[batch_id]
        for messages in read_committed(settings, fold.topic, {0: (offset, offset + 1)}):
            for message in messages:
                marker = Marker.from_json(message.value() or b"")
                if marker.batch_id == batch_id:
                    return offset, marker
    return None


def query(
    connection: duckdb.DuckDBPyConnection, settings: Settings, dataset: Dataset, fold: Fold, sql: str
) -> tuple[Fold, pa.Table]:
    """Answer a query about ``deltas``, the rows of the fold's files.

    Returns:
        The answer and the fold it is about: `fold`, or one read anew where an object of its snapshot was lost.

    Raises:
        BadDataError: a delta that a marker names is missing from the lake, or damaged.
    """
    lake = Lake(settings)
    try:
        with deltas_in(connection, lake, fold.files):
            return fold, connection.sql(sql).to_arrow_table()
    except BadDataError as error:
        if len(fold.fresh) == len(fold.batches):
            raise
        log.warning("the ledger snapshot is damaged; reading the whole ledger", extra={"reason": error.message})
    fold = read(settings, dataset, fold.tenant, trust_snapshot=False)
    with deltas_in(connection, lake, fold.files):
        return fold, connection.sql(sql).to_arrow_table()


def topic_id(cluster: Cluster, topic: str) -> str:
    """Kafka's own id of a topic; one that is deleted and made anew has another."""
    from confluent_kafka import TopicCollection

    described = cluster.admin.describe_topics(TopicCollection([topic]), request_timeout=REACH_SECONDS)[topic]
    return str(outcome(described, cluster, f"describing {topic}").topic_id)
