"""Pages beside the Airflow UI: what a task handed over, and the report of the quality gate or of a drill.

Served by the API server to signed-in users, out of LAKE_URI and nothing else. Everything is imported with the first
request: Airflow executes this file in every task process too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.plugins_manager import AirflowPlugin

from marketdata.orchestration.lazy import LazyApplication

if TYPE_CHECKING:
    from fastapi import FastAPI

    from marketdata.batches import Batch, Lake

PREFIX = "/marketdata"
REPORT = "report.html"

_MANIFEST = re.compile(r"/batches/[a-z0-9_]+/\d{4}-\d{2}-\d{2}/[0-9a-f]+/manifest\.json")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-store",
}
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --quiet: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem } h2 { font-size: 1.05rem; margin-top: 2rem }
p.quiet, td.quiet { color: var(--quiet) } a { color: #2b6cb0 }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600; width: 14rem } td.number { text-align: right; font-variant-numeric: tabular-nums }
code, pre { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap }
"""


def build() -> FastAPI:
    """The application: `/batch` and `/report`, each for the manifest named in the query."""
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi import Depends, FastAPI
    from fastapi.responses import HTMLResponse

    from marketdata.errors import MarketdataError

    application = FastAPI(dependencies=[Depends(get_user)], docs_url=None, redoc_url=None, openapi_url=None)

    def page(manifest: str, show: Callable[[Batch], str | bytes]) -> HTMLResponse:
        try:
            return HTMLResponse(show(_open(manifest)), headers=_HEADERS)
        except LookupError as error:
            status, text = 404, str(error.args[0])
        except MarketdataError as error:
            status, text = (404 if error.exit_code == 65 else 503), str(error)
        return HTMLResponse(_page("Not to be shown", f"<p>{escape(text)}</p>"), status, headers=_HEADERS)

    @application.get("/batch")
    def batch(manifest: str) -> HTMLResponse:
        return page(manifest, _show_batch)

    @application.get("/report")
    def report(manifest: str) -> HTMLResponse:
        return page(manifest, _show_report)

    return application


def _open(uri: str) -> Batch:
    from marketdata.batches import Lake
    from marketdata.settings import load

    lake: Lake = Lake(load())
    if not uri.startswith(lake.uri) or not _MANIFEST.fullmatch(uri.removeprefix(lake.uri)):
        raise LookupError("this is not the address of a batch in this installation's lake")
    return lake.open(uri)


def _show_report(batch: Batch) -> bytes:
    if REPORT not in batch.manifest.files:
        raise LookupError(f"batch {batch.manifest.batch_id} ({batch.manifest.step}) has no report")
    return batch.read(REPORT)


def _show_batch(batch: Batch) -> str:
    manifest = batch.manifest
    rows = {
        "Dataset": f"{manifest.dataset}, schema version {manifest.schema_version}",
        "Days": f"{manifest.interval_start} to {manifest.interval_end} (not included)",
        "Tenant": manifest.tenant,
        "Run that wrote it": manifest.run_id,
        "Written": f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC",
        "Step": f"{manifest.step}, version {manifest.step_version}",
        "Rows": f"{manifest.rows:,}",
        "Bytes": f"{manifest.size_bytes:,}",
    }
    body = [f'<p class="quiet"><code>{escape(batch.uri)}</code></p>', _table(rows)]
    links = []
    if REPORT in manifest.files:
        links.append(_link("report", batch.uri, "Report"))
    if manifest.parent:
        links.append(_link("batch", manifest.parent, "The batch it was made from"))
    if links:
        body.append(f"<p>{' · '.join(links)}</p>")
    for title, values in (("Counts", manifest.counts), ("Details", manifest.details)):
        if values:
            body += [f"<h2>{title}</h2>", _table(values)]
    files = [*manifest.parts, *manifest.files.values()]
    body.append("<h2>Files</h2><table>")
    body += [
        f'<tr><td><code>{escape(file.name)}</code></td><td class="number">{file.size_bytes:,} bytes</td>'
        f'<td class="quiet"><code>{file.sha256[:16]}…</code></td></tr>'
        for file in files
    ]
    body.append("</table>" if files else "</table><p>None: there was no data for these days.</p>")
    return _page(f"Batch {manifest.batch_id} · {manifest.step}", "\n".join(body))


def _table(values: Mapping[str, Any]) -> str:
    import json

    def cell(value: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            return f"{value:,}"
        if isinstance(value, dict | list | tuple):
            return f"<pre>{escape(json.dumps(value, indent=1, ensure_ascii=False, default=str))}</pre>"
        return escape(str(value))

    lines = [f"<tr><th>{escape(str(name))}</th><td>{cell(value)}</td></tr>" for name, value in values.items()]
    return f"<table>{''.join(lines)}</table>"


def _link(page: str, uri: str, text: str) -> str:
    return f'<a href="{page}?manifest={quote(uri, safe="")}">{escape(text)}</a>'


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>{body}</html>"
    )


class ReportsPlugin(AirflowPlugin):
    name = "marketdata_reports"
    fastapi_apps = [{"app": LazyApplication(build), "url_prefix": PREFIX, "name": "Market data: batches and reports"}]  # noqa: RUF012
