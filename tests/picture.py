"""The picture of the pipeline's dashboard: real runs, a real Prometheus, drawn by `deploy/monitoring/picture.py`.

    .venv/bin/python -m tests.picture docs/pictures/commodity-pipeline.svg

Engines, Prometheus and Pushgateway live in a temporary folder and end with it (Debian packages: see
`tests/engines/monitoring.py`). One of the runs fails, as half of its prices are none.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.engines.monitoring import MONITORING, monitoring
from tests.laptop import Laptop
from tests.waiting import until

BOARD = MONITORING / "dashboards" / "commodity-price-pipeline.json"
JOB = "{job='commodity-price-pipeline'}"

DAYS = (("1986-01-01", "2010-01-01"), ("2010-01-01", "2016-01-01"), ("2016-01-01", "2018-01-01"), None,
        ("2018-01-01", "2018-07-01"), ("2018-07-01", "2019-01-04"))  # fmt: skip
"""First day and day after the last one of each run; None: the run that fails."""

BAD_DATA = 65
MAPPING = """
entries:
  - files: prices.csv
    source: picture
    date: {column: Date, format: "%Y-%m-%d"}
    price: Price
    commodity: Oil
    series: WTI
    frequency: daily
    currency: USD
    unit: bbl
"""
PRICES = "Date,Price\n" + "".join(f"2018-12-{day:02d},{'n/a' if day % 2 else 50}\n" for day in range(1, 29))


def draw(target: Path) -> None:
    """Run, scrape, draw."""
    with tempfile.TemporaryDirectory(prefix="marketdata-picture-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "bad").mkdir()
        (folder / "bad" / "mapping.yaml").write_text(MAPPING)
        (folder / "bad" / "prices.csv").write_text(PRICES)
        bad = {"MARKETDATA_SOURCES": "files", "MARKETDATA_FILES": str(folder / "bad")}
        laptop = Laptop(folder / "home")
        with monitoring(folder / "monitoring", {}) as watching:
            laptop.variables["PUSHGATEWAY_URL"] = watching.gateway
            try:
                began = 0.0
                for number, days in enumerate(DAYS, 1):
                    if days is None:
                        laptop.marketdata("run", "--start", "2018-12-01", "--end", "2019-01-01", code=BAD_DATA, **bad)
                    else:
                        laptop.marketdata("run", "--start", days[0], "--end", days[1])
                    runs = f"batch_jobs_total{JOB}"
                    until("the run is scraped", lambda n=number, q=runs: watching.prometheus.value(q) == n)
                    began = began or time.time() - 10  # before, the engines had to start
                    sys.stderr.write(f"run {number} of {len(DAYS)}\n")
                target.parent.mkdir(parents=True, exist_ok=True)
                seconds = str(int(time.time() - began) + 2)
                command = [sys.executable, MONITORING / "picture.py", BOARD, watching.prometheus.url, target]
                subprocess.run([*command, "--seconds", seconds], check=True)
            finally:
                laptop.marketdata("engines", "down")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    draw(parser.parse_args().target)
