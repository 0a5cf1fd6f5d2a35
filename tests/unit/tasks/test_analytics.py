"""How a member of the consumer leaves."""

from __future__ import annotations

import threading
import time

import pytest

from marketdata.errors import TryLaterError
from marketdata.streaming.analytics import Analytics, TopicSinks
from marketdata.tasks import analytics as module


def test_a_member_that_was_replaced_does_not_wait_for_its_sinks(settings_for, monkeypatch):
    at_work, never = threading.Event(), threading.Event()

    def deliver(_sinks):
        at_work.set()
        never.wait(60)
        return 0

    def run(_consumer, _stop):
        assert at_work.wait(30)
        raise TryLaterError("this member has been replaced")

    monkeypatch.setattr(TopicSinks, "deliver", deliver)
    monkeypatch.setattr(module, "load_changes", lambda _settings: 0)
    monkeypatch.setattr(Analytics, "run", run)
    monkeypatch.setattr(module, "LEAVING_SECONDS", 50.0)
    settings = settings_for(
        kafka_brokers="127.0.0.1:1", postgres_dsn="postgresql://user:password@127.0.0.1:1/none", analytics_port=0
    )
    began = time.monotonic()
    with pytest.raises(TryLaterError, match="replaced"):
        module.analytics(settings)
    assert time.monotonic() - began < 40
    never.set()
