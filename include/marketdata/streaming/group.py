"""Partitions that nobody in the group has are dealt out again.

A static member that is killed between the two halves of a cooperative rebalance has given a partition up which nobody
has yet. Started again under its name, it is a member the coordinator knows: no reason to deal anything out, and that
partition would wait for the next rebalance, whenever that is.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from marketdata.errors import UnavailableError
from marketdata.settings import Settings
from marketdata.streaming.brokers import REACH_SECONDS, connection, outcome, reach

if TYPE_CHECKING:
    from confluent_kafka import Consumer, TopicPartition

log = logging.getLogger(__name__)

JOINING_SECONDS = 30.0
"""How long a rebalance may take: members that are gone are waited for."""


def membership(settings: Settings) -> dict[str, Any]:
    """The client's options that members of the group have in common; who has another strategy is not let in."""
    return {
        **connection(settings),
        "group.id": settings.analytics_group,
        "partition.assignment.strategy": "cooperative-sticky",
        # A dead coordinator is replaced within 11 s, and a session that lives on needs no rebalance then.
        "session.timeout.ms": 12_000,
        "heartbeat.interval.ms": 1_000,  # with the next one a member hears that partitions are dealt out
        "enable.auto.commit": False,
    }


class Group:
    """The group as its coordinator sees it, looked at by one of its members."""

    def __init__(self, settings: Settings, topic: str, member: str) -> None:
        self._settings = settings
        self._topic = topic
        self._member = member
        self._without: set[int] = set()

    def tend(self) -> int:
        """Deal out what was nobody's at the last look too; how many partitions those are."""
        try:
            before, self._without = self._without, self._nobodys()
        except UnavailableError as error:
            log.debug("the group cannot be looked at", extra={"reason": error.message})
            return 0
        waiting = before & self._without
        if waiting:
            log.warning("nobody has these partitions; they are dealt out again", extra={"partitions": sorted(waiting)})
            self._join_and_leave()
        return len(waiting)

    def _nobodys(self) -> set[int]:
        """Partitions without a member while nothing is being dealt out, as seen by the first member alone."""
        from confluent_kafka import ConsumerGroupState

        cluster = reach(self._settings)
        group = self._settings.analytics_group
        request = cluster.admin.describe_consumer_groups([group], request_timeout=REACH_SECONDS)
        found = outcome(request[group], cluster, f"describing group {group}")
        names = [member.group_instance_id for member in found.members if member.group_instance_id]
        if found.state != ConsumerGroupState.STABLE or self._member != min(names, default=None):
            return set()
        had = {at.partition for member in found.members for at in member.assignment.topic_partitions}
        return set(cluster.metadata.topics[self._topic].partitions) - had

    def _join_and_leave(self) -> None:
        """Be a member without a name for a moment: each of the two is a reason to deal everything out."""
        from confluent_kafka import Consumer

        joined = False

        def assigned(_consumer: Consumer, _given: list[TopicPartition]) -> None:
            nonlocal joined
            joined = True

        passing = Consumer(membership(self._settings), logger=log)
        try:
            passing.subscribe([self._topic], on_assign=assigned)
            deadline = time.monotonic() + JOINING_SECONDS
            while not joined and time.monotonic() < deadline:
                passing.poll(0.1)
        finally:
            passing.close()
