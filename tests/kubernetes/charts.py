"""The project's charts: rendered without a cluster, and installed on one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT
from tests.engines.go import tool
from tests.engines.kubernetes.cluster import Cluster
from tests.waiting import until

DEPLOY = ROOT / "deploy"
VALUES = ROOT / "helm-values"
CALLS = DEPLOY / "parts" / "values.yaml"
KUBERNETES = "1.34"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"

NAMESPACES = {"platform": "default", "data-processing": "data-processing"}
"""Where each chart's release is kept."""

RELEASES = {"platform": "platform", "data-processing": "data-processing-pipeline"}

UNKNOWN_HERE = (
    f"--set=image.digest={DIGEST}",
    "--set=parts.network.addresses.kubernetes-api.ranges={10.96.0.1/32}",
    "--set=parts.network.addresses.nodes.ranges={10.20.0.0/24}",
)
"""What the platform's production values leave to the installation."""

Object = dict[str, Any]


class HelmError(RuntimeError):
    """What helm said."""


def helm(*arguments: str) -> str:
    """What helm prints.

    Raises:
        HelmError: helm failed.
    """
    done = subprocess.run([str(tool("helm")), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        # It tells of every symbolic link it follows.
        raise HelmError("\n".join(line for line in done.stderr.splitlines() if not line.startswith("walk.go")))
    return done.stdout


def values(chart: str, environment: str) -> list[str]:
    """The arguments that choose an environment's values."""
    file = VALUES / f"{chart}.{environment}.yaml"
    return [f"--values={file}"] if file.exists() else []


def render(chart: str, *arguments: str) -> list[Object]:
    """The objects of a chart, as `helm template` makes them."""
    command = ["template", RELEASES[chart], str(DEPLOY / chart), f"--namespace={NAMESPACES[chart]}"]
    return objects(helm(*command, f"--kube-version={KUBERNETES}", *arguments))


def production(*tenants: str) -> list[Object]:
    """Everything both charts put on a production cluster."""
    return [
        *render(
            "platform", *values("platform", "production"), *UNKNOWN_HERE, f"--set-json=tenants={json.dumps(tenants)}"
        ),
        *render("data-processing", *values("data-processing", "production")),
    ]


def with_tenants(*tenants: str) -> str:
    """The argument that says which tenants there are."""
    return f"--set-json=tenants={json.dumps(tenants)}"


def objects(text: str) -> list[Object]:
    return [found for found in yaml.safe_load_all(text) if found]


def key(found: Object) -> tuple[str, str, str]:
    """What an object is called by: kind, namespace, name."""
    return found["kind"], found["metadata"].get("namespace", ""), found["metadata"]["name"]


def one(found: list[Object], kind: str, name: str, namespace: str | None = None) -> Object:
    """The only object of that kind and name."""
    (it,) = (
        one
        for one in found
        if (one["kind"], one["metadata"]["name"]) == (kind, name)
        and namespace in (None, one["metadata"].get("namespace"))
    )
    return it


def kind(found: list[Object], kind: str) -> Iterator[Object]:
    return (one for one in found if one["kind"] == kind)


def install(cluster: Cluster, chart: str, *arguments: str) -> None:
    """Install or upgrade a chart, as its README says; what was made by hand is taken over."""
    release = [RELEASES[chart], str(DEPLOY / chart), f"--namespace={NAMESPACES[chart]}"]
    helm("upgrade", "--install", *release, f"--kubeconfig={cluster.kubeconfig}", "--take-ownership", *arguments)


def install_platform(cluster: Cluster, *arguments: str) -> None:
    """The platform without Kafka: its brokers are elsewhere where tests run, and its operator is not installed."""
    install(cluster, "platform", *values("platform", "development"), "--set=kafka.enabled=false", *arguments)

    def are_counted() -> bool:
        quotas = cluster.get("resourcequotas", "--all-namespaces")["items"]
        return all(quota.get("status", {}).get("used") for quota in quotas)

    # Until then they let nothing in.
    until("the quotas are counted", are_counted)


def uninstall(cluster: Cluster, chart: str) -> None:
    helm("uninstall", RELEASES[chart], f"--namespace={NAMESPACES[chart]}", f"--kubeconfig={cluster.kubeconfig}")


def definitions(shared: Path) -> list[Path]:
    """Custom resource definitions that the charts' objects need."""
    strimzi = ["040-Crd-kafka", "043-Crd-kafkatopic", "044-Crd-kafkauser", "045-Crd-kafkanodepool"]
    return [
        *(shared / "checks" / "strimzi-1.2.0" / f"{name}.yaml" for name in strimzi),
        shared / "checks" / "prometheus-operator-0.93.0" / "monitoring.coreos.com_podmonitors.yaml",
    ]
