"""A proving ground: topics, consumers, windows and a table that are nobody else's, named after the run they serve.

Whatever a drill makes has a name made from its run and nothing else. So a later try, or a clean-up that knows no more
than the run, finds all of it, also after the drill was killed.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from marketdata.batches import Lake, content_id, open_store
from marketdata.errors import MarketdataError, UnavailableError
from marketdata.lakehouse import open_lakehouse
from marketdata.settings import Settings
from marketdata.streaming import topics
from marketdata.streaming.brokers import Cluster, outcome, reach, unavailable
from marketdata.streaming.window_store import connected

log = logging.getLogger(__name__)

PREFIX = "drill-"
"""Of every topic, group and transaction of a drill; a cluster's rights may be given by it."""

GROUP_SECONDS = 30.0
"""A static member is missed for its session of 10 s, and a group with members is not deleted."""


def own_settings(settings: Settings, run_id: str, drill: str) -> Settings:
    """Settings of a drill's own topics, consumer group, schema and lake on the engines of `settings`."""
    name = PREFIX + content_id(settings.tenant, run_id, drill)
    return settings.model_copy(
        update={
            "kafka_topic": name,
            "analytics_topic": f"{name}-aggregates",
            "analytics_group": name,
            "trino_schema": name.replace("-", "_"),
            "lake_uri": f"{settings.require('lake_uri').rstrip('/')}/drills/{name}",
        }
    )


def check(settings: Settings) -> None:
    """Is everything well that a drill would load or disrupt?

    Raises:
        UnavailableError: an engine does not answer, or a partition lacks a replica already.
    """
    Lake(settings).get("drills/check")
    with connected(settings):
        pass
    open_lakehouse(settings).check()
    cluster = reach(settings)
    if ailing := sorted(
        f"{name}/{number}"
        for name, topic in cluster.metadata.topics.items()
        for number, partition in topic.partitions.items()
        if partition.leader < 0 or len(partition.isrs) < len(partition.replicas)
    ):
        raise UnavailableError(
            f"Kafka at {cluster.brokers} is not well: {len(ailing)} partitions lack a leader or a replica, e.g. "
            f"{ailing[0]}; nothing was disrupted",
            "let the cluster recover first",
        )


@contextmanager
def ground(own: Settings) -> Iterator[None]:
    """The drill's topics, and nothing of the drill after it.

    Raises:
        UnavailableError: an engine is gone; what is left of the drill is named.
    """
    clear(own)
    topics.apply(own, only=own.kafka_topic)
    try:
        yield
    finally:
        clear(own)


def clear(own: Settings) -> None:
    """Remove whatever a drill has left; safe to repeat.

    Raises:
        UnavailableError: something could not be removed; everything else was.
    """
    failures = []
    for remove in (_topics, _windows, _table, _files):
        try:
            remove(own)
        except MarketdataError as error:
            failures.append(error.message)
    if failures:
        raise UnavailableError(
            f"{own.kafka_topic} was not removed whole: {'; '.join(failures)}",
            "once the engines answer: marketdata drill-clear --run-id RUN",
        )


def _topics(own: Settings) -> None:
    cluster = reach(own)
    mine = [
        name for name in cluster.metadata.topics if name == own.kafka_topic or name.startswith(f"{own.kafka_topic}-")
    ]
    if mine:
        for name, future in cluster.admin.delete_topics(mine).items():
            outcome(future, cluster, f"deleting topic {name}")
        _until(lambda: not set(mine) & reach(own).metadata.topics.keys(), cluster, f"topics {', '.join(mine)} stay")
    groups = {own.analytics_group, f"{own.analytics_group}.told"}
    _until(lambda: _deleted(cluster, groups), cluster, f"groups {', '.join(sorted(groups))} stay")


def _deleted(cluster: Cluster, groups: set[str]) -> bool:
    from confluent_kafka import KafkaError, KafkaException

    for group, future in cluster.admin.delete_consumer_groups(list(groups)).items():
        try:
            future.result(timeout=10)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                continue
        except TimeoutError:
            continue
        groups.discard(group)
    return not groups


def _until(condition: Callable[[], bool], cluster: Cluster, otherwise: str) -> None:
    deadline = time.monotonic() + GROUP_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise unavailable(cluster.brokers, otherwise, f"after {GROUP_SECONDS:.0f} s")
        time.sleep(0.2)


def _windows(own: Settings) -> None:
    with connected(own) as postgres, postgres.transaction():
        for statement in _FORGET:
            postgres.execute(statement, (own.analytics_group,))


_FORGET = (
    "DELETE FROM marketdata.price_windows USING marketdata.price_series s "
    "WHERE price_windows.series_id = s.series_id AND s.consumer_group = %s",
    "DELETE FROM marketdata.price_series WHERE consumer_group = %s",
    "DELETE FROM marketdata.dead_letters USING marketdata.analytics_feeds f "
    "WHERE dead_letters.feed_id = f.feed_id AND f.consumer_group = %s",
    "DELETE FROM marketdata.analytics_feeds WHERE consumer_group = %s",
)


def _table(own: Settings) -> None:
    open_lakehouse(own).drop_namespace()


def _files(own: Settings) -> None:
    uri = own.require("lake_uri")
    if uri.startswith("file://"):
        shutil.rmtree(uri.removeprefix("file://"), ignore_errors=True)
        return
    store: Any = open_store(uri, own)
    for some in store.list():
        store.delete([file["path"] for file in some])
