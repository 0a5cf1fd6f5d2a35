"""Overview: one page in Airflow's navigation that says how the data is.

Last runs, rows per commodity, freshness, alerts; server-rendered, out of the record of runs in PostgreSQL, for
signed-in users. Everything is imported with the first request: Airflow executes this file in every task process too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.plugins_manager import AirflowPlugin

from marketdata.orchestration.lazy import LazyApplication

if TYPE_CHECKING:
    from fastapi import FastAPI

    from marketdata.observability.notices import Told
    from marketdata.observability.runs import Step
    from marketdata.settings import Settings

PREFIX = "/marketdata-overview"
REPORTS = "/marketdata"
"""Where `reports.py` shows batches and reports."""

DAG_ID = "commodity-price-pipeline"
DATASET = "commodity_prices"
RUNS = 20
RUNS_LOOKED_AT = 60
"""Far enough back to find a commodity that has had no rows for some time."""

NOTICES = 10
STALE_AFTER = timedelta(days=6)
"""Of a commodity; what alert CommodityStale says too."""

LOST_AFTER = timedelta(minutes=70)
"""A run is ended after an hour: a step that is still under way after that was killed."""

STEPS = ("preflight", "extract", "validate", "transform", "publish", "load", "reconcile")
ERROR_CHARACTERS = 400


@dataclass(frozen=True)
class RunLine:
    """One run; counts are None where it did not prove any."""

    run_id: str
    url: str
    state: str
    colour: str
    started: datetime
    took: str
    error: str = ""
    extracted: int | None = None
    quarantined: int | None = None
    published: int | None = None
    loaded: int | None = None
    report_url: str = ""
    batch_url: str = ""


@dataclass(frozen=True)
class CommodityLine:
    """The last run that had rows of a commodity."""

    name: str
    at: datetime
    stale: bool
    run_id: str
    run_url: str
    extracted: int
    quarantined: int
    published: int
    already_published: int
    loaded: int
    already_loaded: int


@dataclass(frozen=True)
class NoticeLine:
    """One notice, and whether Slack took it."""

    kind: str
    dag_id: str
    run_id: str
    url: str
    at: datetime
    told: str
    colour: str
    error: str = ""


@dataclass(frozen=True)
class Page:
    """All that is shown."""

    environment: str
    dataset: str
    topic: str
    ledger: str
    table: str
    dag_id: str
    dag_url: str
    now: datetime
    slack: bool
    runs: tuple[RunLine, ...] = ()
    commodities: tuple[CommodityLine, ...] = ()
    notices: tuple[NoticeLine, ...] = ()
    problem: str = ""


def _prefix() -> str:
    from airflow.configuration import conf

    return urlsplit(conf.get("api", "base_url", fallback="") or "/").path.rstrip("/")


def build() -> FastAPI:
    """The application; its only page is `/`."""
    import secrets

    from airflow.api_fastapi.core_api.security import get_user
    from fastapi import Depends, FastAPI
    from fastapi.responses import HTMLResponse

    application = FastAPI(dependencies=[Depends(get_user)], docs_url=None, redoc_url=None, openapi_url=None)

    @application.get("/")
    def overview() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        headers = {
            "Content-Security-Policy": (
                f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
            ),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "private, no-store",
        }
        return HTMLResponse(render(gather(), nonce), headers=headers)

    return application


def gather() -> Page:
    """What the record of runs says now; a PostgreSQL that does not answer is said on the page."""
    from datetime import UTC

    from marketdata import settings as settings_module
    from marketdata.errors import MarketdataError
    from marketdata.observability import runs
    from marketdata.observability.notices import PostgresOutbox

    settings: Settings = settings_module.Settings()  # type: ignore[call-arg]  # embedded engines may start after Airflow
    now = datetime.now(UTC)
    recorded: list[list[Step]] = []
    told: list[Told] = []
    problem = ""
    try:
        recorded = runs.latest(settings, DATASET, RUNS_LOOKED_AT)
        told = PostgresOutbox(settings.require("postgres_dsn")).latest(NOTICES)
    except MarketdataError as error:
        problem = str(error)
    return page_of(settings, now, recorded, told, slack=_slack_is_on(), problem=problem)


def page_of(
    settings: Settings,
    now: datetime,
    recorded: Sequence[Sequence[Step]],
    told: Sequence[Told],
    *,
    slack: bool,
    problem: str = "",
) -> Page:
    """The page of these runs, newest first, and notices."""
    catalog = f"{settings.trino_catalog}." if settings.trino_host else ""
    return Page(
        environment=settings.environment,
        dataset=DATASET,
        topic=settings.kafka_topic,
        ledger=f"{settings.kafka_topic}-ledger",
        table=f"{catalog}{settings.trino_schema}.{DATASET}",
        dag_id=DAG_ID,
        dag_url=_page_of_airflow(DAG_ID),
        now=now,
        slack=slack,
        runs=tuple(_run(steps, now) for steps in recorded[:RUNS]),
        commodities=tuple(_commodities(recorded, now)),
        notices=tuple(_notice(notice) for notice in told),
        problem=problem,
    )


def render(page: Page, nonce: str) -> str:
    """The page as HTML; whatever comes from data is escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "number": lambda value: f"{value:,}",
        "moment": lambda moment: f"{moment:%Y-%m-%d %H:%M:%S} UTC",
        "day": lambda moment: f"{moment:%Y-%m-%d %H:%M}",
        "ago": lambda moment, now: _ago((now - moment).total_seconds()),
    }
    template = environment.from_string(Path(__file__).with_suffix(".html").read_text())
    return template.render(page=page, nonce=nonce)


def _run(steps: Sequence[Step], now: datetime) -> RunLine:
    from marketdata.observability.slack import cut, duration, redacted

    by_name = {step.step: step for step in steps}
    summary = _summary(steps)
    failed = next((step for step in steps if step.state == "failed"), None)
    started = min(step.started_at for step in steps)
    ended = max((step.finished_at or step.started_at) for step in steps)
    running = next((step for step in steps if step.state == "running"), None)
    if failed and not running:
        state, colour = f"Failed at {failed.step}", "bad"
    elif summary:
        state, colour = ("Done" if summary["extracted"] else "Done, no data"), "good"
    elif running and now - running.started_at > LOST_AFTER:
        state, colour = f"Lost at {running.step}", "bad"
    else:
        done = sum(step.state == "done" for step in steps)
        state, colour = f"Running, {done} of {len(STEPS)} steps done", "run"
    verdict = by_name.get("validate")
    batch = next(
        (by_name[name].result["batch"] for name in ("transform", "extract") if "batch" in _result(by_name, name)), ""
    )
    return RunLine(
        run_id=steps[0].run_id,
        url=_page_of_airflow(DAG_ID, steps[0].run_id),
        state=state,
        colour=colour,
        started=started,
        took=duration((ended - started).total_seconds()) if colour != "run" else "",
        error=cut(redacted(failed.error or ""), ERROR_CHARACTERS) if failed else "",
        extracted=summary.get("extracted"),
        quarantined=summary.get("quarantined"),
        published=summary.get("published"),
        loaded=summary.get("loaded"),
        report_url=_manifest("report", verdict.result["batch"]) if verdict and "batch" in verdict.result else "",
        batch_url=_manifest("batch", batch),
    )


def _commodities(recorded: Sequence[Sequence[Step]], now: datetime) -> list[CommodityLine]:
    lines: dict[str, CommodityLine] = {}
    for steps in recorded:
        by_commodity: dict[str, dict[str, int]] = {}
        for row in _summary(steps).get("by_series", []):
            counts = by_commodity.setdefault(row["commodity"], {})
            for name, value in row.items():
                if isinstance(value, int):
                    counts[name] = counts.get(name, 0) + value
        at = max((step.finished_at or step.started_at) for step in steps)
        for name, counts in by_commodity.items():
            if name and counts.get("extracted") and name not in lines:
                run_id = steps[0].run_id
                lines[name] = CommodityLine(
                    name, at, now - at > STALE_AFTER, run_id, _page_of_airflow(DAG_ID, run_id),
                    *(counts.get(count, 0) for count in _COUNTS),
                )  # fmt: skip
    return [lines[name] for name in sorted(lines)]


_COUNTS = ("extracted", "quarantined", "published", "already_published", "loaded", "already_loaded")


def _notice(notice: Told) -> NoticeLine:
    if notice.sent_at:
        told, colour = f"{max(0.0, (notice.sent_at - notice.created_at).total_seconds()):.1f} s later", "good"
    elif notice.abandoned_at:
        told, colour = "never: given up after a day", "bad"
    else:
        told, colour = "waits for Slack", "warn"
    url = _page_of_airflow(notice.dag_id, notice.run_id)
    return NoticeLine(
        notice.kind, notice.dag_id, notice.run_id, url, notice.created_at, told, colour, notice.last_error or ""
    )


def _summary(steps: Sequence[Step]) -> dict[str, Any]:
    """What reconcile proved; empty where the run did not get so far."""
    return next((step.result for step in steps if step.step == "reconcile" and step.state == "done"), {})


def _result(by_name: dict[str, Step], name: str) -> dict[str, Any]:
    return by_name[name].result if name in by_name else {}


def _page_of_airflow(dag_id: str, run_id: str = "") -> str:
    run = f"/runs/{quote(run_id, safe='')}" if run_id else ""
    return f"{_prefix()}/dags/{quote(dag_id, safe='')}{run}"


def _manifest(page: str, uri: str) -> str:
    return f"{_prefix()}{REPORTS}/{page}?manifest={quote(uri, safe='')}" if uri else ""


def _ago(seconds: float) -> str:
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


def _slack_is_on() -> bool:
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        BaseHook.get_connection("slack_default")
    except AirflowNotFoundException:
        return False
    return True


class OverviewPlugin(AirflowPlugin):
    name = "marketdata_overview"
    fastapi_apps = [{"app": LazyApplication(build), "url_prefix": PREFIX, "name": "Market data: overview"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Market data",
            "href": f"{_prefix()}{PREFIX}/",
            "url_route": "marketdata",
            "destination": "nav",
            "nav_top_level": True,
        }
    ]
