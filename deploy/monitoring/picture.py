"""Draws a dashboard without Grafana: the same panels, the same queries, asked of a Prometheus now, as an SVG.

    python deploy/monitoring/picture.py dashboards/overview.json http://127.0.0.1:9090 overview.svg --seconds 3600

It is a drawing of the data, not a screenshot: Grafana cannot be had from a package registry.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

COLUMN, ROW, GAP, HEAD = 50, 26, 8, 30
COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")
STATES = {"green": "#2f855a", "orange": "#c05621", "red": "#c53030", "blue": "#2b6cb0"}


def draw(board: dict[str, Any], prometheus: str, seconds: int) -> str:
    """The board as SVG, its graphs over the last `seconds`."""
    width = 24 * COLUMN + GAP
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) * ROW + HEAD + 3 * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#f7fafc"/>',
        f'<text x="{GAP}" y="24" font-size="18" font-weight="600">{escape(board["title"])}</text>',
    ]
    for panel in board["panels"]:
        parts += _panel(panel, prometheus, seconds)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: dict[str, Any], prometheus: str, seconds: int) -> Iterator[str]:
    place = panel["gridPos"]
    x, y = place["x"] * COLUMN + GAP, place["y"] * ROW + HEAD + GAP
    wide, high = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
    yield f'<g transform="translate({x},{y})"><rect width="{wide}" height="{high}" fill="#fff" stroke="#cbd5e0"/>'
    yield f'<text x="10" y="18" font-size="12" font-weight="600" fill="#2d3748">{escape(panel["title"])}</text>'
    if panel["type"] == "stat":
        yield from _stat(panel, prometheus, wide, high)
    elif panel["type"] == "table":
        yield from _table(panel, prometheus, high)
    else:
        yield from _graph(panel, prometheus, seconds, wide, high)
    yield "</g>"


def _stat(panel: dict[str, Any], prometheus: str, wide: int, high: int) -> Iterator[str]:
    found = _ask(prometheus, "query", query=panel["targets"][0]["expr"])
    value = float(found[0]["value"][1]) if found else None
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    reached = [s["color"] for s in steps if s["value"] is None or (value is not None and value >= s["value"])]
    meanings = {k: v for m in panel["fieldConfig"]["defaults"].get("mappings", []) for k, v in m["options"].items()}
    text = meanings.get(f"{value:g}", {}).get("text") if value is not None else None
    text = text or _shown(value, panel["fieldConfig"]["defaults"]["unit"])
    yield (
        f'<text x="{wide / 2}" y="{high / 2 + 20}" font-size="30" text-anchor="middle" '
        f'fill="{STATES.get(reached[-1], "#2d3748")}">{escape(text)}</text>'
    )


def _table(panel: dict[str, Any], prometheus: str, high: int) -> Iterator[str]:
    rows = _ask(prometheus, "query", query=panel["targets"][0]["expr"])
    lines: dict[str, list[str]] = {}
    for row in rows:
        labels = {
            name: text for name, text in row["metric"].items() if name not in ("__name__", "instance", "namespace")
        }
        name = labels.pop("commodity", "") or labels.pop("job", "")
        lines.setdefault(name, []).append(
            f"{labels.get('phase', '')} {_shown(float(row['value'][1]), 'short')}".strip()
        )
    for number, (name, cells) in enumerate(sorted(lines.items())[: (high - 30) // 18]):
        yield f'<text x="10" y="{40 + 18 * number}" font-size="12">{escape(name)}</text>'
        text = escape("   ".join(sorted(cells)))
        yield f'<text x="210" y="{40 + 18 * number}" font-size="12" fill="#4a5568">{text}</text>'


def _graph(panel: dict[str, Any], prometheus: str, seconds: int, wide: int, high: int) -> Iterator[str]:
    end = time.time()
    series = []
    for target in panel["targets"]:
        span = {"start": end - seconds, "end": end, "step": max(1, seconds // 200)}
        for found in _ask(prometheus, "query_range", query=target["expr"], **span):
            legend = target["legendFormat"]
            for name, text in found["metric"].items():
                legend = legend.replace(f"{{{{{name}}}}}", text)
            series.append((legend, [(float(at), float(value)) for at, value in found["values"]]))
    top = max((value for _, points in series for _, value in points), default=1) or 1
    left, bottom = 60, high - 34
    for share in (0.0, 0.5, 1.0):
        level = bottom - share * (bottom - 34)
        yield f'<line x1="{left}" x2="{wide - 10}" y1="{level}" y2="{level}" stroke="#e2e8f0"/>'
        text = escape(_shown(top * share, panel["fieldConfig"]["defaults"]["unit"]))
        yield f'<text x="{left - 6}" y="{level + 4}" font-size="10" text-anchor="end" fill="#718096">{text}</text>'
    across, up = (wide - 10 - left) / seconds, (bottom - 34) / top
    for number, (legend, points) in enumerate(series[: len(COLORS)]):
        path = " ".join(f"{left + (at - end + seconds) * across:.1f},{bottom - value * up:.1f}" for at, value in points)
        yield f'<polyline points="{path}" fill="none" stroke="{COLORS[number]}" stroke-width="1.5"/>'
        at = left + number * (wide - left) / min(len(series), len(COLORS))
        yield f'<text x="{at}" y="{high - 10}" font-size="11" fill="{COLORS[number]}">{escape(legend)}</text>'


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "no data"
    if unit == "percentunit":
        return f"{value:.2%}"
    if unit == "bool_on_off":
        return "on" if value >= 1 else "off"
    if unit == "s":
        return (
            f"{value / 3600:.1f} h" if value >= 5400 else f"{value / 60:.1f} min" if value >= 90 else f"{value:.1f} s"
        )
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def _ask(prometheus: str, path: str, **parameters: Any) -> Any:
    address = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - the address a person gave
        return json.load(answer)["data"]["result"]


def main() -> None:
    """Write the picture of one board."""
    parser = argparse.ArgumentParser(description="Draw a dashboard from the data of a Prometheus.")
    parser.add_argument("board", type=Path)
    parser.add_argument("prometheus")
    parser.add_argument("target", type=Path)
    parser.add_argument("--seconds", type=int, default=3600)
    chosen = parser.parse_args()
    chosen.target.write_text(draw(json.loads(chosen.board.read_text()), chosen.prometheus, chosen.seconds))


if __name__ == "__main__":
    main()
