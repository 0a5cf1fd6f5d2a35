"""What would stand on a cluster, before the cluster says its own word: charts and the pods of every task, together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.charts import Object, production
from tests.scans import manifests
from tests.scans.findings import Finding, objections, skips
from tests.scans.manifests import Mutation, mutant, name
from tests.scans.scanners import checkov, kube_score, kubernetes_validate

TODAY = datetime.now(UTC).date()


def base(pod: Object) -> dict[str, Any]:
    container: dict[str, Any] = pod["spec"]["containers"][0]
    return container


def context(pod: Object) -> dict[str, Any]:
    found: dict[str, Any] = base(pod)["securityContext"]
    return found


MUTANTS: dict[str, tuple[Mutation, set[str]]] = {
    "privileged": (
        lambda pod: context(pod).update(privileged=True),
        {"checkov kubernetes CKV_K8S_16", "kube-score container-security-context-privileged"},
    ),
    "escalating": (
        lambda pod: context(pod).update(allowPrivilegeEscalation=True), {"checkov kubernetes CKV_K8S_20"},
    ),
    "writable": (
        lambda pod: context(pod).update(readOnlyRootFilesystem=False),
        {"checkov kubernetes CKV_K8S_22", "kube-score container-security-context-readonlyrootfilesystem"},
    ),
    "capable": (
        lambda pod: context(pod).update(capabilities={"add": ["SYS_ADMIN"]}),
        {"checkov kubernetes CKV_K8S_37", "checkov kubernetes CKV_K8S_39"},
    ),
    "root": (
        lambda pod: pod["spec"]["securityContext"].update(runAsNonRoot=False, runAsUser=0, runAsGroup=0),
        {"checkov kubernetes CKV_K8S_23", "checkov kubernetes CKV_K8S_40",
         "kube-score container-security-context-user-group-id"},
    ),
    "seccomp": (
        lambda pod: pod["spec"]["securityContext"].pop("seccompProfile"),
        {"checkov kubernetes CKV_K8S_31", "kube-score container-seccomp-profile"},
    ),
    "token": (
        lambda pod: pod["spec"].update(automountServiceAccountToken=True), {"checkov kubernetes CKV_K8S_38"},
    ),
    "host-network": (lambda pod: pod["spec"].update(hostNetwork=True), {"checkov kubernetes CKV_K8S_19"}),
    "host-processes": (lambda pod: pod["spec"].update(hostPID=True), {"checkov kubernetes CKV_K8S_17"}),
    "host-memory": (lambda pod: pod["spec"].update(hostIPC=True), {"checkov kubernetes CKV_K8S_18"}),
    "no-limits": (
        lambda pod: base(pod)["resources"].pop("limits"),
        {"checkov kubernetes CKV_K8S_11", "checkov kubernetes CKV_K8S_13", "kube-score container-resources",
         "kube-score container-ephemeral-storage-request-and-limit"},
    ),
    "no-requests": (
        lambda pod: base(pod)["resources"].pop("requests"), {"kube-score container-resources"},
    ),
    "latest": (
        lambda pod: base(pod).update(image="marketdata-task:latest"),
        {"checkov kubernetes CKV_K8S_14", "checkov kubernetes CKV_K8S_43", "kube-score container-image-tag"},
    ),
    "default-namespace": (
        lambda pod: pod["metadata"].update(namespace="default"), {"checkov kubernetes CKV_K8S_21"},
    ),
    "no-policy": (
        lambda pod: pod["metadata"].update(namespace="elsewhere"),
        {"kube-score pod-networkpolicy"},
    ),
    "docker-socket": (
        lambda pod: pod["spec"]["volumes"].append(
            {"name": "docker", "hostPath": {"path": "/var/run/docker.sock"}}
        ),
        {"checkov kubernetes CKV_K8S_27"},
    ),
}  # fmt: skip
"""A task's pod with one thing taken away or added, and the rules that have to object."""

MISSHAPEN: dict[str, Mutation] = {
    "misspelt": lambda pod: pod["spec"].update(automountServiceAcountToken=False),
    "seconds-as-text": lambda pod: pod["spec"].update(activeDeadlineSeconds="900"),
    "another-kind": lambda pod: pod.update(kind="Pots"),
}
"""A task's pod that the API server would refuse or, worse, understand differently."""

WILDCARDS: Object = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "Role",
    "metadata": {"name": "everything", "namespace": "production"},
    "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
}


@dataclass(frozen=True)
class Scan:
    """What all scanners found on the project and on the mutants, each told once."""

    objects: list[Object]
    project: list[Finding]
    mutants: list[Finding]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    folder = tmp_path_factory.mktemp("manifests")
    with pytest.MonkeyPatch.context() as patch:
        pods = list(manifests.pods(patch))
    objects = [*pods, *production("alpha", "beta")]
    policies = [object_ for object_ in objects if object_["kind"] == "NetworkPolicy"]
    spoilt = [mutant(pods[0], as_name, mutation) for as_name, (mutation, _) in MUTANTS.items()]
    return Scan(objects, _all(folder / "project", objects), _all(folder / "mutants", [*policies, *spoilt, WILDCARDS]))


def _all(folder: Path, objects: list[Object]) -> list[Finding]:
    files = manifests.write(objects, folder)
    return [*kubernetes_validate(files), *checkov("kubernetes", folder), *kube_score(files)]


def test_there_is_something_to_scan(scan: Scan) -> None:
    kinds = Counter(object_["kind"] for object_ in scan.objects)
    assert kinds["Pod"] >= 7
    assert kinds["Deployment"] >= 4
    assert kinds["NetworkPolicy"] >= 50
    assert kinds.keys() >= {
        "Role",
        "RoleBinding",
        "ResourceQuota",
        "LimitRange",
        "ServiceAccount",
        "PodDisruptionBudget",
    }


@pytest.mark.parametrize("scanner", ["kubernetes-validate", "checkov kubernetes", "kube-score"])
def test_nobody_objects(scan: Scan, scanner: str) -> None:
    found = [finding for finding in scan.project if finding.scanner == scanner]
    assert not (wrong := objections(scanner, found, skips(), TODAY)), "\n".join(wrong)


@pytest.mark.parametrize("as_name", MUTANTS)
def test_a_mutant_is_objected_to_by_name(scan: Scan, as_name: str) -> None:
    of_mutant = {(f.scanner, f.rule) for f in scan.mutants if f"/{as_name}" in f.where.split()[1]}
    assert MUTANTS[as_name][1] <= {f"{scanner} {rule}" for scanner, rule in of_mutant}
    clean = {(f.scanner, f.rule) for f in scan.project if f.where.startswith(name(scan.objects[0]))}
    assert of_mutant - clean, "the pod it was made from is objected to as well"


def test_a_misshapen_object_is_objected_to(scan: Scan, tmp_path: Path) -> None:
    spoilt = [mutant(scan.objects[0], as_name, mutation) for as_name, mutation in MISSHAPEN.items()]
    found = {finding.where: finding.rule for finding in kubernetes_validate(manifests.write(spoilt, tmp_path))}
    assert found == {
        "Pod production/misspelt": "schema",
        "Pod production/seconds-as-text": "schema",
        "Pots production/another-kind": "no-schema",
    }


def test_a_role_of_wildcards_is_objected_to(scan: Scan) -> None:
    assert ("checkov kubernetes", "CKV_K8S_49", "Role production/everything") in {
        (finding.scanner, finding.rule, finding.where) for finding in scan.mutants
    }
