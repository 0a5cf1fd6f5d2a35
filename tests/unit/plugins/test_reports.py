"""The pages beside the UI: to whom they are shown, out of which folder, and what a browser may do with them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from marketdata import settings
from marketdata.batches import Batch, Interval, Lake, Manifest
from tests.fake_marketdata import clean_settings

__all__ = ["clean_settings"]

PLUGIN = Path(__file__).resolve().parents[3] / "plugins" / "reports.py"


@pytest.fixture
def plugin() -> Any:
    """The plugin file as Airflow loads it: by path."""
    spec = importlib.util.spec_from_file_location("reports_under_test", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def client(plugin: Any, clean_settings: None) -> Iterator[Any]:
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient

    application = plugin.build()
    application.dependency_overrides[get_user] = lambda: "somebody"
    with TestClient(application) as client:
        yield client


@pytest.fixture
def write(clean_settings: None) -> Callable[..., Batch]:
    """Writes a batch into the lake of the settings."""

    def build(step: str = "validate", **files: bytes) -> Batch:
        lake = Lake(settings.load())
        writer = lake.writer("commodity_prices", Interval(date(2019, 1, 1), date(2019, 1, 2)), "0123456789abcdef")
        for name, content in files.items():
            writer.add_file(name.replace("_", "."), content)
        return writer.commit(
            Manifest(
                dataset="commodity_prices", tenant="default", batch_id="0123456789abcdef", step=step, step_version=1,
                run_id="manual__<b>1</b>", interval_start=date(2019, 1, 1), interval_end=date(2019, 1, 2),
                created_at=datetime(2019, 1, 2, tzinfo=UTC), parent=None,
                counts={"rows": 12345, "reasons": {"price <script>": 1}},
            )
        )  # fmt: skip

    return build


def test_the_report_is_served_as_it_was_written(client: Any, write: Callable[..., Batch]) -> None:
    batch = write(report_html=b"<h1>7 % refused</h1>")
    answer = client.get("/report", params={"manifest": batch.uri})
    assert (answer.status_code, answer.text) == (200, "<h1>7 % refused</h1>")


def test_the_batch_is_shown_and_nothing_in_it_is_markup(client: Any, write: Callable[..., Batch]) -> None:
    batch = write(report_html=b"x")
    answer = client.get("/batch", params={"manifest": batch.uri})
    assert answer.status_code == 200
    assert "12,345" in answer.text
    assert "manual__&lt;b&gt;1&lt;/b&gt;" in answer.text
    assert "<script" not in answer.text
    assert f'href="report?manifest={quote(batch.uri, safe="")}"' in answer.text


def test_a_batch_without_a_report_says_so(client: Any, write: Callable[..., Batch]) -> None:
    answer = client.get("/report", params={"manifest": write("extract").uri})
    assert answer.status_code == 404
    assert "has no report" in answer.text


@pytest.mark.parametrize("page", ["batch", "report"])
def test_a_browser_may_load_nothing_and_run_nothing(client: Any, write: Callable[..., Batch], page: str) -> None:
    uri = write(report_html=b"<script>alert(1)</script>").uri
    for answer in (client.get(f"/{page}", params={"manifest": uri}), client.get(f"/{page}", params={"manifest": "x"})):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "frame-ancestors 'self'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "no-store" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "manifest.json",
        "file:///etc/passwd",
        "{lake}/../outside/manifest.json",
        "{lake}/batches/../../outside/manifest.json",
        "{lake}/batches/commodity_prices/2019-01-01/../../../../outside/manifest.json",
        "{lake}/batches/commodity_prices/2019-01-01/%2e%2e/manifest.json",
        "{lake}-of-another/batches/commodity_prices/2019-01-01/0123456789abcdef/manifest.json",
        "{lake}/batches/commodity_prices/2019-01-01/0123456789abcdef/part-00000.parquet",
        "{lake}/batches/commodity_prices/2019-01-01/0123456789abcdef/manifest.json\n",
        "s3://bucket/batches/commodity_prices/2019-01-01/0123456789abcdef/manifest.json",
    ],
)
def test_nothing_outside_the_lakes_batches_is_read(
    client: Any, write: Callable[..., Batch], tmp_path: Path, address: str
) -> None:
    write(report_html=b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_text("hidden")
    for page in ("batch", "report"):
        answer = client.get(f"/{page}", params={"manifest": address.format(lake=settings.load().lake_uri)})
        assert answer.status_code == 404
        assert "hidden" not in answer.text
        assert "is not the address of a batch" in answer.text


def test_a_batch_that_is_gone_is_said(client: Any) -> None:
    uri = f"{settings.load().lake_uri}/batches/commodity_prices/2019-01-01/fedcba9876543210/manifest.json"
    answer = client.get("/batch", params={"manifest": uri})
    assert answer.status_code == 404
    assert "there is no batch" in answer.text


def test_a_lake_that_is_not_set_is_said(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAKE_URI")
    settings.load.cache_clear()
    answer = client.get("/batch", params={"manifest": "x"})
    assert answer.status_code == 503
    assert "LAKE_URI is not set" in answer.text


@pytest.mark.parametrize("page", ["batch", "report"])
def test_a_stranger_is_shown_nothing(plugin: Any, write: Callable[..., Batch], page: str) -> None:
    from fastapi.testclient import TestClient

    with TestClient(plugin.build()) as client:
        answer = client.get(f"/{page}", params={"manifest": write(report_html=b"hidden").uri})
    assert answer.status_code in (401, 403)
    assert "hidden" not in answer.text


def test_loading_the_plugins_is_light_and_only_the_scheduler_preloads() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['airflow', sys.argv[1]]\n"
        "import airflow.plugins_manager\n"
        "before = set(sys.modules)\n"
        "for name in ('reports', 'preload'):\n"
        f"    runpy.run_path({str(PLUGIN.parent)!r} + f'/{{name}}.py')\n"
        "short = lambda m: m if m.startswith('marketdata') else m.split('.')[0]\n"
        "new = {short(m) for m in set(sys.modules) - before} | ({'KPO'} if\n"
        "    'airflow.providers.cncf.kubernetes.operators.pod' in sys.modules else set())\n"
        "print(' '.join(sorted(new)))\n"
    )

    def imported(component: str) -> set[str]:
        done = subprocess.run([sys.executable, "-c", code, component], capture_output=True, text=True, check=True)
        return set(done.stdout.splitlines()[-1].split()) if done.stdout.strip() else set()

    loaded = imported("api-server")
    assert not {"fastapi", "obstore", "pyarrow", "KPO"} & loaded
    assert {name for name in loaded if name.startswith("marketdata")} <= {
        "marketdata",
        "marketdata.orchestration",
        "marketdata.orchestration.lazy",
    }
    assert "KPO" in imported("scheduler")
