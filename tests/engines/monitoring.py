"""Real Prometheus, Pushgateway, Alertmanager and blackbox exporter for tests, from the Debian packages of these names.

    apt-get install --no-install-recommends \\
      prometheus prometheus-pushgateway prometheus-alertmanager prometheus-blackbox-exporter

`promtool` comes with the first, `amtool` with the last.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from marketdata.engines.process import free_port
from marketdata.observability import push
from tests.engines.lifetime import ending_with_us
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
PROGRAMS = {"prometheus": "prometheus", "prometheus-pushgateway": "prometheus-pushgateway",
            "prometheus-alertmanager": "prometheus-alertmanager", "promtool": "prometheus",
            "prometheus-blackbox-exporter": "prometheus-blackbox-exporter"}  # fmt: skip


def unhurried(patch: pytest.MonkeyPatch) -> None:
    """Let a courier of metrics wait for a busy machine: what it gave up, nothing would carry on before the next run."""
    for name, value in (("BUDGET_SECONDS", 60.0), ("PUSH_SECONDS", 30.0), ("STATEMENT", "60s")):
        patch.setattr(push, name, value)


def require(*programs: str) -> None:
    """Skip the test where a program is not installed."""
    missing = sorted({PROGRAMS[program] for program in programs if shutil.which(program) is None})
    if missing:
        pytest.skip(f"Debian packages not installed: {' '.join(missing)}")


@contextmanager
def running(command: Sequence[str], ready: str, folder: Path, seconds: float = 120) -> Iterator[None]:
    """Run a program until the block ends; entered when GET `ready` is answered with 200."""
    name = Path(command[0]).name
    log = folder / f"{name}.log"
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            ending_with_us(command), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        until(f"{name} answers", lambda: process.poll() is not None or _answers(ready), seconds)
        if process.poll() is not None:
            raise RuntimeError(f"{name} did not start: {log.read_text(errors='replace')[-2000:]}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query."""
        return self._get("query", query=expression)["result"]

    def value(self, expression: str) -> float | None:
        """The one value of an instant query; None where there is none."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else None

    def range(self, expression: str, seconds: int, step: int = 1) -> list[dict[str, Any]]:
        """The series of a query over the last seconds."""
        end = time.time()
        return self._get("query_range", query=expression, start=end - seconds, end=end, step=step)["result"]

    def alerts(self, state: str = "firing") -> dict[str, dict[str, Any]]:
        """Alerts in a state, by name."""
        return {a["labels"]["alertname"]: a for a in self._get("alerts")["alerts"] if a["state"] == state}

    def healthy_rules(self) -> bool:
        """Whether every rule has been evaluated without an error."""
        rules = [rule for group in self._get("rules")["groups"] for rule in group["rules"]]
        assert not [rule for rule in rules if rule["health"] == "err"], rules
        return bool(rules) and all(rule["health"] == "ok" for rule in rules)

    def _get(self, path: str, **parameters: Any) -> Any:
        return requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10).json()["data"]


@dataclass
class Webhook:
    """Stands in for Slack's incoming webhook: what it was sent, and when."""

    url: str
    received: list[tuple[float, dict[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Monitoring:
    """Prometheus, Pushgateway and Alertmanager, configured as in deploy/monitoring."""

    prometheus: Prometheus
    gateway: str
    alertmanager: str
    webhook: Webhook


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A loopback address that takes Slack payloads."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            hook.received.append((time.time(), body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook = Webhook(f"http://127.0.0.1:{server.server_port}/services/T/B/secret")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def pushgateway(folder: Path, port: int | None = None) -> Iterator[str]:
    """A Pushgateway that keeps what it was told over a restart, as the deployed one does."""
    require("prometheus-pushgateway")
    address = f"127.0.0.1:{port or free_port()}"
    command = [
        "prometheus-pushgateway", f"--web.listen-address={address}",
        f"--persistence.file={folder / 'pushgateway.data'}", "--persistence.interval=1s",
    ]  # fmt: skip
    with running(command, f"http://{address}/-/ready", folder):
        yield f"http://{address}"


@contextmanager
def monitoring(folder: Path, engines: Mapping[str, str], *, hold: str | None = None) -> Iterator[Monitoring]:
    """All of them together, scraping and evaluating every second.

    Args:
        engines: name → host:port of the engines to probe.
        hold: replaces every `for` of the rules, because a test cannot wait five minutes; but for this, the intervals
            and the addresses everything is as deployed.
    """
    require(*PROGRAMS)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        hook = stack.enter_context(webhook())
        gateway = stack.enter_context(pushgateway(folder))
        alertmanager = f"127.0.0.1:{free_port()}"
        (folder / "alertmanager.yml").write_text(_alertmanager_config(folder, hook))
        command = [
            "prometheus-alertmanager", f"--config.file={folder / 'alertmanager.yml'}", "--cluster.listen-address=",
            f"--web.listen-address={alertmanager}", f"--storage.path={folder / 'alertmanager'}",
        ]  # fmt: skip
        stack.enter_context(running(command, f"http://{alertmanager}/-/ready", folder))
        blackbox = f"127.0.0.1:{free_port()}"
        command = [
            "prometheus-blackbox-exporter", f"--config.file={MONITORING / 'blackbox.yml'}",
            f"--web.listen-address={blackbox}",
        ]  # fmt: skip
        stack.enter_context(running(command, f"http://{blackbox}/-/healthy", folder))
        address = f"127.0.0.1:{free_port()}"
        targets = {"pushgateway": gateway.removeprefix("http://"), "alertmanager": alertmanager, "prometheus": address}
        (folder / "prometheus.yml").write_text(_prometheus_config(folder, targets, blackbox, engines, hold))
        command = [
            "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
        ]  # fmt: skip
        stack.enter_context(running(command, f"http://{address}/-/ready", folder))
        yield Monitoring(Prometheus(f"http://{address}"), gateway, f"http://{alertmanager}", hook)


def _prometheus_config(
    folder: Path, targets: Mapping[str, str], blackbox: str, engines: Mapping[str, str], hold: str | None
) -> str:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    rules = folder / "rules"
    rules.mkdir(exist_ok=True)
    for path in (MONITORING / "rules").glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        for rule in [rule for group in content["groups"] for rule in group["rules"]]:
            if hold and "for" in rule:
                rule["for"] = hold
        (rules / path.name).write_text(yaml.safe_dump(content))
    config["rule_files"] = [str(rules / "*.yaml")]
    for scrape in config["scrape_configs"]:
        if scrape["job_name"] == "engines":
            scrape["relabel_configs"][-1]["replacement"] = blackbox
            scrape["static_configs"] = [{"targets": [at], "labels": {"engine": name}} for name, at in engines.items()]
        else:
            scrape["static_configs"] = [{"targets": [targets[scrape["job_name"]]]}]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [targets["alertmanager"]]}]}]
    return yaml.safe_dump(config)


def _alertmanager_config(folder: Path, hook: Webhook) -> str:
    (folder / "slack-webhook").write_text(hook.url)
    config = yaml.safe_load((MONITORING / "alertmanager.yml").read_text())
    config["global"]["slack_api_url_file"] = str(folder / "slack-webhook")
    for route in _routes(config["route"]):
        for name in {"group_wait", "group_interval"} & set(route):
            route[name] = "1s"
    # The greater alert, which holds the lesser ones back, comes before them: 10 s and 30 s in production.
    config["route"]["group_wait"] = "10s"
    return yaml.safe_dump(config)


def _routes(route: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield route
    for child in route.get("routes", []):
        yield from _routes(child)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).ok
    except requests.RequestException:
        return False
