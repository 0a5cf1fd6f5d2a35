"""What all DAGs share: defaults of their tasks, and the words they are tagged with."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any


class Tier(StrEnum):
    """How much a failure matters; it is a label on every pod and a tag on every DAG."""

    CRITICAL = "critical"
    STANDARD = "standard"


class Tag(StrEnum):
    """Words to find a DAG by."""

    BATCH = "batch"
    COMMODITIES = "commodities"
    OPERATIONS = "operations"
    KAFKA = "kafka"
    ICEBERG = "iceberg"
    PLATFORM = "platform"
    TIER_CRITICAL = "tier:critical"
    TIER_STANDARD = "tier:standard"


def default_args(*, app: str, tier: Tier, owner: str) -> dict[str, Any]:
    """Defaults of a DAG's tasks: two retries after 60 s and 120 s (never more than 300 s apart).

    Args:
        app: name of the product on every pod, label ``app``.
        tier: label ``tier`` on every pod.
        owner: the team that is asked when a task fails.
    """
    return {
        "app": app,
        "tier": tier,
        "owner": owner,
        "depends_on_past": False,
        "retries": 2,
        "retry_delay": timedelta(seconds=60),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(seconds=300),
    }
