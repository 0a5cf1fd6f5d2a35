"""`make run`, and beside it Airflow's own floor: the same DAG, its commands empty."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from marketdata.settings import CHECKOUT, ENDPOINTS_VARIABLE

_EMPTY = '#!/bin/sh\necho "{}" > "$MARKETDATA_RESULT"\n'
_AIRFLOW = """
import json
from marketdata import engines, settings
print(json.dumps(engines.airflow_environment(settings.load())))
"""
_FLOOR = """
import sys
from pathlib import Path
from marketdata.orchestration import local, run
local.SCRIPTS = Path(sys.argv[1])
sys.exit(run.main([]))
"""


def run() -> dict[str, Any]:
    """Seconds of the first `make run`, of the second, and of the floor, on engines of their own; the best of two."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        environment = {
            **os.environ,
            "MARKETDATA_HOME": str(home),
            ENDPOINTS_VARIABLE: str(home / "engines/endpoints.json"),
        }
        try:
            first = _seconds(["make", "--silent", "run"], environment)
            second = min(_seconds(["make", "--silent", "run"], environment) for _ in range(2))
            floor = min(_floor(Path(folder), environment) for _ in range(2))
        finally:
            subprocess.run(["make", "--silent", "down"], env=environment, cwd=CHECKOUT, check=True, capture_output=True)
    return {"first_run": round(first, 1), "second_run": round(second, 1), "floor": round(floor, 1)}


def _floor(folder: Path, environment: dict[str, str]) -> float:
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    program = bin_ / "marketdata"
    program.write_text(_EMPTY)
    program.chmod(0o755)
    told = subprocess.run(
        [sys.executable, "-c", _AIRFLOW], env=environment, cwd=CHECKOUT, check=True, capture_output=True, text=True
    )
    airflow = json.loads(told.stdout)
    return _seconds([sys.executable, "-c", _FLOOR, str(bin_)], {**environment, **airflow})


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, cwd=CHECKOUT, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
