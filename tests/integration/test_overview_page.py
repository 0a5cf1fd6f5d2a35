"""The overview in a real browser, inside a real Airflow: seen in light and dark, read without eyes, without a mouse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marketdata.observability import runs
from marketdata.observability.notices import FAILURE, Notice, PostgresOutbox, Receipt
from marketdata.observability.slack import Message
from tests.engines.chromium import BINARY, Browser, chromium
from tests.engines.installation import Installation
from tests.waiting import until

if BINARY is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)

DATASET = "commodity_prices"
STEPS = ("preflight", "extract", "validate", "transform", "publish", "load", "reconcile")
COUNTS = {
    "extracted": 1310,
    "quarantined": 4,
    "published": 1290,
    "already_published": 16,
    "loaded": 1290,
    "already_loaded": 16,
}
BATCH = "file:///lake/batches/commodity_prices/2026-11-20/0123456789abcdef/manifest.json"


def record(settings: Any) -> None:
    """Runs and a notice, as tasks and the Slack plugin leave them."""
    series = [
        {"source": "archive", "commodity": name, "series": name, "frequency": "daily", **COUNTS}
        for name in ("Gold", "Silver", "Copper", "Oil", "Natural Gas")
    ]
    for step in STEPS:
        with runs.recorded(settings, DATASET, "scheduled__2026-11-20T02:00:00+00:00", step) as row:
            if step == "reconcile":
                row.result = {
                    **{name: 5 * count for name, count in COUNTS.items()},
                    "by_series": series,
                    "batch": BATCH,
                }
            elif step in ("extract", "validate", "transform"):
                row.result = {"batch": BATCH}
    for step in ("preflight", "extract", "validate"):
        try:
            with runs.recorded(settings, DATASET, "scheduled__2026-11-21T02:00:00+00:00", step):
                if step == "validate":
                    raise ValueError("commodity_prices is refused: 17.3 % of rows quarantined; nothing was published")
        except ValueError:
            continue
    outbox = PostgresOutbox(settings.require("postgres_dsn"))
    key = ("commodity-price-pipeline", "scheduled__2026-11-21T02:00:00+00:00", "0")
    outbox.add(Notice(FAILURE, *key, Message("it failed", ())))
    outbox.deliver(lambda message, thread, key: Receipt())


@pytest.fixture(scope="module")
def installation(new_home: Callable[[str], Path]) -> Iterator[Installation]:
    from marketdata import engines
    from marketdata.settings import ENDPOINTS_VARIABLE, Settings

    home = new_home("overview")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARKETDATA_HOME", str(home))
        patch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
        engines.up(Settings(), ["postgres"])
        try:
            settings = Settings()
            record(settings)
            (home / "dags").mkdir()
            airflow = Installation(settings, home / "dags", {}, home)
            airflow.start("api-server")
            try:
                until("the API answers", lambda: airflow.ready(set()), 300)
                yield airflow
            finally:
                airflow.stop()
        finally:
            engines.down(Settings())


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium"), until) as tab:
        tab.size(1400, 900)
        yield tab


PAGE = "document.querySelector('iframe').contentDocument"


def test_it_is_a_page_of_airflow(installation: Installation, browser: Browser, tmp_path: Path) -> None:
    browser.open(f"{installation.address}/")
    browser.until("document.querySelector('#root a')", 240)
    browser.open(f"{installation.address}/plugin/marketdata")
    browser.until(f"{PAGE}.readyState === 'complete' && {PAGE}.querySelector('h1')")
    assert browser.ask(f"{PAGE}.querySelector('h1').innerText") == "Market data: overview"
    text = browser.ask(f"{PAGE}.body.innerText")
    for word in ("Natural Gas", "1,310", "Fresh", "Failed at validate", "17.3 %", "Slack alerts are off", "failure"):
        assert word in text
    for theme in ("dark", "light"):
        browser.ask(f"localStorage.setItem('theme', '{theme}')")
        browser.open(f"{installation.address}/plugin/marketdata")
        browser.until(f"{PAGE}.documentElement.dataset.theme === '{theme}' && {PAGE}.readyState === 'complete'")
        browser.picture(tmp_path.parent / f"overview-{theme}.png")
        poor = browser.ask(CONTRAST.replace("PAGE", PAGE))
        assert poor == [], "every text has a contrast of at least 4.5"


def test_its_links_open_airflow_around_it(installation: Installation, browser: Browser) -> None:
    browser.open(f"{installation.address}/plugin/marketdata")
    browser.until(f"{PAGE}.readyState === 'complete' && {PAGE}.querySelector('td a[data-top]')")
    browser.ask(f"{PAGE}.querySelector('td a[data-top]').click()")
    browser.until("location.pathname.startsWith('/dags/commodity-price-pipeline/runs/')")


def test_it_is_used_without_a_mouse(installation: Installation, browser: Browser) -> None:
    browser.open(f"{installation.address}/marketdata-overview/")
    browser.until("document.readyState === 'complete' && document.querySelector('footer')")
    browser.press("Tab", 9)
    assert browser.ask("document.activeElement.innerText") == "Skip to the last runs"
    assert browser.ask("document.activeElement.getBoundingClientRect().left >= 0"), "it is seen when it has the focus"
    browser.press("Enter", 13)
    browser.until("location.hash === '#runs'")
    browser.press("Tab", 9)
    assert browser.ask("document.activeElement.getAttribute('role')") == "region", "a wide table can be scrolled"
    assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    stops = browser.ask("document.querySelectorAll('a, [tabindex=\"0\"]').length")
    seen = set()
    for _ in range(stops):
        browser.press("Tab", 9)
        seen.add(browser.ask("document.activeElement.outerHTML.slice(0, 200)"))
    assert "<body>" not in seen
    assert browser.ask("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"


def test_a_screen_reader_finds_its_way(installation: Installation, browser: Browser) -> None:
    browser.open(f"{installation.address}/marketdata-overview/")
    browser.until("document.readyState === 'complete' && document.querySelector('footer')")
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            roles.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert roles["main"]
    assert roles["navigation"] == ["On this page"]
    assert roles["heading"] == ["Market data: overview", "Commodities", "Last runs", "Alerts", "Topic and table"]
    assert len(roles["table"]) == 3
    assert all(roles["table"]), "each has its caption for a name"
    assert "Gold" in roles["rowheader"]
    assert len(set(roles["link"])) == len({(n, u) for n, u in browser.ask(LINKS)}), "no two links of one name go apart"


LINKS = "[...document.querySelectorAll('a')].map(a => [a.innerText, a.getAttribute('href')])"
CONTRAST = """
(() => {
  const view = PAGE.defaultView, found = []
  const light = colour => {
    const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => linear(v / 255))
    return .2126 * r + .7152 * g + .0722 * b
  }
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = view.getComputedStyle(element).backgroundColor
      if (!colour.endsWith(', 0)') && colour !== 'transparent') return colour
    }
    return 'rgb(255, 255, 255)'
  }
  for (const element of PAGE.body.querySelectorAll('*')) {
    if (![...element.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || element.tagName === 'SCRIPT') continue
    const [a, b] = [light(view.getComputedStyle(element).color), light(ground(element))].sort((x, y) => y - x)
    if ((a + .05) / (b + .05) < 4.5) found.push(element.outerHTML.slice(0, 80))
  }
  return found
})()
"""
