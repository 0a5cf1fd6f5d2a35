"""Figures of injected faults: collected in ``build/faults/``, shown in `docs/reference/faults.md`.

``python -m tests.faults.figures`` writes the page from what `make test-faults` has measured.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from marketdata.settings import CHECKOUT

FOLDER = CHECKOUT / "build" / "faults"
PAGE = CHECKOUT / "docs" / "reference" / "faults.md"


def record(fault: str, seed: int, **figures: float) -> None:
    """Keep the figures of one run of a fault; a later run of the same seed replaces them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    content = {
        "fault": fault,
        "seed": seed,
        "when": datetime.now(UTC).isoformat(),
        "commit": _commit(),
        "load": os.getloadavg()[0],
        **figures,
    }
    (FOLDER / f"{fault.replace(' ', '-')}-{seed}.json").write_text(json.dumps(content, indent=1))


def page(runs: list[dict[str, Any]]) -> str:
    """The page about these runs."""
    by_fault: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: int(run["seed"])):
        by_fault[run["fault"]].append(run)
    lines = [
        "# Faults",
        "",
        "What was done to three brokers and to a consumer group of three while batches were published, consumed and",
        "read, and how soon the next batch was committed (*published*) and then in the consumer's tables (*counted*):",
        "seconds from the fault, which lasted all the while, of each run. After every run: batches = ledger = topic =",
        "what a concurrent `read_committed` reader saw = windows = topic of aggregates, and what cannot be read",
        "= dead letters, by identities and by the sum of prices to the last digit; nothing twice, no batch visible in",
        "part within a partition. Written by `make test-faults`.",
        "",
        f"{platform.system()}, {os.cpu_count()} CPUs; {_span(runs)}. Load is that of the machine in the minute before.",
        "",
        "| fault | published | p50 | max | counted | p50 | max | bound "
        "| partitions of one batch apart, max | tries, max | load, max |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fault, of_fault in sorted(by_fault.items()):
        worst = {name: max(run[name] for run in of_fault) for name in ("apart_seconds", "tries", "load")}
        lines.append(
            f"| {fault} | {_shown(of_fault, 'published_seconds')} | {_shown(of_fault, 'counted_seconds')} "
            f"| {of_fault[0]['bound_seconds']:.0f} | {worst['apart_seconds']:.2f} s | {worst['tries']:.0f} "
            f"| {worst['load']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _shown(runs: list[dict[str, Any]], name: str) -> str:
    """Every figure in the order of the seeds, their median and the greatest."""
    seconds = [run[name] for run in runs]
    each = ", ".join(f"{one:.1f}" for one in seconds)
    return f"{each} | {statistics.median(seconds):.1f} | {max(seconds):.1f}"


def main() -> None:
    runs = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    if not runs:
        sys.exit(f"error: {FOLDER} holds no figures\n  fix: make test-faults")
    PAGE.write_text(page(runs))


def _span(runs: list[dict[str, Any]]) -> str:
    days = sorted({run["when"][:10] for run in runs})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _commit() -> str:
    told = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=CHECKOUT)
    return told.stdout.strip()


if __name__ == "__main__":
    main()
