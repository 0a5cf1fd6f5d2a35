"""Preflight: can everything this run needs be reached, before anything is read?"""

from __future__ import annotations

import logging
from typing import Any

from marketdata.batches import Lake
from marketdata.datasets import Dataset
from marketdata.lakehouse import open_lakehouse
from marketdata.settings import Settings
from marketdata.sources import open_sources
from marketdata.streaming import topics

log = logging.getLogger(__name__)


def preflight(settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """Check settings, lake, Kafka with its topic, and the lakehouse.

    Raises:
        UsageError: a setting is missing or the topic is not as the catalogue says.
        UnavailableError: an engine does not answer within 10 s.
    """
    open_sources(settings, dataset)
    Lake(settings).get("batches/preflight")
    topics.check(settings, dataset)
    open_lakehouse(settings).check()
    log.info("everything answers")
    return {"lake": settings.lake_uri, "topic": settings.kafka_topic}
