"""Extract from each folder in a process of its own, and say how that ended and how much memory it took.

The other side of `test_bombs.py`: a fresh process, because a child's peak begins with what its parent holds.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from datetime import date
from pathlib import Path

from marketdata.batches import Interval
from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import MarketdataError
from marketdata.settings import Settings
from marketdata.tasks.extract import extract

MOST_BYTES = 6 * 2**30
"""Of address space: what would take more fails here at once, and not with the machine."""

UNFORESEEN = 70


HEAVY = (
    "duckdb",
    "jsonschema",
    "msgspec",
    "obstore",
    "pyarrow.csv",
    "pyarrow.parquet",
    "python_calamine",
    "requests",
    "yaml",
)
"""Imported once, for all children."""


def main(bombs: dict[str, dict[str, str]]) -> None:
    for module in HEAVY:
        importlib.import_module(module)
    for name, overrides in bombs.items():
        read, write = os.pipe()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(read)
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            code, says = _extract(overrides)
            os.write(write, says[:4000].encode(errors="replace"))
            os._exit(code)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            says = pipe.read().decode()
        _, status, used = os.wait4(child, 0)
        ended = {
            "exit_code": os.waitstatus_to_exitcode(status),
            "says": says,
            "megabytes": used.ru_maxrss // 1024,
            "seconds": time.monotonic() - began,
        }
        print(json.dumps([name, ended]), flush=True)


def _extract(overrides: dict[str, str]) -> tuple[int, str]:
    try:
        days = Interval(date(1, 1, 1), date(9999, 12, 31))
        batch = extract(
            Settings(**overrides),  # type: ignore[arg-type]
            COMMODITY_PRICES, days, lookback_days=0, run_id="manual__1", attempt_of_run=0,
        )  # fmt: skip
    except MarketdataError as error:
        return error.exit_code, str(error)
    except BaseException as error:
        return UNFORESEEN, f"{type(error).__name__}: {error}"
    return 0, f"{batch.manifest.rows} rows"


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
