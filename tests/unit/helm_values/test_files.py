"""All values: overrides only, no credential, no floating image, and what the README says of them."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from tests.unit.helm_values.releases import (
    ENVIRONMENTS,
    OWN,
    README,
    ROOT,
    VALUES,
    Release,
    components,
    files,
    leaves,
    merge,
    read,
    releases,
    texts,
    values,
)  # fmt: skip

OVERLAYS = {"airflow.kubernetes-executor.yaml"}
"""Laid over an installation by choice, not by environment."""

RELEASES = releases()
EACH = [(component, environment) for component in components() for environment in ENVIRONMENTS]
DIGESTS = {
    "strimzi": {"image.tag", "topicOperator.image.tag", "userOperator.image.tag", "kafkaInit.image.tag"},
    "cloudnative-pg": {"image.tag"},
    "postgres": {"cluster.imageName", "poolers.0.template.spec.containers.0.image"},
    "redis": {"image.tag"},
    "trino": {"image.digest"},
    "pushgateway": {"image.tag"},
    "blackbox-exporter": {"image.digest"},
    "kube-prometheus-stack": {
        "prometheus.prometheusSpec.image.sha",
        "alertmanager.alertmanagerSpec.image.sha",
        "prometheusOperator.image.sha",
        "prometheusOperator.prometheusConfigReloader.image.sha",
        "grafana.image.sha",
        "kube-state-metrics.image.sha",
    },
    "mlflow": {"image.digest", "initImages.mlflowDbMigration.tag"},
    "opencost": set(),
    "velero": {"image.digest", "initContainers.0.image"},
    "airflow": {"defaultAirflowDigest", "images.otelCollector.tag", "global.taskImage"},
}
"""Where each chart takes the digests of the images that its pods then have; OpenCost's says them itself."""


CREDENTIAL = re.compile(r"://[^/\s:@{]*:[^/\s@{]+@|AKIA|BEGIN .*PRIVATE|hooks\.slack\.com|xox[bp]-")
WORKLOADS = {
    "strimzi": "kafka-operator",
    "cloudnative-pg": "postgres-operator",
    "postgres": "postgres",
    "redis": "redis",
    "trino": "trino",
    "pushgateway": "pushgateway",
    "blackbox-exporter": "blackbox-exporter",
    "kube-prometheus-stack": "prometheus",
    "mlflow": "mlflow",
    "opencost": "opencost",
    "velero": "velero",
    "airflow": "airflow-scheduler",
}
"""What the platform's list calls each of them."""

KEYS_OF_SECRETS = {"secretKey", "keyOfSecretAccessKey"}
SECRET_KEY = re.compile(r"(password|passwd|secretkey|token|accesskey|fernetkey|jwtsecret|apikey)$", re.IGNORECASE)


def ids(value: object) -> str | None:
    return value.name if isinstance(value, Release) else None


def test_every_file_belongs_to_a_release_and_every_release_has_its_files() -> None:
    there = {path.name for path in VALUES.glob("*.yaml") if path.name.split(".")[0] not in OWN}
    known = {name for component, environment in EACH for name in files(component, environment)}
    assert there == known | OVERLAYS
    assert len(RELEASES) == 12


@pytest.mark.parametrize("release", RELEASES, ids=ids)
def test_the_readme_installs_each_release_with_all_its_files(release: Release) -> None:
    assert release.files == tuple(files(release.component, "production"))
    head = (VALUES / f"{release.component}.yaml").read_text().split("\n\n")[0]
    assert release.version in head, "the file's first comment names another version of the chart"
    row = next(line for line in README.splitlines() if line.startswith(f"| `{release.component}` "))
    assert f" {release.version} " in row


@pytest.mark.parametrize(("component", "environment"), EACH)
def test_an_environment_says_only_what_differs(component: str, environment: str) -> None:
    *below, last = files(component, environment)
    if not below or environment not in last:
        return
    merged: dict[str, object] = {}
    for name in below:
        merged = merge(merged, read(name))
    said = dict(leaves(merged))
    repeated = [".".join(path) for path, value in leaves(read(last)) if path in said and said[path] == value]
    assert not repeated, f"{last} repeats {repeated}"


@pytest.mark.parametrize(("component", "environment"), EACH)
def test_no_value_is_a_credential(component: str, environment: str) -> None:
    for path, text in texts(values(component, environment)):
        assert not CREDENTIAL.search(text), ".".join(path)
        literal = SECRET_KEY.search(path[-1]) and path[-1] not in KEYS_OF_SECRETS
        assert not (literal and text), f"{'.'.join(path)} holds a credential; refer to a Secret"


@pytest.mark.parametrize(("component", "environment"), EACH)
def test_no_image_floats(component: str, environment: str) -> None:
    for path, text in texts(values(component, environment)):
        if path[-1] in ("tag", "defaultAirflowTag"):
            assert text not in ("", "latest"), ".".join(path)
        if path[-1] in ("image", "imageName", "taskImage"):
            name = text.rpartition("/")[2]
            assert re.search(r":(?!latest)[\w.-]+(@|$)|@sha256:", name), f"{'.'.join(path)}: {text}"


@pytest.mark.parametrize("component", components())
def test_production_has_a_place_for_the_digest_of_every_image(component: str) -> None:
    for name in (f"{component}.yaml", f"{component}.development.yaml"):
        assert not (VALUES / name).exists() or "unset" not in (VALUES / name).read_text(encoding="utf-8")
    production = values(component, "production")
    places = {".".join(path): text for path, text in texts(production) if text.endswith("unset")}
    assert set(places) == DIGESTS[component]
    assert all(re.fullmatch(r"(.+:[\w.-]+@|[\w.-]+@)?(sha256:)?unset", text) for text in places.values())


def test_secrets_are_those_of_the_readme() -> None:
    """Every Secret that is referred to is listed, and none is listed that nobody refers to."""
    table = README.split("## Secrets")[1].split("## ")[0]
    listed = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([\w-]+)`", line.split("|")[1])
    }
    used = set()
    for component, environment in EACH:
        given = values(component, environment)
        for path, text in texts(given):
            if re.search(r"(secretName|SecretName|[sS]ecret|SecretKeySecretName|Configs)$", path[-1]) or (
                path[-1] == "name"
                and path[-2] in ("secret", "passwordSecret", "secretKeyRef", "existingSecret", "existingDatabaseSecret")
            ):
                used.add(text)
        used |= set(re.findall(r"secretKeyRef: \{name: ([\w-]+)", str(given.get("extraEnv", ""))))
    assert used == listed


def test_engines_and_names_are_the_platform_s(network: dict[str, dict[str, Any]]) -> None:
    """An address in the values is a Service of a workload that the platform's list knows, at a port it has."""
    services = {
        "pushgateway.monitoring": "pushgateway", "prometheus.monitoring": "prometheus", "trino.production": "trino",
        "postgres.production": "postgres", "minio.production": "object-store", "mlflow.production": "mlflow",
        "postgres-pooler-rw.production": "pgbouncer",
    }  # fmt: skip
    for component, environment in EACH:
        for path, text in texts(values(component, environment)):
            for address, port in re.findall(r"\b([a-z-]+\.(?:production|monitoring|kafka))(?::(\d+))?", text):
                if component == "kube-prometheus-stack" and address.endswith(".kafka"):
                    continue
                workload = network[services[address]]
                assert workload["namespace"] == address.split(".")[1]
                assert not port or int(port) in workload["ports"].values(), f"{component}: {'.'.join(path)}: {text}"


def test_releases_are_in_the_namespaces_and_under_the_labels_of_the_platform(
    network: dict[str, dict[str, Any]],
) -> None:
    where = {release.component: release.namespace for release in RELEASES}
    assert set(WORKLOADS) == set(where)
    for component, workload in WORKLOADS.items():
        assert network[workload]["namespace"] == where[component]
    assert network["redis"]["pods"] == {"app.kubernetes.io/name": read("redis.yaml")["nameOverride"]}
    for environment in ENVIRONMENTS:
        (pooler,) = values("postgres", environment)["poolers"]
        assert network["pgbouncer"]["pods"] == pooler["template"]["metadata"]["labels"]
    assert network["pgbouncer"]["ports"]["sql"] == 5432, "CloudNativePG's PgBouncer listens there and nowhere else"


def test_the_generated_values_are_fresh() -> None:
    done = subprocess.run([sys.executable, VALUES / "kube_prometheus_stack.py", "--check"], check=False)
    assert done.returncode == 0, "run: python helm-values/kube_prometheus_stack.py"


def test_files_the_readme_names_exist() -> None:
    for name in re.findall(r"(?:helm-values|deploy)/[\w./-]+\w", README):
        assert (ROOT / name).exists(), name
