"""`marketdata topics`: the cluster against the catalogue, and reading back."""

from __future__ import annotations

import sys

from marketdata.settings import Settings
from marketdata.streaming import topics
from marketdata.streaming.consume import read_back
from marketdata.tasks.screen import console


def diff(settings: Settings) -> int:
    """Print the differences; 1 if there are any."""
    differences = topics.compare(settings)
    screen = console()
    for difference in differences:
        screen.print(str(difference))
    if not differences:
        screen.print("the cluster is as the catalogue says")
    return 1 if differences else 0


def apply(settings: Settings) -> None:
    """Make the cluster as the catalogue says, or refuse."""
    screen = console()
    for change in topics.apply(settings) or ["nothing to change"]:
        screen.print(change)


def read(settings: Settings, topic: str, limit: int) -> None:
    """Print messages as they are, one a line."""
    for value in read_back(settings, topic, limit):
        sys.stdout.write(value.decode() + "\n")
