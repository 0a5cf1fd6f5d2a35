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
        self.looked = 0

    def list_topics(self, timeout):
        self.looked += 1

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


def test_while_a_broker_is_replaced_it_is_looked_who_leads_and_asked_again():
    passing = (
        KafkaError._TIMED_OUT, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.OFFSET_NOT_AVAILABLE,
    )  # fmt: skip
    admin = Admin(*passing)
    assert brokers.bounds(cluster(admin), "prices") == {0: (7, 7), 1: (7, 7)}
    assert admin.errors == []
    assert admin.looked == len(passing)


def test_no_broker_is_asked_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(brokers, "PATIENCE_SECONDS", 0.5)
    admin = Admin(*[KafkaError._TIMED_OUT] * 1000)
    with pytest.raises(UnavailableError, match="asking prices for its offsets failed"):
        brokers.bounds(cluster(admin), "prices")
    assert 1 < len(admin.errors) < 1000


def test_any_other_refusal_is_told_at_once():
    admin = Admin(KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.NOT_LEADER_FOR_PARTITION)
    with pytest.raises(UnavailableError, match="asking prices for its offsets failed"):
        brokers.bounds(cluster(admin), "prices")
    assert len(admin.errors) == 1
