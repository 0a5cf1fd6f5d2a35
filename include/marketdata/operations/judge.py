"""Thresholds and what was measured against them; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Threshold:
    """What a measured figure must be.

    Args:
        figure: name of the figure.
        says: what it is, for people.
        holds: how the figure must stand to `bound`.
        unit: of figure and bound.
        stretch: it is reported, and decides nothing.
    """

    figure: str
    says: str
    holds: Literal["<=", "<", ">="]
    bound: float
    unit: str = ""
    stretch: bool = False

    def allows(self, measured: float | None) -> bool:
        """Whether the figure is as it must be; one that was not measured is not."""
        if measured is None:
            return False
        if self.holds == ">=":
            return measured >= self.bound
        return measured < self.bound if self.holds == "<" else measured <= self.bound


@dataclass(frozen=True)
class Check:
    """A threshold and its measured figure."""

    threshold: Threshold
    measured: float | None

    @property
    def met(self) -> bool:
        return self.threshold.allows(self.measured)

    @property
    def fails(self) -> bool:
        """Whether it decides that the drill has failed."""
        return not self.met and not self.threshold.stretch

    def __str__(self) -> str:
        of = self.threshold
        measured = "not measured" if self.measured is None else f"{self.measured:,.10g}"
        return f"{of.says}: {measured}, must be {of.holds} {of.bound:,.10g} {of.unit}".rstrip()


def judge(thresholds: Iterable[Threshold], figures: Mapping[str, float | None]) -> tuple[Check, ...]:
    """Each threshold with its figure."""
    return tuple(Check(threshold, figures.get(threshold.figure)) for threshold in thresholds)


def each_once(where: str, sent: str) -> tuple[Threshold, ...]:
    """What was sent is there, once, to the last digit, and nothing else is."""
    return (
        Threshold("lost", f"{sent} that the {where} has not", "<=", 0),
        Threshold("repeated", f"Records the {where} has more than once", "<=", 0),
        Threshold("foreign", f"Records in the {where} that nobody sent", "<=", 0),
        Threshold("price_difference", f"{where.capitalize()} and sender, difference of all prices", "<=", 0),
    )


NOTHING_LOST = (
    Threshold("success_percent", "Messages acknowledged", ">=", 99.9, "%"),
    *each_once("topic", "Acknowledged records"),
    Threshold("wrong_windows", "Windows that are not what the topic says, to the last digit", "<=", 0),
    Threshold("miscounted", "Records counted otherwise than once by the consumers", "<=", 0),
    Threshold("dead_letters", "Messages the consumers could not read", "<=", 0),
    Threshold("final_lag_records", "Lag at the end", "<", 5, "messages"),
)
"""R5.1 and R5.7: loss 0, proved by sets and sums (`proof`); decided in every drill."""
