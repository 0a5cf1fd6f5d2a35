"""What the streaming consumer's store may forget, so that it does not grow for ever and nothing is counted wrongly."""

from __future__ import annotations

from datetime import timedelta

from marketdata.datasets import Dataset
from marketdata.settings import Settings
from marketdata.streaming.topics import records_topic
from marketdata.streaming.window_store import connected

KEEP_WINDOWS = timedelta(days=35)
"""Longer than records stay in the topic (7 days) and than scheduled runs look back (30)."""

KEEP_LETTERS = timedelta(days=30)
"""As long as the topic of dead letters keeps them."""

# A window of one price is all of that price: whatever revises it makes the same window anew. One of several prices
# cannot be made anew from a single late one, so it stays. The last weeks of a series stay: moves are told from them.
_WINDOWS = """
DELETE FROM marketdata.price_windows w USING marketdata.price_series s, marketdata.analytics_feeds f
WHERE s.series_id = w.series_id AND f.feed_id = w.feed_id AND w.sequence <= least(f.told, f.loaded)
    AND w.count + w.others = 1 AND w.computed_at < clock_timestamp() - %(keep)s
    AND w.window_start < to_timestamp(s.newest * 60) - %(keep)s
"""
_LETTERS = """
DELETE FROM marketdata.dead_letters d USING marketdata.analytics_feeds f
WHERE f.feed_id = d.feed_id AND f.topic = %(topic)s AND d.sequence <= f.told AND d.asked_at IS NULL
    AND d.failed_at < clock_timestamp() - %(keep)s
"""


def windows(settings: Settings) -> int:
    """Forget windows of one price that have long been in the topic and in the lake; how many."""
    with connected(settings) as postgres:
        return postgres.execute(_WINDOWS, {"keep": KEEP_WINDOWS}).rowcount


def letters(settings: Settings, dataset: Dataset) -> int:
    """Forget old dead letters that are in their topic and that nobody has asked to replay; how many."""
    with connected(settings) as postgres:
        values = {"topic": records_topic(settings, dataset), "keep": KEEP_LETTERS}
        return postgres.execute(_LETTERS, values).rowcount
