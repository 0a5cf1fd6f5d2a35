"""Publish: the changed records of a batch and their ledger marker, in one Kafka transaction."""

from __future__ import annotations

import logging
from dataclasses import asdict

from marketdata.batches import Batch
from marketdata.datasets import Dataset
from marketdata.settings import Settings
from marketdata.streaming.publish import publish as exactly_once

log = logging.getLogger(__name__)


def publish(settings: Settings, dataset: Dataset, batch: Batch) -> dict[str, object]:
    """Publish what the topic does not hold yet; the ledger knows it, so a repeated call publishes nothing."""
    published = exactly_once(dataset, batch, settings)
    log.info("published", extra={"records": published.published, "already_published": published.already_published})
    return asdict(published)
