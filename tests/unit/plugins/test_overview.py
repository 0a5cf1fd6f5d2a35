"""The overview: what the page says of runs, commodities and notices."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from marketdata.observability.notices import Told
from marketdata.observability.runs import Step

PLUGIN = Path(__file__).resolve().parents[3] / "plugins" / "overview.py"
NOW = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def overview() -> ModuleType:
    spec = importlib.util.spec_from_file_location("overview_under_test", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def steps(
    run_id: str, *named: str, ago: timedelta = timedelta(hours=1), last: str = "done", **counts: int
) -> list[Step]:
    at = NOW - ago
    row = {"source": "archive", "commodity": "Gold", "series": "Gold", "frequency": "daily", **counts}
    results: dict[str, dict[str, Any]] = {
        "validate": {"batch": "file:///lake/batches/p/2026-11-20/aa/manifest.json"},
        "reconcile": {
            "extracted": 0,
            "quarantined": 0,
            "published": 0,
            "loaded": 0,
            **counts,
            "by_series": [row] * bool(counts),
        },
    }
    made = []
    for number, name in enumerate(named):
        state = last if number == len(named) - 1 else "done"
        start = at + timedelta(seconds=number)
        error = "postgresql://etl:hunter2@db <script>alert(1)</script> is refused" if state == "failed" else None
        end = None if state == "running" else start + timedelta(seconds=1)
        made.append(Step(run_id, name, state, start, end, results.get(name, {}), error, None))
    return made


ALL = ("preflight", "extract", "validate", "transform", "publish", "load", "reconcile")


def test_a_page_says_what_happened(overview: ModuleType, settings_for: Callable[..., Any]) -> None:
    recorded = [
        steps("running", "preflight", "extract", last="running", ago=timedelta(minutes=1)),
        steps("lost", "preflight", "extract", last="running", ago=timedelta(hours=2)),
        steps("weekend", *ALL),
        steps("failed", "preflight", "extract", "validate", last="failed"),
        steps("good", *ALL, extracted=1200, quarantined=3, published=1000, already_published=197, loaded=1197),
    ]
    told = [
        Told("failure", "dag", "failed", NOW, NOW + timedelta(seconds=2), None, None),
        Told("recovery", "dag", "failed", NOW, None, None, "HTTP 503"),
    ]
    page = overview.page_of(settings_for(), NOW, recorded, told, slack=True)
    assert [(run.state, run.colour) for run in page.runs] == [
        ("Running, 1 of 7 steps done", "run"),
        ("Lost at extract", "bad"),
        ("Done, no data", "good"),
        ("Failed at validate", "bad"),
        ("Done", "good"),
    ]
    assert page.runs[3].extracted is None
    assert page.runs[4].report_url == (
        "/marketdata/report?manifest=file%3A%2F%2F%2Flake%2Fbatches%2Fp%2F2026-11-20%2Faa%2Fmanifest.json"
    )
    (gold,) = page.commodities
    assert (gold.name, gold.run_id, gold.extracted, gold.published, gold.stale) == ("Gold", "good", 1200, 1000, False)
    assert [notice.told for notice in page.notices] == ["2.0 s later", "waits for Slack"]


def test_a_commodity_without_rows_for_a_week_is_stale(overview: ModuleType, settings_for: Callable[..., Any]) -> None:
    recorded = [steps("empty", *ALL), steps("old", *ALL, ago=timedelta(days=7), extracted=1)]
    (gold,) = overview.page_of(settings_for(), NOW, recorded, [], slack=False).commodities
    assert gold.stale
    assert gold.run_id == "old"


class Structure(HTMLParser):
    """What a screen reader goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_it_can_be_read_without_seeing_it(overview: ModuleType, settings_for: Callable[..., Any]) -> None:
    recorded = [steps("failed", "validate", last="failed"), steps("good", *ALL, extracted=5, published=5, loaded=5)]
    told = [Told("failure", "dag", "failed", NOW, NOW, None, None)]
    page = Structure()
    page.feed(html := overview.render(overview.page_of(settings_for(), NOW, recorded, told, slack=False), "n0nce"))
    assert page.of("html") == [{"lang": "en"}]
    assert [len(page.of(name)) for name in ("main", "header", "footer", "nav", "h1")] == [1, 1, 1, 1, 1]
    assert len(page.of("table")) == len(page.of("caption")) == 3
    assert all(cell.get("scope") in ("col", "row") for cell in page.of("th"))
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    inside = {str(link["href"])[1:] for link in page.of("a") if str(link["href"]).startswith("#")}
    labels = {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes}
    assert inside | labels <= ids
    assert "<script>alert" not in html
    assert "hunter2" not in html
    assert not [a for tag, a in page.tags if tag in ("link", "img", "iframe") or "src" in a], "nothing from elsewhere"
    assert all(element.get("nonce") == "n0nce" for element in page.of("script") + page.of("style"))


def test_a_silent_postgres_is_said_on_the_page(overview: ModuleType, settings_for: Callable[..., Any]) -> None:
    html = overview.render(
        overview.page_of(settings_for(), NOW, [], [], slack=False, problem="PostgreSQL is gone"), "n"
    )
    assert 'role="alert">PostgreSQL is gone' in html
    assert "No run is on record" in html


def test_strangers_do_not_see_it(overview: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    monkeypatch.setattr(overview, "gather", lambda: pytest.fail("the page was made for a stranger"))
    assert TestClient(overview.build()).get("/").status_code == 401
