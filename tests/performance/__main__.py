"""`make bench`: every figure beside its limit, in one run; a table here, JSON in build/bench/."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from marketdata import engines, settings
from marketdata.settings import CHECKOUT
from tests.engines.kubernetes.cluster import why_not
from tests.performance import (
    bench_alerts,
    bench_consume,
    bench_encode,
    bench_image,
    bench_lake,
    bench_load,
    bench_parse,
    bench_plugins,
    bench_pods,
    bench_publish,
    bench_run,
    bench_transform,
    bench_validate,
)

ROWS = 1_000_000
MEMORY_LIMIT = 2.0
"""Peak memory at four million rows over peak memory at one million."""


@dataclass(frozen=True)
class Figure:
    """One line of the table: ours, the limit beside it, their ratio, and what it has to be."""

    name: str
    ours: str
    beside: str
    ratio: float
    target: str
    passed: bool


def at_least(name: str, ours: str, beside: str, ratio: float, target: float) -> Figure:
    return Figure(name, ours, beside, round(ratio, 2), f"≥ {target}", ratio >= target)


def at_most(name: str, ours: str, beside: str, ratio: float, target: float) -> Figure:
    return Figure(name, ours, beside, round(ratio, 2), f"≤ {target}", ratio <= target)


def memory(step: str, one: float, four: float) -> Figure:
    return at_most(
        f"{step}: memory, 1 to 4 million rows", f"{four:,.0f} MB", f"{one:,.0f} MB", four / one, MEMORY_LIMIT
    )


def validate() -> tuple[Any, list[Figure]]:
    found = bench_validate.run(ROWS)
    seconds = found["seconds"]
    alone = min(seconds["gx_object"], seconds["gx_str"])
    scan = f"one DuckDB scan {seconds['duckdb_scan']:.2f} s"
    return found, [
        at_most(
            "validate 1 M rows against GX alone on ready pandas", f"{found['rows_per_second']:,} rows/s",
            f"GX {alone:.2f} s, {scan}", found["ratio"], found["limit"],
        ),
        memory("validate", found["peak_mb"], found["peak_mb_of_four_times"]),
    ]  # fmt: skip


def encode() -> tuple[Any, list[Figure]]:
    found = bench_encode.run(ROWS // 10)
    ours, *others = found["encode"].items()
    best = max(others, key=lambda one: one[1] or 0)
    rest = [(name, rate) for name, rate in others if rate is not None and name != best[0]]
    classic, *ways = found["client"].items()
    return found, [
        at_least(
            "rows to messages, against the fastest other encoder", f"{ours[1]:,} rows/s",
            f"{best[0]} {best[1]:,} rows/s", ours[1] / best[1], 1.0,
        ),
        *(Figure(f"rows to messages: {name}", f"{rate:,} rows/s", "", 0, "printed", True) for name, rate in rest),
        *(
            Figure(f"ready bytes to the client: {name}", f"{rate:,} messages/s", f"{classic[0]} {classic[1]:,}",
                   round(rate / classic[1], 2), "printed", True)
            for name, rate in ways
        ),
    ]  # fmt: skip


def publish() -> tuple[Any, list[Figure]]:
    one, four = (bench_publish.run(rows, settings.load()) for rows in (ROWS, 4 * ROWS))
    three = bench_publish.run_three(settings.load())
    burst = three["burst"]["seconds"]
    others = three["others"].items()
    ratios = three["ratios"]
    return {"one": one, "four": four, "three": three}, [
        at_least(
            "publish 1 M rows against a bare producer loop", f"{one['publish']['rows_per_second']:,.0f} rows/s",
            f"{one['bare']['rows_per_second']:,.0f} rows/s", one["ratio"], 0.6,
        ),
        memory("publish", one["publish"]["peak_megabytes"], four["publish"]["peak_megabytes"]),
        at_least(
            "three brokers, one transaction: publish 1 M rows against a bare loop of `produce`",
            f"{three['publish']['rows_per_second']:,.0f} rows/s",
            f"{three['bare']['rows_per_second']:,.0f} rows/s; ratios {min(ratios):.2f} to {max(ratios):.2f}",
            three["ratio"], 0.8,
        ),
        at_most(
            "three brokers: burst of 100,000, all of publishing", f"{burst[len(burst) // 2]:.2f} s",
            f"3 s; {burst[0]:.2f} to {burst[-1]:.2f}", burst[len(burst) // 2] / 3, 1.0,
        ),
        *(
            Figure(f"three brokers, {bench_publish.OTHER_BYTES} bytes: {name}",
                   "not installed" if rate is None else f"{rate:,.0f} messages/s", "", 0, "printed", True)
            for name, rate in others
        ),
    ]  # fmt: skip


def load() -> tuple[Any, list[Figure]]:
    one, four = (bench_load.run(rows, settings.load()) for rows in (ROWS, 4 * ROWS))
    return {"one": one, "four": four}, [
        at_least(
            "load 1 M rows against a bare pyiceberg append", f"{one['load']['rows_per_second']:,} rows/s",
            f"{one['bare_append']['rows_per_second']:,} rows/s", one["ratio"], one["limit"],
        ),
        memory("load", one["load"]["peak_mb"], four["load"]["peak_mb"]),
    ]  # fmt: skip


def lake() -> tuple[Any, list[Figure]]:
    found = bench_lake.run(settings.load())
    figures = [
        at_least(
            f"load {rows:,} rows through Trino against a bare MERGE",
            f"{one['rows_per_second']['load']:,} rows/s", f"{one['rows_per_second']['bare_merge']:,} rows/s",
            one["ratio"], one["limit"],
        )
        for rows, one in found["loads"].items()
    ]  # fmt: skip
    for name, says in (("insert_select", "INSERT … SELECT"), ("pyiceberg_append", "a bare pyiceberg append")):
        beside = found["loads"][ROWS]["rows_per_second"]
        ratio = round(beside["load"] / beside[name], 2)
        figures.append(
            Figure(f"the same 1 M rows: {says}", f"{beside['load']:,} rows/s", f"{beside[name]:,} rows/s", ratio,
                   "printed", True)
        )  # fmt: skip
    values = found["loads"][ROWS]["values_rows_per_second"]
    figures.append(Figure("INSERT … VALUES", "", f"{values:,} rows/s", 0, "printed", True))
    kept, alone = found["many"]["maintained"], found["many"]["left_alone"]
    few, many = kept["after_loads"][100], kept["after_loads"][bench_lake.DAILY_LOADS]
    loads = f"{bench_lake.DAILY_LOADS:,} daily loads"
    end = alone["after_loads"][bench_lake.DAILY_LOADS]
    figures.append(
        at_most(f"planning after {loads} with maintenance, against after 100", f"{many['planning_ms']} ms",
                f"{few['planning_ms']} ms; left alone {end['planning_ms']} ms",
                many["planning_ms"] / few["planning_ms"], 1.5)
    )  # fmt: skip
    months = bench_lake.DAILY_LOADS / 30.4
    figures.append(
        at_most(f"files a month after {loads} with maintenance", f"{many['files']} files",
                f"left alone {end['files']:,} files", many["files"] / months, 2)
    )  # fmt: skip
    p95 = kept["p95_seconds"]
    for name, says, limit in (
        ("one_day", "one day of one commodity", bench_lake.ONE_DAY_SECONDS),
        ("thirty_days", "an aggregate of 30 days", bench_lake.THIRTY_DAYS_SECONDS),
    ):
        figures.append(at_most(f"{says} during loads, p95", f"{p95[name]:.2f} s", f"{limit:g} s", p95[name] / limit, 1))
    return found, figures


def consume() -> tuple[Any, list[Figure]]:
    found = bench_consume.run(ROWS, settings.load())
    ticks, day = found["ticks"], found["day"]
    wrong = day["lost"] + day["not_sent"] + day["twice"] + abs(day["sum_off"])
    early, late = day["resident_megabytes"].values()
    figures = [
        at_least(
            "consume and aggregate a backlog of 1 M, against 35,000 messages/s",
            f"{ticks['ours']['per_second']:,.0f} messages/s",
            f"only counting {ticks['bare']['per_second']:,.0f} messages/s", ticks["ours"]["per_second"] / 35_000, 1.0,
        ),
        *(
            at_most(f"lag at a steady {rate:,} messages/s, p99", f"{steady['p99']:.2f} s",
                    f"1 s; sent {steady['rate']:,}/s", steady["p99"], 1.0)
            for rate in bench_consume.STEADY_RATES
            for steady in [found[f"steady_{rate}"]]
        ),
        at_most(
            f"a day's 1 M messages in {bench_consume.DAY_SECONDS} s: longest lag", f"{day['max']:.2f} s",
            f"5 s; p99 {day['p99']:.2f} s", day["max"] / 5, 1.0,
        ),
        Figure(
            "the day: lost, stored twice or not sent, by set; sum of prices off by",
            f"{day['lost']}, {day['twice'] + day['not_sent']}; {day['sum_off'] / 1e6:g}", "", 0, "0", wrong == 0,
        ),
        at_most("the day: resident memory, last quarter", f"{late} MB", f"second {early} MB", late / early, 1.25),
    ]  # fmt: skip
    return found, figures


def transform() -> tuple[Any, list[Figure]]:
    one, four = (bench_transform.run(rows) for rows in (ROWS, 4 * ROWS))
    figures = []
    for step in ("extract", "transform"):
        ours, four_times = one[step], four[step]
        beside = f"{one[ours['beside']]['rows_per_second']:,} rows/s"
        ratio = ours["rows_per_second"] / one[ours["beside"]]["rows_per_second"]
        says = f"{step} 1 M rows against {ours['beside'].replace('_', ' ')}"
        figures.append(at_least(says, f"{ours['rows_per_second']:,} rows/s", beside, ratio, 0))
        figures.append(memory(step, ours["peak_mb"], four_times["peak_mb"]))
    return {"one": one, "four": four}, figures


def parse() -> tuple[Any, list[Figure]]:
    found = bench_parse.run()
    return found, [
        at_most(f"parse {name}, after Airflow's imports", f"{seconds:.2f} s", "0.2 s", seconds / 0.2, 1.0)
        for name, seconds in found.items()
    ]


def run() -> tuple[Any, list[Figure]]:
    found = bench_run.run()
    more = found["second_run"] - found["floor"]
    return found, [
        Figure(
            "second `make run` over the same DAG with empty commands", f"{found['second_run']:.1f} s",
            f"{found['floor']:.1f} s", round(more, 1), "≤ 8 s more", more <= 8,
        ),
        Figure("first `make run`, engines to start", f"{found['first_run']:.1f} s", "", 0, "printed", True),
    ]  # fmt: skip


def plugins() -> tuple[Any, list[Figure]]:
    if shutil.which("prometheus-pushgateway") is None:
        says = "both plugins: the Debian package prometheus-pushgateway is not installed"
        return {}, [Figure(says, "not measured", "", 0, "printed", True)]
    found = bench_plugins.measure()
    figures = []
    for dag_id in bench_plugins.REAL_RUNS:
        for thing, table in (("run", "dag_run"), ("task", "task_instance")):
            ours, beside = (found[arm][dag_id][table] for arm in ("with", "without"))
            ratio = round(ours["median"] / beside["median"], 2)
            says = f"a {thing} that {dag_id}, with both plugins against without"
            figures.append(Figure(says, _spread(ours), _spread(beside), ratio, "printed", True))
    for thing, says in (
        ("task", "both plugins in the process of a task"),
        ("run", "both plugins in the scheduler, a run"),
    ):
        for end, spread in found[thing].items():
            figures.append(Figure(f"{says} that {end}", _spread(spread), "", 0, "printed", True))
    return found, figures


def _spread(milliseconds: dict[str, float]) -> str:
    return f"{milliseconds['median']:,.1f} ms, p99 {milliseconds['p99']:,.1f}"


def alerts() -> tuple[Any, list[Figure]]:
    found = bench_alerts.run()
    limit = bench_alerts.LIMIT_SECONDS
    return found, [
        Figure(
            f"failure to Slack, {row['runs']} runs: {way.replace('_', ' ')}", f"p50 {row['p50']} s, max {row['max']} s",
            "", round(row["max"] / limit, 2), f"≤ {limit} s, once", row["max"] <= limit and row["each_told_once"],
        )
        for way, row in found.items()
    ]  # fmt: skip


def pods() -> tuple[Any, list[Figure]]:
    if reason := why_not():
        return {}, [Figure(f"pods on a cluster: {reason}", "not measured", "", 0, "printed", True)]
    found = bench_pods.run()
    full = f"pods a minute until {found['pods_until_full']} fill the node"
    return found, [
        at_most(
            "a task as a pod over the bare pod", f"{found['operator']} s",
            f"bare {found['bare']} s, stock operator {found['stock']} s", found["operator"] / found["bare"], 1.2,
        ),
        Figure("a run of five pods, trigger to success", f"{found['five_in_a_row']} s", "", 0, "printed", True),
        Figure(full, str(found["pods_a_minute"]), "", 0, "printed", True),
    ]  # fmt: skip


def image() -> tuple[Any, list[Figure]]:
    if reason := why_not():
        return {}, [Figure(f"the task image: {reason}", "not measured", "", 0, "printed", True)]
    found = bench_image.run()
    size, small = found["megabytes"], found["compressed_megabytes"]
    empty, *ours = found["seconds_to_first_line"].items()
    return found, [
        Figure(
            "task image, compressed", f"{small['image']:,.0f} MB", f"base {small['image'] - small['added']:,.0f} MB",
            round(small["image"] / (small["image"] - small["added"]), 1), "printed", True,
        ),
        Figure("task image, unpacked", f"{size['image']:,.0f} MB", "", 0, "printed", True),
        *(
            Figure(f"container start to first line: {name}", f"{seconds:.2f} s", f"{empty[0]} {empty[1]:.2f} s",
                   round(seconds / empty[1], 1), "printed", True)
            for name, seconds in ours
        ),
    ]  # fmt: skip


BENCHES: dict[str, Callable[[], tuple[Any, list[Figure]]]] = {
    "parse": parse,
    "transform": transform,
    "validate": validate,
    "encode": encode,
    "publish": publish,
    "load": load,
    "lake": lake,
    "consume": consume,
    "run": run,
    "plugins": plugins,
    "alerts": alerts,
    "pods": pods,
    "image": image,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("only", nargs="*", choices=[*BENCHES, []], help="default: all")
    chosen = parser.parse_args().only or list(BENCHES)
    engines.up(settings.load(), ["kafka", "postgres"])
    settings.load.cache_clear()
    folder = CHECKOUT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=150)
    table = Table("", "ours", "beside", "ratio", "target", "", header_style="bold", box=None)
    failed = False
    for name in chosen:
        with console.status(name):
            details, figures = BENCHES[name]()
        (folder / f"{name}.json").write_text(json.dumps(_record(details, figures), indent=1, default=str))
        for figure in figures:
            failed |= not figure.passed
            verdict = "[green]pass[/]" if figure.passed else "[red]FAIL[/]"
            table.add_row(figure.name, figure.ours, figure.beside, f"{figure.ratio:g}", figure.target, verdict)
    console.print(table)
    console.print(f"JSON: {folder}")
    return 1 if failed else 0


def _record(details: Any, figures: list[Figure]) -> dict[str, Any]:
    return {
        "when": datetime.now(UTC).isoformat(),
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "load": os.getloadavg(),
        "figures": [asdict(figure) for figure in figures],
        "details": details,
    }


if __name__ == "__main__":
    sys.exit(main())
