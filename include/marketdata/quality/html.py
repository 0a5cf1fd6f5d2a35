"""The verdict as one page: no network, no script; it reads on a phone, on paper, by day and by night."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from marketdata.batches import Interval
from marketdata.datasets import Dataset
from marketdata.observability.pages import rendered

if TYPE_CHECKING:
    from marketdata.quality.verdict import Verdict

TEMPLATE = Path(__file__).with_name("report.html.jinja")
ROWS_SHOWN = 200
SERIES_SHOWN = 100

_LEVELS = (
    ("row", "Row rules", "A row that breaks one is quarantined; the others go on."),
    ("dataset", "Dataset rules", "If one is broken, the run stops before anything is published or loaded."),
)


def report(
    dataset: Dataset,
    verdict: Verdict,
    *,
    interval: Interval,
    batch_id: str,
    run_id: str,
    extracted_at: datetime,
    sources: Sequence[str],
) -> bytes:
    """The page, UTF-8. Whatever the source said is escaped."""
    headline, tone, summary = _headline(verdict)
    quarantined = len(verdict.quarantined)
    return rendered(
        TEMPLATE,
        {"grouped": _grouped, "percent": _percent, "sentence": _sentence},
        dataset=dataset,
        verdict=verdict,
        headline=headline,
        tone=tone,
        summary=summary,
        quarantined=quarantined,
        share=_percent(quarantined / verdict.rows * 100) if verdict.rows else "",
        refused=verdict.quarantined.slice(0, ROWS_SHOWN).to_pylist(),
        series=sorted(verdict.by_series, key=lambda row: -row["extracted"])[:SERIES_SHOWN],
        levels=_LEVELS,
        interval=f"{interval.start} to {interval.end} (the last day not included)",
        batch_id=batch_id,
        run_id=run_id,
        extracted_at=f"{extracted_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        sources=sources,
        meta=verdict.result["meta"],
    )


def _headline(verdict: Verdict) -> tuple[str, str, str]:
    """Headline, tone (a class of the page's style) and one sentence."""
    refused = len(verdict.quarantined)
    if not verdict.rows:
        return "No data", "good", "The sources have no data for this interval; that is no fault."
    if not verdict.passed:
        rules = "rule is" if len(verdict.failures) == 1 else "rules are"
        return "Refused", "bad", f"The run was stopped: {len(verdict.failures)} dataset {rules} broken."
    if refused:
        rows = "1 row is" if refused == 1 else f"{refused:,} rows are"
        return "Passed", "good", f"{verdict.accepted:,} of {verdict.rows:,} rows go on; {rows} quarantined."
    return "Passed", "good", f"All {verdict.rows:,} rows go on."


def _grouped(number: int) -> str:
    return f"{number:,}"


def _percent(percent: float | None) -> str:
    if percent is None:
        return "–"
    if percent == 0:
        return "0 %"
    return "< 0.01 %" if percent < 0.01 else f"{percent:.2f} %"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
