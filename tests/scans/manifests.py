"""Each task's pod as it is submitted, and objects of any kind as files, spoilt where a test wants them to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.charts import DIGEST, Object

ROOT = Path(__file__).resolve().parents[2]
IMAGE = f"registry.example.com/marketdata-task@{DIGEST}"

Mutation = Callable[[Object], object]


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
