from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from marketdata.errors import UnavailableError
from marketdata.streaming import brokers


class Admin:
    """Answers with these errors, one request after the other, then with an offset."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)

    def list_offsets(self, wanted, **_):
        def answer() -> Future:
            future: Future = Future()
            if error:
                future.set_exception(KafkaException(KafkaError(error)))
            else:
                future.set_result(SimpleNamespace(offset=7))
            return future

        error = self.errors.pop(0) if self.errors else None
        return {at: answer() for at in wanted}


def cluster(admin: Admin) -> brokers.Cluster:
    metadata = SimpleNamespace(topics={"prices": SimpleNamespace(partitions={0: None, 1: None})})
    return brokers.Cluster(admin, metadata, "broker:9092")


def test_a_partition_that_is_getting_its_leader_is_asked_again():
    admin = Admin(KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
    assert brokers.bounds(cluster(admin), "prices") == {0: (7, 7), 1: (7, 7)}
    assert admin.errors == []


def test_any_other_refusal_is_told_at_once():
    admin = Admin(KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.NOT_LEADER_FOR_PARTITION)
    with pytest.raises(UnavailableError, match="asking prices for its offsets failed"):
        brokers.bounds(cluster(admin), "prices")
    assert len(admin.errors) == 1
