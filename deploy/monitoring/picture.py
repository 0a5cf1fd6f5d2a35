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
from math import isfinite
from pathlib import Path
from typing import Any

COLUMN, ROW, GAP, HEAD = 50, 26, 8, 30
COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")
PHASES = ("extracted", "quarantined", "published", "loaded")
STATES = {"green": "#2f855a", "orange": "#c05621", "red": "#c53030", "blue": "#2b6cb0"}


def draw(board: dict[str, Any], prometheus: str, seconds: int) -> str:
    """The board as SVG, its graphs over the last `seconds`."""
    width = 24 * COLUMN + GAP
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]) * ROW + HEAD + 3 * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif"><title>{escape(board["title"])}</title>',
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
        yield from _table(panel, prometheus, wide, high)
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


def _table(panel: dict[str, Any], prometheus: str, wide: int, high: int) -> Iterator[str]:
    """One line for each commodity or job, one column for each phase."""
    cells: dict[str, dict[str, float]] = {}
    for row in _ask(prometheus, "query", query=panel["targets"][0]["expr"]):
        labels = row["metric"]
        name = labels.get("commodity") or labels.get("job", "")
        cells.setdefault(name, {})[labels.get("phase", "")] = float(row["value"][1])
    columns = sorted({column for line in cells.values() for column in line}, key=_place)
    right = {column: wide - 12 - (len(columns) - 1 - number) * 96 for number, column in enumerate(columns)}
    for column, x in right.items():
        yield f'<text x="{x}" y="42" font-size="11" text-anchor="end" fill="#718096">{escape(column)}</text>'
    for number, (name, line) in enumerate(sorted(cells.items())[: (high - 50) // 20]):
        y = 64 + 20 * number
        yield f'<line x1="10" x2="{wide - 10}" y1="{y - 15}" y2="{y - 15}" stroke="#e2e8f0"/>'
        yield f'<text x="10" y="{y}" font-size="12">{escape(name)}</text>'
        for column, value in line.items():
            yield f'<text x="{right[column]}" y="{y}" font-size="12" text-anchor="end">{_shown(value, "short")}</text>'


def _place(phase: str) -> tuple[int, str]:
    """A column's place: phases in the order a record passes them, others behind."""
    return (PHASES.index(phase) if phase in PHASES else len(PHASES), phase)


def _graph(panel: dict[str, Any], prometheus: str, seconds: int, wide: int, high: int) -> Iterator[str]:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    end, step = time.time(), max(1, seconds // 200)
    series = []
    for target in panel["targets"]:
        span = {"start": end - seconds, "end": end, "step": step}
        for found in _ask(prometheus, "query_range", query=target["expr"], **span):
            legend = target["legendFormat"]
            for name, text in found["metric"].items():
                legend = legend.replace(f"{{{{{name}}}}}", text)
            points = [(float(at), float(value)) for at, value in found["values"]]
            series.append((legend, list(_stretches([point for point in points if isfinite(point[1])], step))))
    series = sorted((legend, lines) for legend, lines in series if lines)
    top = max((value for _, lines in series for line in lines for _, value in line), default=1) or 1
    left, bottom = 60, high - 46
    for share in (0.0, 0.5, 1.0):
        level = bottom - share * (bottom - 34)
        yield f'<line x1="{left}" x2="{wide - 10}" y1="{level}" y2="{level}" stroke="#e2e8f0"/>'
        text = escape(_shown(top * share, unit))
        yield f'<text x="{left - 6}" y="{level + 4}" font-size="10" text-anchor="end" fill="#718096">{text}</text>'
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        text = "now" if share == 1 else f"−{_shown(seconds * (1 - share), 's')}"
        x = left + share * (wide - 10 - left)
        yield f'<text x="{x}" y="{bottom + 14}" font-size="10" text-anchor="{anchor}" fill="#718096">{text}</text>'
    across, up = (wide - 10 - left) / seconds, (bottom - 34) / top
    shown = series[: len(COLORS)]
    columns = min(len(shown), 3) or 1
    for number, (legend, lines) in enumerate(shown):
        # One line may lie on another: each is drawn narrower than the one below it.
        width = 1.5 + 1.2 * (len(shown) - 1 - number)
        for line in lines:
            path = " ".join(f"{left + (at - end + seconds) * across:.1f},{bottom - y * up:.1f}" for at, y in line)
            yield (
                f'<polyline points="{path}" fill="none" stroke="{COLORS[number]}" stroke-width="{width:.1f}" '
                'stroke-linejoin="round"/>'
            )
        x, y = left + number % columns * (wide - left) / columns, high - 18 + number // columns * 13
        yield f'<rect x="{x}" y="{y - 7}" width="10" height="4" fill="{COLORS[number]}"/>'
        yield f'<text x="{x + 15}" y="{y}" font-size="11" fill="#2d3748">{escape(legend)}</text>'


def _stretches(points: list[tuple[float, float]], step: int) -> Iterator[list[tuple[float, float]]]:
    """The lines between gaps, without the points that lie on level stretches."""
    line: list[tuple[float, float]] = []
    for at, value in points:
        if line and at - line[-1][0] > 1.5 * step:
            yield line
            line = []
        if len(line) > 1 and line[-2][1] == line[-1][1] == value:
            line[-1] = (at, value)
        else:
            line.append((at, value))
    if line:
        yield line


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "no data"
    if unit == "percentunit":
        return f"{value:.2%}"
    if unit == "cps":
        return f"{value:.2g}/s"
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
