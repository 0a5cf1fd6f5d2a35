"""The suites of publishing and of topics on three brokers, and what only three brokers can show."""

from __future__ import annotations

from marketdata.settings import Settings
from marketdata.streaming.brokers import reach
from marketdata.streaming.topics import _configs
from tests.contract.test_publish import *  # noqa: F403
from tests.contract.test_topics import *  # noqa: F403

# These are about no cluster at all.
del test_a_node_left_alone_of_a_larger_cluster_gets_no_single_replicas  # noqa: F821
del test_brokers_out_of_reach_are_named_within_ten_seconds_with_the_cause  # noqa: F821
del test_without_an_address_the_variable_is_named  # noqa: F821


def test_topics_have_three_replicas_of_which_two_must_have_a_record(settings: Settings) -> None:
    cluster = reach(settings)
    for topic, partitions in ((settings.kafka_topic, 3), (f"{settings.kafka_topic}-ledger", 1)):
        found = cluster.metadata.topics[topic].partitions
        assert len(found) == partitions
        assert all(sorted(one.replicas) == [1, 2, 3] == sorted(one.isrs) for one in found.values())
        assert _configs(cluster, "topic", [topic])[topic]["min.insync.replicas"] == "2"
