"""`marketdata backfill`: past days through Airflow's own backfill, followed to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date

from marketdata import engines
from marketdata.settings import Settings
from marketdata.streaming import topics
from marketdata.tasks.screen import console
from marketdata.tasks.turns import turn


def backfill(settings: Settings, start: date, end: date, reprocess: str) -> int:
    """Start the engines with Airflow, create the backfill and wait for its runs.

    Returns:
        0 where every run succeeded.
    """
    screen = console()
    with turn(settings, screen), screen.status("starting the engines") as status:
        settings = engines.up(settings, ["kafka", "postgres", "airflow"], say=status.update)
        topics.apply(settings)
    command = [sys.executable, "-m", "marketdata.orchestration.backfill"]
    days = ["--from", str(start), "--to", str(end), "--reprocess", reprocess]
    return subprocess.run(
        [*command, *days], env={**os.environ, **engines.airflow_environment(settings)}, check=False
    ).returncode
