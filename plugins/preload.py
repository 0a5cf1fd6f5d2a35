"""Imports the pod operator once, in the scheduler: the processes it forks for tasks then have it."""

from __future__ import annotations

import sys

from airflow.plugins_manager import AirflowPlugin

if "scheduler" in sys.argv:
    import marketdata.orchestration.pod  # noqa: F401


class PreloadPlugin(AirflowPlugin):
    name = "marketdata_preload"
