"""What a task costs as a pod on a real cluster: beside the bare pod, and beside the provider's own operator."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from marketdata import settings
from marketdata.orchestration import policy
from marketdata.settings import CHECKOUT, Settings
from tests.engines.installation import FINAL, installation
from tests.engines.kubernetes import build
from tests.engines.kubernetes.cluster import Cluster, cluster
from tests.engines.kubernetes.objects import credentials, hardened
from tests.kubernetes import charts
from tests.waiting import until

REPEATS = 5
RUNS = 3
PODS = 115
"""More than a node takes."""

IMAGE = "localhost/marketdata-bench:1"
COMMAND = """#!/usr/bin/python3
import os, pathlib
pathlib.Path(os.environ["MARKETDATA_RESULT"]).write_text('{"rows": 1}')
"""
"""Stands in for `marketdata`: what is measured is all that is not the command."""

FIVE = """
from airflow.sdk import DAG, chain
from marketdata.orchestration.pod import MarketdataPodOperator
with DAG("five-pods", schedule=None):
    chain(*(MarketdataPodOperator(task_id=f"t{n}", command=["bench"], app="bench", tier="critical") for n in range(5)))
"""


def run() -> dict[str, Any]:
    """Seconds of a pod each way, of a run of five in a row, and how many pods a minute the node takes until it is full.

    The engines of the settings hold Airflow's metadata; no task reaches them.
    """
    with cluster() as running, tempfile.TemporaryDirectory() as folder, _variables(running):
        charts.install_platform(running)
        unused = Settings(kafka_brokers="none.invalid:9092")  # type: ignore[call-arg]
        running.apply(*credentials(unused, policy.NAMESPACE))
        _make_image(running, Path(folder))
        ways: dict[str, Callable[[int], float]] = {
            "bare": lambda number: _bare(running, number),
            "operator": lambda number: _task(_ours, f"ours-{number}"),
            "stock": lambda number: _task(_stock, f"stock-{number}"),
        }
        # In turn, so that whatever else the machine does meets them alike.
        rounds = [{name: seconds(number) for name, seconds in ways.items()} for number in range(REPEATS)]
        medians = {name: _median([taken[name] for taken in rounds]) for name in ways}
        return {**medians, "five_in_a_row": _five(Path(folder)), **_fill(running)}


def _bare(running: Cluster, number: int) -> float:
    """Seconds until a client that watches is told of the success of a pod it created."""
    from kubernetes import client, config, watch  # type: ignore[import-untyped]

    api = client.CoreV1Api(config.new_client_from_config(str(running.kubeconfig)))
    pod = hardened(f"bare-{number}", ["marketdata"], image=IMAGE, serviceAccountName=policy.SERVICE_ACCOUNT)
    pod["spec"]["containers"][0]["env"] = [{"name": "MARKETDATA_RESULT", "value": "/tmp/result"}]  # noqa: S108
    begun = time.perf_counter()
    api.create_namespaced_pod(policy.NAMESPACE, pod)
    selector = f"metadata.name=bare-{number}"
    for event in watch.Watch().stream(
        api.list_namespaced_pod, policy.NAMESPACE, field_selector=selector, timeout_seconds=120
    ):
        if event["object"].status.phase == "Succeeded":
            return time.perf_counter() - begun
    raise RuntimeError(f"pod bare-{number} did not succeed within 120 s")


def _task(make: Callable[[str], Any], name: str) -> float:
    """Seconds from the start of a task's work to its end, without the process it would have of its own."""
    from airflow.sdk import DAG

    with DAG("bench", schedule=None) as dag:
        task = make(name)
    task.allow_nested_operators = True
    instance = SimpleNamespace(
        dag_id=dag.dag_id, task_id=task.task_id, run_id="r", map_index=-1, try_number=1, stats_tags={},
        xcom_push=lambda key, value: None,
    )  # fmt: skip
    begun = time.perf_counter()
    result = task.execute({"ti": instance, "run_id": instance.run_id, "dag": dag, "task": task})
    taken = time.perf_counter() - begun
    if result != {"rows": 1}:
        raise RuntimeError(f"the task gave {result!r}, which is not what its pod wrote")
    return taken


def _ours(task_id: str) -> Any:
    from marketdata.orchestration.pod import MarketdataPodOperator

    return MarketdataPodOperator(task_id=task_id, command=["bench"], app="bench", tier="critical")


def _stock(task_id: str) -> Any:
    """The provider's operator as its documentation has it, told what a hardened pod needs."""
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from kubernetes.client import models as k8s  # type: ignore[import-untyped]

    return KubernetesPodOperator(
        task_id=task_id,
        name=task_id,
        namespace=policy.NAMESPACE,
        service_account_name=policy.SERVICE_ACCOUNT,
        automount_service_account_token=False,
        image=IMAGE,
        image_pull_policy="Never",
        cmds=["marketdata"],
        env_vars={"MARKETDATA_RESULT": "/airflow/xcom/return.json"},
        security_context=policy.pod_security_context(),
        container_security_context=policy.container_security_context(),
        xcom_sidecar_container_security_context=policy.container_security_context(),
        container_resources=k8s.V1ResourceRequirements(
            requests={"cpu": "10m", "memory": "32Mi"}, limits={"cpu": "1", "memory": "256Mi"}
        ),
        do_xcom_push=True,
    )


@contextlib.contextmanager
def _variables(running: Cluster) -> Iterator[None]:
    """The environment in which tasks become pods of this cluster."""
    extra = {"kube_config_path": str(running.kubeconfig), "xcom_sidecar_container_image": IMAGE}
    variables = {
        "AIRFLOW_HOME": str(CHECKOUT / "build" / "bench" / "airflow"),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps({"conn_type": "kubernetes", "extra": extra}),
        "MARKETDATA_IMAGE": IMAGE,
    }
    with patch.dict(os.environ, variables):
        settings.load.cache_clear()
        yield
    settings.load.cache_clear()


def _five(folder: Path) -> float:
    """Seconds from trigger to success of five tasks in a row, by Airflow's own clock."""
    dags = folder / "dags"
    dags.mkdir()
    (dags / "five_pods.py").write_text(FIVE)
    with installation(settings.load(), dags, {}, folder / "logs") as airflow:
        until("Airflow knows the DAG", lambda: airflow.ready({"five-pods"}), 180)

        def ended(run_id: str) -> dict[str, Any] | None:
            with contextlib.suppress(OSError):  # busy
                found = airflow.run("five-pods", run_id)
                return found if found["state"] in FINAL else None
            return None

        def seconds() -> float:
            run_id = airflow.trigger("five-pods")
            found = until("the run has ended", lambda: ended(run_id), 300)
            if found["state"] != "success":
                raise RuntimeError(f"the run of five pods failed; its logs: {airflow.environment['AIRFLOW_HOME']}/logs")
            queued, end = (datetime.fromisoformat(found[name]) for name in ("queued_at", "end_date"))
            return (end - queued).total_seconds()

        return _median([seconds() for _ in range(RUNS)])


def _fill(running: Cluster) -> dict[str, Any]:
    """Idle pods until the node takes no more."""
    where = "--namespace=bench-full"
    running.kubectl("create", "namespace", "bench-full")
    pods = [hardened(f"idle-{number}", ["sleep", "3600"], image=IMAGE) for number in range(PODS)]

    def count(phase: str) -> int:
        return running.kubectl("get", "pods", where, f"--field-selector=status.phase={phase}", "--output=name").count(
            "\n"
        )

    until("the namespace has its account", lambda: "default" in running.kubectl("get", "serviceaccounts", where))
    begun = time.perf_counter()
    running.kubectl(
        "create", where, "--filename=-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods})
    )
    until("every pod has a place or none", lambda: count("Running") + _without_place(running, where) == PODS, 900)
    taken = time.perf_counter() - begun
    full = count("Running")
    return {"pods_until_full": full, "pods_a_minute": round(full / taken * 60, 1)}


def _without_place(running: Cluster, where: str) -> int:
    pending = running.get("pods", where, "--field-selector=status.phase=Pending")["items"]
    conditions = [condition for pod in pending for condition in pod["status"].get("conditions", [])]
    return sum(condition.get("reason") == "Unschedulable" for condition in conditions)


def _make_image(running: Cluster, folder: Path) -> None:
    """The bare Python image with the command in it."""
    program, archive = folder / "marketdata", folder / "image.tar"
    program.write_text(COMMAND)
    _buildah("pull", "--quiet", f"docker-archive:{build.images()[-1]}")
    container = _buildah("from", build.PYTHON)
    _buildah("copy", "--quiet", "--chmod=755", container, str(program), "/usr/local/bin/marketdata")
    _buildah("commit", "--quiet", "--rm", container, IMAGE)
    _buildah("push", "--quiet", IMAGE, f"docker-archive:{archive}:{IMAGE}")
    running.load_image(archive)


def _buildah(*arguments: str) -> str:
    return subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def _median(seconds: list[float]) -> float:
    return round(statistics.median(seconds), 2)


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
