"""The report: nothing from outside, whatever was said is escaped, and the plots say what the samples say."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest

from marketdata.operations.drill import Event, Outcome
from marketdata.operations.judge import NOTHING_LOST, Threshold, judge
from marketdata.operations.report import HEIGHT, WIDTH, Report, _marks, _plots, _ticks
from marketdata.operations.watch import Sample

SAMPLES = tuple(
    Sample(second / 5, second * 200, second * 200, max(second - 5, 0) * 200, 1000, 1.0) for second in range(51)
)
THRESHOLDS = (Threshold("peak_lag_seconds", "Longest wait", "<", 2.0, "s"), *NOTHING_LOST)


def outcome(**figures: float | None) -> Outcome:
    measured = {
        "peak_lag_seconds": 1.0,
        "peak_lag_records": 1000,
        "acknowledged": 10_000,
        "produced_per_second": 1000.0,
    }
    lossless = {"success_percent": 100.0, **{one.figure: 0 for one in NOTHING_LOST[1:]}}
    all_of = {**measured, **lossless, **figures}
    events = (Event(4.0, "<script>alert(1)</script>"),)
    return Outcome("burst", "A burst", "", judge(THRESHOLDS, all_of), all_of, events, SAMPLES)


def report(*outcomes: Outcome) -> Report:
    environment = {"Commit": "abc", "Kafka": "3 brokers", "Machine": "2 cores"}
    return Report("Load test", "run-1", datetime(2026, 1, 2, tzinfo=UTC), environment, outcomes)


def test_a_page_needs_nothing_and_runs_nothing() -> None:
    page = report(outcome()).to_html().decode()
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|url\(|https?://|<script", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<svg") == 3
    assert ">Passed<" in page
    assert "It failed" not in page


def test_a_missed_threshold_and_a_figure_that_is_missing_are_named() -> None:
    of = report(outcome(peak_lag_seconds=2.5, lost=None))
    assert of.failures == [
        "burst: Longest wait: 2.5, must be < 2 s",
        "burst: Acknowledged records that the topic has not: not measured, must be <= 0",
    ]
    page = of.to_html().decode()
    assert page.count("✗ missed") == 2
    assert "not measured" in page
    text = of.to_markdown().decode()
    assert text.startswith("# Load test: failed")
    assert "| Longest wait | < 2 s | 2.50 s | missed |" in text


def test_the_json_says_it_all() -> None:
    content = json.loads(report(outcome()).to_json())
    (one,) = content["outcomes"]
    assert (content["passed"], one["state"], content["environment"]["Commit"]) == (True, "passed", "abc")
    assert len(one["samples"]) == len(SAMPLES)
    assert {check["threshold"]["figure"]: check["met"] for check in one["checks"]}["lost"] is True


def test_what_was_not_run_is_no_success() -> None:
    of = report(Outcome("broker-failure", "A broker is killed", why="no rights"))
    assert of.failures == ["nothing was run: no rights"]
    assert "Not run" in of.to_html().decode()
    assert "Not run: no rights." in of.to_markdown().decode()


def test_a_line_stays_in_its_plot_and_ends_where_it_should() -> None:
    rates, waiting, seconds = _plots(outcome())
    for plot in (rates, waiting, seconds):
        for line in plot.lines:
            points = [tuple(map(float, point.split(","))) for point in line.points.split()]
            assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
            assert points[-1][0] == WIDTH
        assert plot.marks == ((0.4 * WIDTH, "1"),)
    acknowledged = {point.split(",")[1] for point in rates.lines[0].points.split()}
    assert acknowledged == {str(HEIGHT * (1 - 1000 / 1000))}, "1,000 a second, throughout, is the top of the plot"
    assert seconds.limit == 0.0, "the bound of 2 s"
    assert waiting.limit is None


def test_events_too_near_for_a_number_each_share_a_mark() -> None:
    assert _marks([0.0, 5.0, 11.9, 12.0, 600.0]) == ((0.0, "1–3"), (12.0, "4"), (600.0, "5"))


@pytest.mark.parametrize(("largest", "last"), [(0.3, 0.3), (1, 1), (7, 8), (10_000, 10_000), (31_540, 40_000)])
def test_ticks_are_round_and_reach_the_largest_value(largest: float, last: float) -> None:
    ticks = _ticks(largest, 4)
    assert ticks[0] == 0
    assert ticks[-1] == pytest.approx(last)
    assert ticks[-1] >= largest
