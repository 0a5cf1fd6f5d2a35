"""What would stand on a cluster: the charts' objects as Helm renders them, and each task's pod as it is submitted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.engines.go import tool

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = "1.34"
IMAGE = f"registry.example.com/marketdata-task:0.1.0@sha256:{'0123456789abcdef' * 4}"

Object = dict[str, Any]
Mutation = Callable[[Object], object]


def charts() -> list[Path]:
    """The project's own charts that can be installed."""
    files = sorted((ROOT / "deploy").glob("*/Chart.yaml"))
    return [file.parent for file in files if yaml.safe_load(file.read_text()).get("type") != "library"]


def rendered(chart: Path) -> list[Object]:
    """The objects of a chart, with the values of production where it has some."""
    values = [word for file in sorted(chart.glob("values*production.yaml")) for word in ("--values", str(file))]
    command = [
        str(tool("helm")), "template", chart.name, str(chart), "--namespace", "production",
        "--kube-version", f"{KUBERNETES}.0", "--include-crds", *values,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pods(patch: pytest.MonkeyPatch) -> Iterator[Object]:
    """The pod of every task of every DAG; its name lacks the random end."""
    from airflow.dag_processing.dagbag import DagBag
    from kubernetes.client import ApiClient

    from marketdata import settings

    patch.setenv("ENVIRONMENT", "production")
    patch.setenv("MARKETDATA_IMAGE", IMAGE)
    patch.setenv("LAKE_URI", "s3://lake/production")
    settings.load.cache_clear()
    for dag in DagBag(dag_folder=ROOT / "dags").dags.values():
        for task in dag.tasks:
            pod = ApiClient().sanitize_for_serialization(task.build_pod_request_obj(dry_run=True))  # type: ignore[attr-defined]
            pod["metadata"]["name"] = f"{dag.dag_id}-{task.task_id.replace('.', '-')}"
            yield {"apiVersion": "v1", "kind": "Pod", **pod}
    settings.load.cache_clear()


def write(objects: list[Object], folder: Path) -> list[Path]:
    """One file an object, named after it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for object_ in objects:
        file = folder / f"{name(object_).replace(' ', '_').replace('/', '_').replace(':', '-')}.yaml"
        assert not file.exists(), f"{name(object_)} is there twice"
        file.write_text(yaml.safe_dump(object_))
        files.append(file)
    return files


def name(object_: Object) -> str:
    metadata = object_["metadata"]
    return f"{object_['kind']} {metadata.get('namespace', '')}/{metadata['name']}"


def mutant(object_: Object, as_name: str, mutation: Mutation) -> Object:
    """A copy under another name, spoilt."""
    spoilt = deepcopy(object_)
    spoilt["metadata"]["name"] = as_name
    mutation(spoilt)
    return spoilt
