"""What the faults of this folder happen to, where a test does not say otherwise."""

from __future__ import annotations

import pytest

from marketdata.settings import Settings


@pytest.fixture(scope="session")
def kafka(embedded: Settings) -> Settings:
    """Settings of a Kafka and a PostgreSQL: the embedded ones."""
    return embedded
