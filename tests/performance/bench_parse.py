"""Seconds a DAG file takes to parse, once Airflow's own imports are paid for."""

from __future__ import annotations

import json
import subprocess
import sys

from marketdata.settings import CHECKOUT

_CHILD = """
import json, os, sys, tempfile, time
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp()
sys.path.insert(0, "plugins")
import airflow.sdk
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
started = time.perf_counter()
with open(sys.argv[1]) as file:
    exec(compile(file.read(), sys.argv[1], "exec"), {"__name__": "dag", "__file__": sys.argv[1], "__doc__": ""})
print(json.dumps(time.perf_counter() - started))
"""


def run() -> dict[str, float]:
    """Seconds per DAG file, the best of three fresh processes."""
    found = {}
    for file in sorted((CHECKOUT / "dags").glob("*.py")):
        seconds = []
        for _ in range(3):
            child = subprocess.run(
                [sys.executable, "-c", _CHILD, str(file)], capture_output=True, text=True, check=True, cwd=CHECKOUT
            )
            seconds.append(float(json.loads(child.stdout.splitlines()[-1])))
        found[file.name] = min(seconds)
    return found


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
