"""What run metrics cost the scheduler: how long it waits when a run begins and when it ends.

``python -m tests.performance.bench_plugins`` needs the Debian package prometheus-pushgateway; it starts a PostgreSQL.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from marketdata import engines
from marketdata.observability.outcomes import Outcome
from marketdata.observability.push import BUDGET_SECONDS, Courier
from marketdata.settings import ENDPOINTS_VARIABLE, Settings

RUNS = 200
DAG = "commodity-price-pipeline"


class _NoAirflow:
    def finished(self, since: datetime) -> list[Outcome]:
        return []

    def dags(self) -> list[str]:
        return []


def run(settings: Settings, runs: int = RUNS) -> dict[str, Any]:
    """Milliseconds a caller waits: median, p99, max.

    Args:
        settings: with `postgres_dsn` and `pushgateway_url` of servers that run.
    """
    logging.getLogger("marketdata").setLevel(logging.ERROR)
    courier = Courier(settings, _NoAirflow())
    began = time.perf_counter()
    courier.started()
    start = time.perf_counter() - began
    refused = Courier(settings.model_copy(update={"pushgateway_url": "http://127.0.0.1:9"}), _NoAirflow())
    return {
        "runs": runs,
        "process starts, ms": round(start * 1000, 1),
        "run begins": _timed(courier, lambda n: courier.running(DAG), runs),
        "run ends": _timed(courier, lambda n: courier.ended(_outcome(n)), runs),
        "run ends, told again": _timed(courier, lambda n: courier.ended(_outcome(n)), runs),
        "run ends, no gateway": _timed(refused, lambda n: refused.ended(_outcome(runs + n)), runs),
    }


def _outcome(number: int) -> Outcome:
    ended = datetime.now(UTC)
    return Outcome(DAG, f"bench-{number}", 0, "success", ended - timedelta(seconds=60), ended)


def _timed(courier: Courier, work: Callable[[int], object], runs: int) -> dict[str, float]:
    waited = []
    for number in range(runs):
        courier._allowance = BUDGET_SECONDS  # runs minutes apart, not one after the other
        began = time.perf_counter()
        work(number)
        waited.append((time.perf_counter() - began) * 1000)
    waited.sort()
    at = {"median": statistics.median(waited), "p99": waited[int(runs * 0.99) - 1], "max": waited[-1]}
    return {name: round(value, 2) for name, value in at.items()}


def main() -> None:
    """Measure on a PostgreSQL and a Pushgateway of its own."""
    from tests.engines.monitoring import pushgateway

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ |= {"MARKETDATA_HOME": folder, ENDPOINTS_VARIABLE: f"{folder}/engines/endpoints.json"}
        try:
            settings = engines.up(Settings(), ["postgres"])
            with pushgateway(Path(folder) / "pushgateway") as address:
                found = run(settings.model_copy(update={"pushgateway_url": address}))
            print(json.dumps(found, indent=1))
        finally:
            engines.down(Settings())


if __name__ == "__main__":
    main()
