"""Who may do what: each account, verb, resource and namespace, asked of the API server, against a golden table."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.engines.kubernetes.cluster import Cluster
from tests.kubernetes import charts

GOLDEN: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "rbac.golden.yaml").read_text())
TENANTS = ("acme", "globex")
NAMESPACES = [
    "production", "airflow", "kafka", "data-processing", "monitoring", "tenant-acme", "tenant-globex",
    "kube-system", "default",
]  # fmt: skip
VERBS = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]
RESOURCES = [
    ("", "pods"), ("", "pods/log"), ("", "pods/exec"), ("", "pods/attach"), ("", "pods/portforward"),
    ("", "pods/eviction"), ("", "pods/ephemeralcontainers"), ("", "secrets"), ("", "configmaps"), ("", "events"),
    ("", "services"), ("", "serviceaccounts"), ("", "serviceaccounts/token"), ("", "resourcequotas"),
    ("apps", "deployments"), ("batch", "jobs"), ("networking.k8s.io", "networkpolicies"),
    ("rbac.authorization.k8s.io", "roles"), ("rbac.authorization.k8s.io", "rolebindings"),
]  # fmt: skip
ANYWHERE = [
    ("get", "", "nodes"), ("list", "", "nodes"), ("list", "", "namespaces"), ("create", "", "namespaces"),
    ("list", "", "secrets"), ("list", "", "pods"), ("create", "", "pods"), ("list", "", "persistentvolumes"),
    ("create", "rbac.authorization.k8s.io", "clusterroles"),
    ("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
    ("bind", "rbac.authorization.k8s.io", "clusterroles"), ("escalate", "rbac.authorization.k8s.io", "clusterroles"),
    ("impersonate", "", "serviceaccounts"), ("impersonate", "", "users"), ("*", "*", "*"),
]  # fmt: skip
"""Verb, group, resource, in all namespaces or in none."""


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[Cluster]:
    charts.install_platform(cluster, charts.with_tenants(*TENANTS))
    yield cluster
    charts.install_platform(cluster)
    cluster.kubectl("delete", "namespace", "--wait=false", *(f"tenant-{tenant}" for tenant in TENANTS))


def ask(cluster: Cluster, questions: list[tuple[str, dict[str, str]]]) -> list[bool]:
    """Whether each account may do each thing: what `kubectl auth can-i --as` asks, without a process for each."""
    from kubernetes import client, config  # type: ignore[import-untyped]

    api = client.AuthorizationV1Api(config.new_client_from_config(str(cluster.kubeconfig)))

    def may(question: tuple[str, dict[str, str]]) -> bool:
        account, what = question
        namespace, _, name = account.partition("/")
        spec = {
            "user": f"system:serviceaccount:{namespace}:{name}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
            "resourceAttributes": what,
        }
        # The answer as it comes: to make objects of ten thousand takes longer than to get them.
        answer = api.create_subject_access_review({"spec": spec}, _preload_content=False)
        return bool(json.loads(answer.data)["status"]["allowed"])

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(may, questions))


def attributes(verb: str, group: str, resource: str, namespace: str = "") -> dict[str, str]:
    name, _, subresource = resource.partition("/")
    return {"verb": verb, "group": group, "resource": name, "subresource": subresource, "namespace": namespace}


def test_every_account_may_do_what_the_table_says_and_nothing_else(installed: Cluster) -> None:
    matrix = list(itertools.product(GOLDEN, NAMESPACES, RESOURCES, VERBS))
    questions = [
        (account, attributes(verb, group, resource, namespace))
        for account, namespace, (group, resource), verb in matrix
    ]
    allowed = {
        (account, namespace, resource, verb)
        for (account, namespace, (_, resource), verb), may in zip(matrix, ask(installed, questions), strict=True)
        if may
    }
    golden = {
        (account, namespace, resource, verb)
        for account, namespaces in GOLDEN.items()
        for namespace, resources in namespaces.items()
        for resource, verbs in resources.items()
        for verb in verbs
    }
    assert allowed == golden
    assert len(matrix) > 8_000


def test_no_account_may_do_anything_everywhere(installed: Cluster) -> None:
    matrix = list(itertools.product(GOLDEN, ANYWHERE))
    answers = ask(installed, [(account, attributes(*what)) for account, what in matrix])
    assert [one for one, may in zip(matrix, answers, strict=True) if may] == []


def test_the_table_names_every_account(installed: Cluster) -> None:
    """Of the chart; accounts called `default` have what nobody gave them, whatever the namespace."""
    rendered = charts.render("platform", charts.with_tenants(*TENANTS))
    ours = {"/".join(charts.key(one)[1:]) for one in charts.kind(rendered, "ServiceAccount")}
    assert ours <= GOLDEN.keys()
    there = {
        f"{namespace}/{one['metadata']['name']}"
        for namespace in NAMESPACES
        if namespace not in ("kube-system", "default")
        for one in installed.get("serviceaccounts", f"--namespace={namespace}")["items"]
        if "helm.sh/chart" in one["metadata"].get("labels", {})
    }
    assert there == ours


@pytest.mark.parametrize("account", GOLDEN)
def test_kubectl_says_the_same_of_every_rule_there_is(account: str, installed: Cluster) -> None:
    """`kubectl auth can-i --list`: every rule about an account, whatever its resource, where it may do the most."""
    namespace, _, name = account.partition("/")
    for where in ("production", namespace):
        listed = installed.kubectl(
            "auth", "can-i", "--list", "--no-headers", f"--namespace={where}",
            f"--as=system:serviceaccount:{namespace}:{name}",
            "--as-group=system:serviceaccounts", f"--as-group=system:serviceaccounts:{namespace}",
            "--as-group=system:authenticated",
        )  # fmt: skip
        rules = {
            (words[0], tuple(sorted(line.rpartition("[")[2].rstrip("] ").split())))
            for line in listed.splitlines()
            if (words := line.split()) and not words[0].startswith(("[", "selfsubject"))
        }
        golden = {(resource, tuple(sorted(verbs))) for resource, verbs in GOLDEN[account].get(where, {}).items()}
        assert rules == golden


@pytest.mark.parametrize(
    ("verb", "resource", "namespace", "answer"),
    [
        ("create", "pods", "production", "yes"),
        ("get", "pods/log", "production", "yes"),
        ("create", "pods/exec", "production", "no"),
        ("list", "secrets", "production", "no"),
        ("create", "pods", "airflow", "no"),
        ("create", "pods", "kube-system", "no"),
    ],
)
def test_kubectl_says_the_same_of_the_launcher(
    verb: str, resource: str, namespace: str, answer: str, installed: Cluster
) -> None:
    kind, _, subresource = resource.partition("/")
    # `pods/exec` would be a pod that is called exec.
    command = ["auth", "can-i", verb, kind, f"--subresource={subresource}", f"--namespace={namespace}"]
    launcher = "--as=system:serviceaccount:airflow:airflow-pod-launcher"
    if answer == "yes":
        assert installed.kubectl(*command, launcher).strip() == "yes"
    else:
        with pytest.raises(RuntimeError):
            installed.kubectl(*command, launcher)
