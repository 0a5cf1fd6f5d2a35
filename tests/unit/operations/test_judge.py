"""Thresholds: each side of each bound, and that what was not measured is not met."""

from __future__ import annotations

import pytest

from marketdata.operations.drill import Outcome, passed
from marketdata.operations.judge import NOTHING_LOST, Threshold, judge
from marketdata.operations.profiles import BASELINE, PROFILES
from marketdata.operations.scenarios import SCENARIOS

WELL = {"success_percent": 100.0, **{one.figure: 0.0 for one in NOTHING_LOST if one.holds != ">="}}


@pytest.mark.parametrize(
    ("holds", "below", "at", "above"), [("<=", True, True, False), ("<", True, False, False), (">=", False, True, True)]
)
def test_bounds(holds: str, below: bool, at: bool, above: bool) -> None:
    threshold = Threshold("x", "it", holds, 5.0)  # type: ignore[arg-type]
    assert [threshold.allows(value) for value in (4.999, 5.0, 5.001)] == [below, at, above]
    assert not threshold.allows(None)


@pytest.mark.parametrize("figure", sorted(WELL))
def test_each_figure_of_loss_decides_by_itself(figure: str) -> None:
    assert not [check for check in judge(NOTHING_LOST, WELL) if check.fails]
    wrong = {**WELL, figure: 99.8 if figure == "success_percent" else 5.0}
    assert [check.threshold.figure for check in judge(NOTHING_LOST, wrong) if check.fails] == [figure]
    del wrong[figure]
    assert [check.threshold.figure for check in judge(NOTHING_LOST, wrong) if check.fails] == [figure]


def test_a_stretch_goal_is_reported_and_decides_nothing() -> None:
    figures = {**WELL, "produced_per_second": 3.0 * BASELINE}
    checks = judge(PROFILES["headroom"].judged_by, figures)
    assert [check.threshold.stretch for check in checks if not check.met] == [True]
    assert Outcome("headroom", "", checks=checks).state == "passed"


def test_the_specifications_figures() -> None:
    """R5.1 to R5.3, R5.6 to R5.8."""
    burst = {one.figure: (one.holds, one.bound) for one in PROFILES["burst"].judged_by}
    assert PROFILES["burst"].messages == 100_000
    assert 7_000 <= PROFILES["burst"].rate <= 10_000
    assert burst["seconds"] == ("<=", 13.98)
    assert burst["peak_lag_records"] == ("<=", 50_000)
    assert burst["final_lag_records"] == ("<", 5)
    assert burst["success_percent"] == (">=", 99.9)
    assert burst["lost"] == ("<=", 0)
    assert PROFILES["day"].messages == 1_000_000
    assert {one.figure: one.bound for one in PROFILES["day"].thresholds} == {"peak_lag_seconds": 5.0}
    assert PROFILES["ceiling"].thresholds[0].bound == 10_000
    assert PROFILES["ceiling"].messages / PROFILES["ceiling"].rate == 60
    assert [one.bound for one in PROFILES["headroom"].thresholds] == [21_459, 35_765]
    within = {name: (of.within, of.from_heal) for name, of in SCENARIOS.items() if of.within}
    assert within == {
        "consumer-crash": (30, False), "broker-failure": (60, False), "network-partition": (60, True),
        "trino-down": (60, True), "task-evicted": (60, False),
    }  # fmt: skip


def test_something_has_to_have_run() -> None:
    ran, not_run = Outcome("a", "", checks=()), Outcome("b", "", why="no rights")
    failed = Outcome("c", "", checks=judge(NOTHING_LOST, {}))
    assert (ran.state, not_run.state, failed.state) == ("passed", "not run", "failed")
    assert passed([ran, not_run])
    assert not passed([not_run])
    assert not passed([ran, failed])
    assert not passed([])
