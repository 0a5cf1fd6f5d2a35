"""Price alerts: a recent price that moved far is told once, through the outbox of notices.

A notice is written under the window's name before the window is stored, and that name can exist once: whatever is
killed, repeated or recomputed, a move is told, and told once. Slack's own state matters to nobody here: whoever
delivers notices (the scheduler's plugin) posts it when Slack answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from marketdata.observability.notices import Notice, PostgresOutbox
from marketdata.observability.slack import Message, cut, escaped
from marketdata.settings import Settings
from marketdata.streaming.window_store import Change

log = logging.getLogger(__name__)

PRICE = "price"
SERVICE = "commodity-analytics-consumer"


def teller(settings: Settings) -> Callable[[list[Change]], None]:
    """What writes the notices of changed windows."""
    outbox = PostgresOutbox(settings.require("postgres_dsn"))

    def tell(changes: list[Change]) -> None:
        for change in changes:
            notice = notice_of(change, settings.analytics_alert_percent, settings.environment)
            if notice and outbox.add(notice):
                log.info(
                    "price alert", extra={"series": "/".join(change.key), "window": change.window_start.isoformat()}
                )

    return tell


def notice_of(change: Change, percent: float, environment: str) -> Notice | None:
    """The notice of a window whose price moved by at least so much within it, or since the price before it."""
    of = change.figures
    moves = {"within one minute": _move(of.first, of.last)}
    if change.before is not None:
        moves["since the price before"] = _move(change.before, of.last)
    since, move = max(moves.items(), key=lambda item: abs(item[1]))
    if abs(move) < percent:
        return None
    tenant, commodity, source, series, frequency = change.key
    price = f"{Decimal(of.last).scaleb(-6).normalize():f} {change.quote[0]}/{change.quote[1]}"
    says = f"{commodity} ({series}, {frequency}, {source}) moved {move:+.2f} % {since}, to {price}"
    at = f"{change.window_start:%Y-%m-%d %H:%M} UTC"
    title = cut(f"🟠 {commodity}: {move:+.2f} %", 150)
    blocks = (
        {"type": "header", "text": {"type": "plain_text", "text": title, "emoji": False}},
        {"type": "section", "text": _text(f"{says}. Price of {at}.")},
        {"type": "context", "elements": [_text(f"{environment} · tenant {tenant}")]},
    )
    text = escaped(cut(f"🟠 {says}, {at} in {environment}", 1500))
    name = "/".join((*change.key, change.window_start.isoformat()))
    return Notice(PRICE, SERVICE, name, "", Message(text, blocks), run_after=change.window_start)


def _text(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": escaped(cut(text, 1500)), "verbatim": True}


def _move(before: int, after: int) -> float:
    """Per cent."""
    return 100.0 * (after - before) / before if before > 0 else 0.0
