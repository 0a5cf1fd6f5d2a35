"""The page people read."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from html.parser import HTMLParser
from typing import Any

from marketdata.batches import Interval
from marketdata.datasets import COMMODITY_PRICES
from marketdata.quality import Verdict, gate, report
from tests.unit.quality.conftest import CONTEXT, INGESTED_AT

Judge = Callable[..., Verdict]
Row = Callable[..., dict[str, Any]]


class _Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._pieces: list[str] = []
        self._silent = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self._pieces).split())


def _page(verdict: Verdict) -> str:
    return report(
        COMMODITY_PRICES,
        verdict,
        interval=Interval(date(2024, 5, 1), date(2024, 5, 2)),
        batch_id="b0000000000000b1",
        run_id="manual__<1>",
        extracted_at=INGESTED_AT,
        sources=["files"],
    ).decode()


def test_it_says_what_was_quarantined_and_why(judge: Judge, row: Row) -> None:
    bad = row(commodity="Oil", series="WTI", unit="bbl", price="-36.98", event_time="2020-04-20", origin_row=8644)

    text = _Text(_page(judge([row(), bad]))).text

    assert "Passed Commodity prices" in text
    assert "1 of 2 rows go on; 1 row is quarantined." in text
    assert "Price must be above 0: -36.98 (known event 2020-04-20: WTI settled below zero" in text
    assert "gold.csv, row 8,644" in text
    assert "price_positive, price_not_too_low" in text
    for rule in judge([row()]).rules:
        assert rule["rule"] in text
    for known in ("2024-05-01 to 2024-05-02", "b0000000000000b1", "manual__<1>", "files", "2026-11-01 12:00:00 UTC"):
        assert known in text


def test_it_says_why_the_run_was_stopped(judge: Judge, row: Row) -> None:
    text = _Text(_page(judge([row(price="-1")]))).text

    assert text.startswith("Refused")
    assert "At least one row must be accepted. Observed: 0 of 1 rows accepted." in text


def test_no_data_is_said_to_be_no_fault() -> None:
    verdict = gate(COMMODITY_PRICES, [], ingested_at=INGESTED_AT, context=CONTEXT)

    assert "no data for this interval; that is no fault" in _Text(_page(verdict)).text


def test_what_a_source_says_cannot_become_markup(judge: Judge, row: Row) -> None:
    attack = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    rows = [row(**{column: attack}) for column in ("commodity", "series", "price", "source", "event_time", "origin")]

    page = _Text(_page(judge([*rows, row(price=attack, series=attack, origin=attack)])))

    assert attack in page.text
    assert {tag for tag, _ in page.tags} & {"script", "img"} == set()


def test_it_needs_no_network_and_no_script(judge: Judge, row: Row) -> None:
    page = _page(judge([row(), row(origin="https://prices.example/gold.csv", price="x")]))

    assert not re.search(r"url\(|@import", page)
    assert not any({"src", "href", "onclick"} & set(attributes) for _, attributes in _Text(page).tags)
    assert "default-src 'none'" in page


def test_a_long_list_is_cut_and_says_so(judge: Judge, row: Row) -> None:
    rows = [
        row(price="-1", series=f"s{number}", event_time=f"2024-05-01T00:00:{number % 60:02d}Z") for number in range(250)
    ]

    page = _page(judge([row(), *rows]))

    assert "The first 200 of 250; all of them are in the quarantine table." in _Text(page).text
    assert page.count('data-label="Value"') == 200
