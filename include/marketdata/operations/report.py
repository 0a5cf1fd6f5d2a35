"""What drills came to, for people and programs: one HTML page without network or script, JSON, and Markdown."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from marketdata.observability.pages import rendered
from marketdata.operations.drill import Outcome, passed
from marketdata.operations.judge import Check
from marketdata.operations.watch import Sample
from marketdata.settings import CHECKOUT, Settings
from marketdata.streaming.brokers import reach

TEMPLATE = Path(__file__).with_name("report.html.jinja")

WIDTH, HEIGHT = 640.0, 170.0
"""Of a plot's area, in the units of its view box."""

NEAR = 12.0


@dataclass(frozen=True)
class Report:
    """Drills of one run.

    Args:
        title: e.g. ``Load test``.
        environment: where it ran, by name: commit, versions, machine, brokers.
    """

    title: str
    run_id: str
    began: datetime
    environment: dict[str, str]
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        return passed(self.outcomes)

    @property
    def failures(self) -> list[str]:
        """Why it did not pass: each threshold that was missed, or that nothing ran."""
        missed = [f"{one.name}: {check}" for one in self.outcomes for check in one.checks if check.fails]
        return missed or ([] if self.passed else ["nothing was run: " + "; ".join(one.why for one in self.outcomes)])

    def to_json(self) -> bytes:
        outcomes = [
            {**asdict(one), "state": one.state, "checks": [{**asdict(c), "met": c.met} for c in one.checks]}
            for one in self.outcomes
        ]
        content = {"title": self.title, "run_id": self.run_id, "began": self.began.isoformat(), "passed": self.passed}
        return json.dumps({**content, "environment": self.environment, "outcomes": outcomes}, indent=1).encode()

    def to_markdown(self) -> bytes:
        lines = [f"# {self.title}: {'passed' if self.passed else 'failed'}", ""]
        lines += [f"- {name}: {value}" for name, value in self._about().items()]
        for one in self.outcomes:
            lines += ["", f"## {one.name}: {one.state}", "", f"{one.doc}.{f' Not run: {one.why}.' if one.why else ''}"]
            if one.checks:
                lines += ["", "| threshold | must be | measured | |", "|---|---|---|---|"]
            for check in one.checks:
                of = check.threshold
                lines.append(f"| {of.says} | {bound(check)} | {number(check.measured)} {of.unit} | {verdict(check)} |")
            lines += [""] if one.events else []
            lines += [f"- {event.seconds:.1f} s: {event.says}" for event in one.events]
        return ("\n".join(lines) + "\n").encode()

    def to_html(self) -> bytes:
        filters: dict[str, Callable[..., str]] = {"number": number, "bound": bound, "verdict": verdict}
        plots = {one.name: _plots(one) for one in self.outcomes}
        return rendered(TEMPLATE, filters, report=self, plots=plots, about=self._about())

    def _about(self) -> dict[str, str]:
        return {"Run": self.run_id, "Began": f"{self.began:%Y-%m-%d %H:%M:%S} UTC", **self.environment}


def environment(settings: Settings) -> dict[str, str]:
    """Where this runs, without names of machines or secrets."""
    brokers = len(reach(settings).metadata.brokers)
    return {
        "Commit": settings.marketdata_revision or _commit(),
        "Installation": settings.environment,
        "Kafka": f"{brokers} broker{'s' if brokers > 1 else ''}",
        "Tables": "Trino" if settings.trino_host else "pyiceberg",
        "Machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "Kafka client": f"confluent-kafka {version('confluent-kafka')}",
    }


def _commit() -> str:
    """Of the checkout, with a mark where files differ from it."""
    try:
        words = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def number(value: float | None) -> str:
    """A figure for people."""
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:,.2f}"


def bound(check: Check) -> str:
    """What a figure must be."""
    if check.threshold.holds == "<=" and not check.threshold.bound:
        return "none"
    sign = {"<=": "≤", ">=": "≥", "<": "<"}[check.threshold.holds]
    return f"{sign} {check.threshold.bound:,.10g} {check.threshold.unit}".rstrip()


def verdict(check: Check) -> str:
    """In a word."""
    if check.met:
        return "met"
    return "missed" if check.fails else "not reached"


@dataclass(frozen=True)
class Line:
    """A line of a plot: its name, its style's class, points of an SVG polyline."""

    name: str
    style: str
    points: str


@dataclass(frozen=True)
class Plot:
    """A plot, in the units of its view box.

    Args:
        ticks: of both axes, as (position, text).
        marks: of the events, as (position, numbers), numbered from 1.
        limit: position of the threshold; None for none in sight.
    """

    title: str
    lines: tuple[Line, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str], ...]
    limit: float | None


def _plots(outcome: Outcome) -> list[Plot]:
    if len(outcome.samples) < 2:
        return []
    samples = outcome.samples
    return [
        _plot(
            "Messages a second",
            outcome,
            {"acknowledged": _rates(samples, "acknowledged"), "stored by the consumers": _rates(samples, "stored")},
        ),
        _plot(
            "Messages that wait",
            outcome,
            {
                "for the consumers (lag)": [(s.seconds, s.lag_records) for s in samples],
                "for the brokers": [(s.seconds, s.sent - s.acknowledged) for s in samples],
            },
            "peak_lag_records",
        ),
        _plot(
            "Longest wait for the consumers, seconds",
            outcome,
            {"lag": [(s.seconds, s.lag_seconds) for s in samples]},
            "peak_lag_seconds",
        ),
    ]


def _rates(samples: Sequence[Sample], field: str) -> list[tuple[float, float]]:
    """Per second, over seconds: a consumer stores once a second, so that less would show its pulse alone."""
    points = []
    before = Sample(0.0, 0, 0, 0, 0, 0.0)
    for sample in samples:
        if (passed_by := sample.seconds - before.seconds) >= 1.0 or sample is samples[-1]:
            if passed_by > 0.5:
                points.append((sample.seconds, (getattr(sample, field) - getattr(before, field)) / passed_by))
            before = sample
    return [(0.0, points[0][1]), *points] if points else []


def _plot(title: str, outcome: Outcome, lines: dict[str, list[tuple[float, float]]], threshold: str = "") -> Plot:
    limit = next((c.threshold.bound for c in outcome.checks if c.threshold.figure == threshold), None)
    last = max(outcome.samples[-1].seconds, *(event.seconds for event in outcome.events), 1.0)
    peak = max((value for points in lines.values() for _, value in points), default=0.0)
    if limit is not None and limit < 3 * peak:
        peak = max(peak, limit)  # a bound far above all would press the line to the ground
    across, up = _ticks(last, 8), _ticks(peak or 1.0, 4)
    top = up[-1]

    def x(seconds: float) -> float:
        return round(seconds / last * WIDTH, 1)

    def y(value: float) -> float:
        return round(HEIGHT * (1 - value / top), 1)

    return Plot(
        title,
        tuple(
            Line(name, f"l{index}", " ".join(f"{x(at)},{y(value)}" for at, value in points))
            for index, (name, points) in enumerate(lines.items())
        ),
        tuple((x(at), f"{at:,.10g} s") for at in across if at <= last),
        tuple((y(value), f"{value / 1000:,.10g}k" if top >= 1000 and value else f"{value:,.10g}") for value in up),
        _marks([x(event.seconds) for event in outcome.events]),
        y(limit) if limit is not None and limit <= top else None,
    )


def _marks(positions: list[float]) -> tuple[tuple[float, str], ...]:
    """Where events are marked; those too near for a number each share one mark."""
    marks: list[tuple[float, int, int]] = []
    for index, at in enumerate(positions, start=1):
        if marks and at - marks[-1][0] < NEAR:
            marks[-1] = (marks[-1][0], marks[-1][1], index)
        else:
            marks.append((at, index, index))
    return tuple((at, str(first) if first == last else f"{first}–{last}") for at, first, last in marks)


def _ticks(largest: float, number_of: int) -> list[float]:
    """Round values from 0 to at least the largest."""
    raw = largest / number_of
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= raw * 0.999)
    return [round(index * step, 10) for index in range(math.ceil(largest / step - 1e-9) + 1)]
