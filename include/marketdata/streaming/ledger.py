"""The ledger: one topic of one partition, one marker per published batch, in the transaction of the batch's records.

It is the truth about what has been published; `snapshots` only spare reading it from the beginning.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from marketdata.batches import Lake
from marketdata.datasets import Dataset
from marketdata.errors import BadDataError, TryLaterError, UsageError
from marketdata.settings import Settings
from marketdata.streaming import snapshots
from marketdata.streaming.brokers import ANSWER_SECONDS, Cluster, answered, bounds, outcome, reach, read_committed
from marketdata.streaming.fold import Fold, Marker, deltas_in
from marketdata.streaming.topics import ledger_topic

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

log = logging.getLogger(__name__)

OLD_LEADER_SECONDS = 5.0
"""How long a leader that comes back may not know that others have replaced it; up to 2.2 s were measured."""


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


def read_with(settings: Settings, dataset: Dataset, batch_id: str) -> tuple[Fold, Marker]:
    """The fold of all markers, and the marker of one batch that has been published.

    A ledger without it is read again until `OLD_LEADER_SECONDS`: a leader that was replaced may have told its old end.

    Raises:
        TryLaterError: it is without it still, which does not prove that the batch was not published: that leader may
            be cut off for longer. Otherwise as `read` does.
    """
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

    def look() -> tuple[Fold, Marker]:
        fold = read(settings, dataset, settings.tenant)
        if found := find(settings, fold, batch_id):
            return fold, found[1]
        raise TryLaterError(
            f"ledger {fold.topic} at {settings.kafka_brokers} does not know batch {batch_id}, not yet or no more; "
            "nothing was changed",
            "try again: a broker that was cut off learns of it once it is back; if this lasts, see whether the run's "
            "publish was skipped or has failed, and clear it, or whether the ledger was lost",
        )

    again = Retrying(
        stop=stop_after_delay(OLD_LEADER_SECONDS),
        wait=wait_fixed(0.5),
        retry=retry_if_exception_type(TryLaterError),
        reraise=True,
    )
    return again(look)


def refuse_unread(settings: Settings, fold: Fold, at: int) -> None:
    """Refuse to go on where the ledger had markers that the fold lacks.

    A leader that was cut off, and replaced meanwhile, is told so within seconds after it is back; until then it tells
    whoever asks that the ledger ends where it was cut off. What is written to the ledger is behind everything.

    Args:
        fold: what the caller decided by; it has fenced every earlier try of its tenant and dataset before reading it.
        at: offset of a marker that was acknowledged since; negative where the broker did not tell it.

    Raises:
        TryLaterError: a marker of this tenant and dataset lies between the fold's end and that offset, or the offset
            is none behind that end and so proves nothing.
        UnavailableError: the brokers are gone.
    """
    if at < fold.end:
        raise TryLaterError(
            f"ledger {fold.topic} was read up to offset {fold.end}, but the marker written behind that lies at "
            f"{at if at >= 0 else 'an offset that its broker did not tell'}; nothing was published",
            "try again; if this lasts, see whether the ledger was cut or made anew: it would have forgotten what was "
            "published",
        )
    for messages in read_committed(settings, fold.topic, {0: (fold.end, at)}):
        if any(message.key() == fold.key for message in messages):
            raise TryLaterError(
                f"the end of ledger {fold.topic} was asked of a broker that had been cut off and did not know its last "
                "markers; nothing was published",
                "try again: within seconds that broker knows them",
            )


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

    def ask() -> str:
        described = cluster.admin.describe_topics(TopicCollection([topic]), request_timeout=ANSWER_SECONDS)[topic]
        return str(outcome(described, cluster, f"describing {topic}").topic_id)

    return answered(cluster, ask)
