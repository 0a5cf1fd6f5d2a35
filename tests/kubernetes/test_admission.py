"""What each task really submits is admitted, and none of its protection can be taken away without an objection.

The mutants are made from the pod, not from a list of what somebody thought of: every value of it is left out once, and
turned round once where it has an opposite. `admission.golden.yaml` says of each who objects: the platform policy by the
name of the field, and the Pod Security admission of the cluster by the name of the check. Nobody objects to the
loss of what is no protection: that list is for people to read whenever it grows.

    UPDATE_GOLDEN=1 pytest tests/kubernetes/test_admission.py      # writes the table anew, for a review
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from kubernetes import client, config

from marketdata import settings
from marketdata.orchestration import policy
from marketdata.orchestration.defaults import Tier
from tests.kubernetes.launching import launcher

__all__ = ["launcher"]

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("admission.golden.yaml")
GONE = object()
SECRET = re.compile(r"env\[[A-Z_]+\]")
PROTECTION = re.compile(
    "securityContext|hostUsers|automount|serviceAccount|activeDeadline|resources|emptyDir|priority|restartPolicy|namespace"
)
"""Parts of a path that make its value protection: to take one of them away has to be objected to."""


@pytest.fixture(scope="module")
def pods(monkeypatch_module: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Every pod that a run of each DAG submits, as it is sent."""
    monkeypatch_module.setenv("LAKE_URI", "s3://lake/tests")
    monkeypatch_module.setenv("ENVIRONMENT", "production")
    monkeypatch_module.setenv("MARKETDATA_IMAGE", "localhost/marketdata-task:dev")
    settings.load.cache_clear()
    bag = DagBag(dag_folder=ROOT / "dags")
    assert bag.dags
    assert not bag.import_errors
    sent = {}
    for dag in bag.dags.values():
        for task in dag.tasks:
            instance = SimpleNamespace(
                dag_id=dag.dag_id, task_id=task.task_id, run_id="scheduled__2026-01-01", map_index=-1, try_number=1
            )
            context: Any = {"ti": instance, "run_id": instance.run_id, "dag": dag}
            pod = task.build_pod_request_obj(context, dry_run=True)
            sent[f"{dag.dag_id} {task.task_id}"] = client.ApiClient().sanitize_for_serialization(pod)
    settings.load.cache_clear()
    return sent


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def api(launcher: Path) -> client.CoreV1Api:
    return client.CoreV1Api(config.new_client_from_config(str(launcher)))


def refusal(api: client.CoreV1Api, manifest: dict[str, Any]) -> str:
    """Why the cluster does not admit a pod; empty if it does. Nothing is created."""
    namespace = manifest["metadata"].get("namespace", policy.NAMESPACE)
    try:
        api.create_namespaced_pod(namespace, manifest, dry_run="All", field_validation="Strict")
    except client.ApiException as error:
        return str(error.body)
    return ""


def test_every_task_of_every_dag_is_admitted(pods: dict[str, dict[str, Any]], api: client.CoreV1Api) -> None:
    assert len(pods) >= 7
    assert {name: refusal(api, manifest) for name, manifest in pods.items()} == dict.fromkeys(pods, "")


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where each value of a manifest stands: the groups, and what is in them. A list of plain words is one value.

    Left out are the names of a list's elements, which are no values, and variables that a task is told in plain text.
    """
    if isinstance(value, dict):
        for key in value:
            if value[key] not in ([], {}) and not (key == "name" and isinstance(path[-1], int)):
                yield (*path, key)
                yield from places(value[key], (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, element in enumerate(value):
            if "value" not in element:
                yield (*path, number)
                yield from places(element, (*path, number))


def name_of(manifest: Any, path: tuple[str | int, ...]) -> str:
    """A path for people: elements of a list by their names."""
    text, at = "", manifest
    for part in path:
        at = at[part]
        text += f"[{at['name']}]" if isinstance(part, int) and "name" in at else f".{part}" if text else str(part)
    return text


def mutants(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in [*places(manifest["metadata"], ("metadata",)), *places(manifest["spec"], ("spec",))]:
        if path[:2] == ("metadata", "labels") and path[2:] and path[2] not in policy.LABELS:
            continue  # Airflow's own: they say which task it is, and the next try finds the pod by them
        value = manifest
        for part in path:
            value = value[part]  # type: ignore[index]
        opposites: list[Any] = [not value] if isinstance(value, bool) else [0] if isinstance(value, int) else []
        for instead in (GONE, *opposites):
            mutant = copy.deepcopy(manifest)
            at: Any = mutant
            for part in path[:-1]:
                at = at[part]
            if instead is GONE:
                del at[path[-1]]
            else:
                at[path[-1]] = instead
            yield f"{name_of(manifest, path)} {'left out' if instead is GONE else f'= {instead}'}", mutant


def objections(api: client.CoreV1Api, manifest: dict[str, Any]) -> dict[str, Any]:
    """Who objects to a pod, and what to."""
    try:
        broken = policy.violations(PodGenerator.deserialize_model_dict(manifest))
    except ValueError as error:
        return {"client": str(error)}
    refused = refusal(api, manifest)
    checks = re.search(r'violates PodSecurity \\"restricted:[a-z0-9.]+\\": (.*?)","reason"', refused)
    said: dict[str, Any] = {}
    if broken:
        fields = [violation.split(" must ")[0].split(" is ")[0] for violation in broken]
        said["policy"] = list(dict.fromkeys(SECRET.sub("env[*]", field) for field in fields))
    if checks:
        said["pod security"] = [check.strip() for check in re.sub(r"\([^)]*\)", "", checks[1]).split(",")]
    elif refused:
        said["cluster"] = True
    return said


def test_nothing_can_be_taken_away_without_an_objection(pods: dict[str, dict[str, Any]], api: client.CoreV1Api) -> None:
    manifest = pods["commodity-price-pipeline extract"]
    table: dict[str, dict[str, Any]] = {}
    for name, mutant in mutants(manifest):
        said = objections(api, mutant)
        # What holds for the reference to one Secret holds for all: a new one is no new line.
        name = SECRET.sub("env[*]", name)
        assert table.setdefault(name, said) == said, name
    if os.environ.get("UPDATE_GOLDEN"):
        TABLE.write_text(yaml.safe_dump(table, sort_keys=True, width=140))
    silent = {
        name for name, said in table.items() if PROTECTION.search(name) and not said.keys() & {"policy", "client"}
    }
    assert not silent, "the policy objects to the loss of every protection"
    for name, said in table.items():
        if "policy" in said and "securityContext" in name:
            field = name.split()[0].rpartition("securityContext.")[2].split(".")[0]
            assert any(field in violation for violation in said["policy"]), (name, said)
    assert len([name for name, said in table.items() if "pod security" in said]) >= 6
    assert table == yaml.safe_load(TABLE.read_text())


def test_every_pod_is_protected_as_the_one_that_was_mutated(pods: dict[str, dict[str, Any]]) -> None:
    """Tasks differ in words, profile, tier and name: what is proved of one is proved of all."""

    def shape(manifest: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = copy.deepcopy(manifest["spec"])
        (container,) = found["containers"]
        for own in ("args", "env", "resources"):
            del container[own]
        del found["activeDeadlineSeconds"]
        assert found.pop("priorityClassName") == policy.priority_class(Tier(manifest["metadata"]["labels"]["tier"]))
        return found

    shapes = [shape(manifest) for manifest in pods.values()]
    assert all(each == shapes[0] for each in shapes)
