"""What the monitoring chart takes from deploy/monitoring: ``python helm-values/kube_prometheus_stack.py [--check]``.

Scraping, rules and routing are written once, as Prometheus and Alertmanager read them and promtool tests them; this
writes them as values of the chart. `--check` only says whether `kube-prometheus-stack.generated.yaml` is as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).resolve().parents[1] / "deploy" / "monitoring"
WRITTEN = Path(__file__).with_name("kube-prometheus-stack.generated.yaml")
HEADER = "# Written by kube_prometheus_stack.py from deploy/monitoring; never edited by hand.\n"


def generated() -> str:
    """The values, as text."""
    prometheus = _read("prometheus.yml")
    values = {
        "additionalPrometheusRulesMap": {
            path.stem.replace("_", "-"): _read(f"rules/{path.name}")
            for path in sorted((MONITORING / "rules").glob("*.yaml"))
        },
        "prometheus": {
            "prometheusSpec": {
                "scrapeInterval": prometheus["global"]["scrape_interval"],
                "evaluationInterval": prometheus["global"]["evaluation_interval"],
                "externalLabels": prometheus["global"]["external_labels"],
                "additionalScrapeConfigs": prometheus["scrape_configs"],
            }
        },
        "alertmanager": {"config": _read("alertmanager.yml")},
    }
    return HEADER + yaml.dump(values, Dumper=_Readable, sort_keys=False, width=120, allow_unicode=True)


class _Readable(yaml.SafeDumper):
    """Expressions of several lines stay several lines."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((MONITORING / name).read_text(encoding="utf-8"))
    return content


def main(arguments: list[str]) -> int:
    text = generated()
    if arguments == ["--check"]:
        return 0 if WRITTEN.exists() and WRITTEN.read_text(encoding="utf-8") == text else 1
    WRITTEN.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
