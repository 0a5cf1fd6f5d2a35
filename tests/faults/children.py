"""What a child process of a drill is given: the settings of its test, and nothing of this machine."""

from __future__ import annotations

import os

from marketdata.settings import ENDPOINTS_VARIABLE, Settings

HANDED_OVER = (
    "lake_uri", "kafka_brokers", "kafka_topic", "postgres_dsn", "trino_schema", "analytics_topic", "analytics_group",
    "analytics_member",
)  # fmt: skip


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """Variables that name the engines, topics and tables of these settings; `more` is added."""
    given = {name.upper(): settings.require(name) for name in HANDED_OVER if getattr(settings, name) is not None}
    return {
        "PATH": os.environ["PATH"],
        "ANALYTICS_PORT": "0",
        ENDPOINTS_VARIABLE: str(settings.marketdata_home / "no-endpoints.json"),
        **given,
        **more,
    }
