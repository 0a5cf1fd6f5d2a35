"""What the suites of this folder run on here; `tests/engines` runs the same ones on real clusters."""

from __future__ import annotations

import pytest

from marketdata.settings import Settings


@pytest.fixture(scope="session")
def kafka(embedded: Settings) -> Settings:
    """Settings of a Kafka and a PostgreSQL: the embedded ones."""
    return embedded
