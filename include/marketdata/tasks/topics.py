"""`marketdata topics`: the cluster against the catalogue, and reading back."""

from __future__ import annotations

import sys

from marketdata.settings import Settings
from marketdata.streaming import schemas, topics
from marketdata.streaming.consume import read_back
from marketdata.tasks.screen import console

NO_REGISTRY = "SCHEMA_REGISTRY_URL is not set: no registry has the schemas"


def diff(settings: Settings) -> int:
    """Print the differences; 1 if there are any."""
    differences = [str(difference) for difference in topics.compare(settings)]
    if settings.schema_registry_url:
        differences += schemas.compare(settings.schema_registry_url, topics.named(settings))
    screen = console()
    for line in differences or ["the cluster is as the catalogue says"]:
        screen.print(line)
    if not settings.schema_registry_url:
        screen.print(NO_REGISTRY)
    return 1 if differences else 0


def apply(settings: Settings) -> None:
    """Make the cluster, then the registry, as the catalogue says, or refuse."""
    screen = console()
    for change in topics.apply(settings) or ["no topic to change"]:
        screen.print(change)
    if not settings.schema_registry_url:
        screen.print(NO_REGISTRY)
        return
    for change in schemas.register(settings.schema_registry_url, topics.named(settings)) or ["no schema to register"]:
        screen.print(change)


def read(settings: Settings, topic: str, limit: int) -> None:
    """Print messages as they are, one a line."""
    for value in read_back(settings, topic, limit):
        sys.stdout.write(value.decode() + "\n")
