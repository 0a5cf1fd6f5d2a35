"""A drill from beginning to end: its own ground, consumers and traffic; what happened, what it came to, the verdict."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from marketdata.errors import UnavailableError
from marketdata.operations import proof
from marketdata.operations.ground import ground, own_settings
from marketdata.operations.judge import Check, judge
from marketdata.operations.members import Member, end, members
from marketdata.operations.profiles import Profile
from marketdata.operations.traffic import Traffic
from marketdata.operations.watch import Sample, Watch
from marketdata.settings import Settings

log = logging.getLogger(__name__)

READY_SECONDS = 120.0
"""For consumers to start; a cold machine imports for a while."""

DRAIN_SECONDS = 120.0
"""For consumers to store what is left when the traffic has ended; thresholds are judged by the figures, not by this."""

State = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class Event:
    """Something that was done, or was seen to have come about; seconds since the drill's work began."""

    seconds: float
    says: str


@dataclass(frozen=True)
class Outcome:
    """What a drill came to.

    Args:
        why: it was not run, in one sentence; empty where it was.
        figures: measured; None for what did not come about.
    """

    name: str
    doc: str
    why: str = ""
    checks: tuple[Check, ...] = ()
    figures: dict[str, float | None] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    samples: tuple[Sample, ...] = ()

    @property
    def state(self) -> State:
        if self.why:
            return "not run"
        return "failed" if any(check.fails for check in self.checks) else "passed"


@dataclass
class Stage:
    """A drill while it runs.

    Args:
        mends: consumers that end by themselves are started again, as a cluster does.
    """

    own: Settings
    group: list[Member]
    traffic: Traffic
    watch: Watch
    mends: bool = False
    events: list[Event] = field(default_factory=list)

    def note(self, says: str) -> float:
        """Record that something happened now; returns when, on the monotonic clock."""
        return noted(self.events, self.traffic.first_sent, says)

    def ready(self) -> bool:
        """Whether every consumer says that it is.

        Raises:
            UnavailableError: one has ended by itself, and nobody starts it again.
        """
        for member in self.group:
            if why := member.ended():
                if not self.mends:
                    raise UnavailableError(f"{why}; what the drill made for itself is removed")
                self.note(f"{why}; it was started again")
                member.start()
        return all(member.is_ready() for member in self.group)


def noted(events: list[Event], since: float, says: str) -> float:
    """Add that something happened now, so long since a moment of the monotonic clock; returns when, on that clock."""
    now = time.monotonic()
    events.append(Event(round(now - since, 2), says))
    log.info(says)
    return now


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; False where it did not come about in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextmanager
def stage(
    settings: Settings, run_id: str, drill: str, consumers: int, *, count: int | None, rate: int
) -> Iterator[Stage]:
    """Consumers that are ready for traffic, which the block starts; nothing of them after the block.

    Args:
        count, rate: of the messages, as in `Traffic`; without a count, consumers are mended.

    Raises:
        UnavailableError: consumers did not become ready.
    """
    own = own_settings(settings, run_id, drill)
    with ground(own), members(own, consumers) as group:
        traffic = Traffic(own, count, rate)
        watch = Watch(traffic)
        here = Stage(own, group, traffic, watch, mends=count is None)
        try:
            if not until(here.ready, READY_SECONDS):
                raise UnavailableError(f"{consumers} consumers were not ready within {READY_SECONDS:.0f} s")
            yield here
        finally:
            traffic.stop()
            watch.end()
            end(group)


def load(settings: Settings, profile: Profile, run_id: str, consumers: int) -> Outcome:
    """Put a load on the platform and judge how it bore it.

    Raises:
        MarketdataError: an engine is gone, or a consumer has ended by itself.
    """
    with stage(settings, run_id, profile.name, consumers, count=profile.messages, rate=profile.rate) as here:
        here.traffic.start()
        finish(here)
        figures = measured(here)
        samples, events = tuple(here.watch.samples), tuple(here.events)
    checks = judge(profile.judged_by, figures)
    return Outcome(profile.name, profile.doc, "", checks, figures, events, samples)


def finish(here: Stage) -> None:
    """Wait for the end of the traffic, then for the consumers."""
    while not here.traffic.done:
        time.sleep(0.05)
        here.ready()
    here.note(f"all {here.traffic.sent:,} messages were sent")
    if until(lambda: here.watch.caught_up, DRAIN_SECONDS):
        here.note("the consumers have stored everything")
    here.watch.end()


def measured(here: Stage) -> dict[str, float | None]:
    """The figures of traffic, lag and loss."""
    traffic, samples = here.traffic, here.watch.samples
    whole = next((one.seconds for one in samples if here.watch.caught_up and one.stored >= traffic.acknowledged), None)
    sending = traffic.last_acknowledged - traffic.first_sent
    return {
        "sent": traffic.sent,
        "acknowledged": traffic.acknowledged,
        "seconds": whole,
        "produced_per_second": traffic.acknowledged / sending if sending else None,
        "stored_per_second": samples[-1].stored / whole if whole else None,
        "peak_lag_records": max((one.lag_records for one in samples), default=None),
        "peak_lag_seconds": max((one.lag_seconds for one in samples), default=None),
        "final_lag_records": here.watch.last.lag_records,
        "longest_silence": traffic.longest_silence,
        **proof.prove(traffic),
    }


def shortened(profile: Profile, messages: int) -> Profile:
    """A rehearsal of a profile with fewer messages; its thresholds stay."""
    return replace(profile, messages=messages, doc=f"{profile.doc}; rehearsed with {messages:,} messages")


def passed(outcomes: Sequence[Outcome]) -> bool:
    """Whether something ran, and nothing that ran failed."""
    states = [outcome.state for outcome in outcomes]
    return "passed" in states and "failed" not in states
