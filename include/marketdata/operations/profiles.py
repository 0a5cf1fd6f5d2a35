"""The load profiles: how many messages, how fast, and what must hold (specification, R5.1 to R5.3)."""

from __future__ import annotations

from dataclasses import dataclass

from marketdata.errors import UsageError
from marketdata.operations.judge import NOTHING_LOST, Threshold

BASELINE = 7_153
"""Messages/s that the platform has promised to publish; 3 to 5 times it is the promised headroom."""

LAG_SECONDS = 5.0
"""R4.2: a consumer is behind when a record has waited for so long."""


@dataclass(frozen=True)
class Profile:
    """A load.

    Args:
        messages: how many are sent.
        rate: how many a second; a little above what must be sustained, for a paced sender can only be slower.
        thresholds: what must hold, beside `NOTHING_LOST`.
    """

    name: str
    doc: str
    messages: int
    rate: int
    thresholds: tuple[Threshold, ...]

    @property
    def judged_by(self) -> tuple[Threshold, ...]:
        return (*self.thresholds, *NOTHING_LOST)


def _sustained(at_least: float, *, stretch: bool = False) -> Threshold:
    says = "Messages acknowledged a second" + (", stretch goal" if stretch else "")
    return Threshold("produced_per_second", says, ">=", at_least, "/s", stretch)


_STEADY_LAG = Threshold("peak_lag_seconds", "Longest wait of a record for the consumers", "<", LAG_SECONDS, "s")

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "burst",
            "100,000 messages over the five commodities, 10,000 a second (R5.1)",
            messages=100_000,
            rate=10_000,
            thresholds=(
                Threshold("seconds", "From the first message sent to the last one stored", "<=", 13.98, "s"),
                _sustained(7_000),
                Threshold("peak_lag_records", "Largest lag", "<=", 50_000, "messages"),
            ),
        ),
        Profile(
            "day",
            "One day's 1,000,000 messages in 100 seconds: 864 times as fast as they come (R5.2)",
            messages=1_000_000,
            rate=10_000,
            thresholds=(_STEADY_LAG,),
        ),
        Profile(
            "ceiling",
            "More than 10,000 messages a second for 60 seconds (R5.3)",
            messages=630_000,
            rate=10_500,
            thresholds=(_sustained(10_000), _STEADY_LAG),
        ),
        Profile(
            "headroom",
            "Three to five times the baseline of 7,153 messages a second for 30 seconds (R5.3)",
            messages=1_125_000,
            rate=37_500,
            thresholds=(_sustained(3 * BASELINE), _sustained(5 * BASELINE, stretch=True)),
        ),
    )
}


def profile(name: str) -> Profile:
    """
    Raises:
        UsageError: there is none of that name.
    """
    if name not in PROFILES:
        raise UsageError(f"no load profile is named {name!r}", f"profiles: {', '.join(PROFILES)}")
    return PROFILES[name]
