"""The cluster itself: what the other tests take for granted of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from marketdata.settings import Settings
from tests.engines.kubernetes.cluster import CGROUPS, STATES, Cluster, why_not
from tests.engines.kubernetes.objects import hardened
from tests.waiting import until

SLEEP = ["python3", "-c", "import time; time.sleep(600)"]
UNHARDENED = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "unhardened"},
              "spec": {"containers": [{"name": "base", "image": "any"}]}}  # fmt: skip


@pytest.fixture(scope="module")
def restricted(cluster: Cluster) -> Iterator[str]:
    """A namespace that admits only hardened pods."""
    yield from _namespace(cluster, {"pod-security.kubernetes.io/enforce": "restricted"})


@pytest.fixture(scope="module")
def unlabelled(cluster: Cluster) -> Iterator[str]:
    """A namespace that admits any pod."""
    yield from _namespace(cluster, {})


def _namespace(cluster: Cluster, labels: dict[str, str]) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    until("the namespace has its account", lambda: "default" in _names(cluster, "serviceaccounts", name))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def _names(cluster: Cluster, kind: str, namespace: str) -> set[str]:
    return {item["metadata"]["name"] for item in cluster.get(kind, f"--namespace={namespace}")["items"]}


def _create(cluster: Cluster, namespace: str, thing: dict[str, Any], *options: str) -> None:
    cluster.kubectl("create", f"--namespace={namespace}", "--filename=-", *options, input=json.dumps(thing))


def _wait(cluster: Cluster, namespace: str, pod: str, phase: str) -> None:
    condition = f"--for=jsonpath={{.status.phase}}={phase}"
    cluster.kubectl("wait", f"--namespace={namespace}", condition, f"pod/{pod}", "--timeout=120s")


def test_an_unhardened_pod_is_refused_and_told_each_field_it_lacks(cluster: Cluster, restricted: str) -> None:
    with pytest.raises(RuntimeError) as refused:
        _create(cluster, restricted, UNHARDENED)

    for field in ("allowPrivilegeEscalation", "capabilities.drop", "runAsNonRoot", "seccompProfile.type"):
        assert field in str(refused.value)


def test_public_examples_of_the_restricted_rules_are_admitted_and_refused_as_they_say(
    cluster: Cluster, restricted: str, unlabelled: str, shared_data: Path
) -> None:
    examples = shared_data / "checks" / "pod-security" / "restricted" / "v1.34"
    good, bad = _examples(examples / "pass"), _examples(examples / "fail")
    assert (len(good), len(bad)) == (22, 74)

    assert _refused(cluster, restricted, good) == {}
    refused = _refused(cluster, restricted, bad)
    assert refused.keys() == {pod["metadata"]["name"] for pod in bad}
    assert [name for name, reason in refused.items() if "violates PodSecurity" not in reason] == []
    # It is the namespace's label that refuses them: without it they are pods like others.
    assert _refused(cluster, unlabelled, bad) == {}


def _examples(folder: Path) -> list[dict[str, Any]]:
    """The pods of a folder, each with a name that the API server takes."""
    pods = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))]
    for pod in pods:
        pod["metadata"]["name"] = pod["metadata"]["name"].replace("_", "-")
    return pods


def _refused(cluster: Cluster, namespace: str, pods: list[dict[str, Any]]) -> dict[str, str]:
    """Name → reason, of those the API server would not create."""
    content = yaml.safe_dump_all(pods)
    try:
        cluster.kubectl("create", f"--namespace={namespace}", "--dry-run=server", "--filename=-", input=content)
    except RuntimeError as error:
        return dict(re.findall(r"[Pp]ods? \"([^\"]+)\" is (.*)", str(error)))
    return {}


def test_an_account_may_do_nothing_that_no_role_gives_it(cluster: Cluster, restricted: str) -> None:
    account = f"--as=system:serviceaccount:{restricted}:default"

    with pytest.raises(RuntimeError, match=r'cannot list resource "secrets"'):
        cluster.kubectl("get", "secrets", f"--namespace={restricted}", account)


def test_a_pod_over_the_quota_is_refused_with_the_figures(cluster: Cluster, unlabelled: str) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"},
             "spec": {"hard": {"limits.cpu": "1"}}}  # fmt: skip
    _create(cluster, unlabelled, quota)
    pod = hardened("large", SLEEP)
    pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "2"
    try:
        until("the quota counts", lambda: "exceeded quota" in cluster.refusal(unlabelled, pod))
        with pytest.raises(RuntimeError, match=r"exceeded quota: small, requested: limits.cpu=2, .* limited: .*=1"):
            _create(cluster, unlabelled, pod)
    finally:
        cluster.kubectl("delete", "quota", "small", f"--namespace={unlabelled}")


def test_pods_reach_the_services_of_this_machine(cluster: Cluster, restricted: str, services: Settings) -> None:
    addresses = [
        services.require("kafka_brokers"),
        services.require("postgres_dsn").partition("@")[2].partition("/")[0],
        services.require("aws_endpoint_url").removeprefix("http://"),
    ]
    script = (
        f"import socket\nfor a in {addresses}: h, p = a.split(':'); socket.create_connection((h, int(p)), 5); print(a)"
    )
    started = time.monotonic()
    _create(cluster, restricted, hardened("reaches", ["python3", "-c", script]))
    _wait(cluster, restricted, "reaches", "Succeeded")
    print(f"a bare pod, create to Succeeded: {time.monotonic() - started:.2f} s")

    assert cluster.kubectl("logs", "reaches", f"--namespace={restricted}").split() == addresses


def test_the_audit_log_says_who_did_what_and_no_secret(own_cluster: Cluster, restricted: str) -> None:
    canary = uuid.uuid4().hex
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "audited"}, "stringData": {"key": canary}}
    _create(own_cluster, restricted, secret)
    account = f"system:serviceaccount:{restricted}:default"
    with pytest.raises(RuntimeError, match="cannot create"):
        _create(own_cluster, restricted, UNHARDENED, f"--as={account}")

    assert own_cluster.own is not None
    text = (own_cluster.own.state / "audit.log").read_text()
    entries = [entry for entry in map(json.loads, text.splitlines()) if entry["verb"] == "create"]
    (made,) = [entry for entry in entries if entry["objectRef"].get("name") == "audited"]
    assert (made["user"]["username"], made["level"], made["responseStatus"]["code"]) == ("admin", "Metadata", 201)
    (tried,) = [entry for entry in entries if entry.get("impersonatedUser", {}).get("username") == account]
    assert (tried["objectRef"]["resource"], tried["responseStatus"]["code"]) == ("pods", 403)
    assert canary not in text
    assert b64encode(canary.encode()).decode() not in text


def test_an_evicted_pod_is_gone_and_a_disruption_budget_forbids_it(cluster: Cluster, restricted: str) -> None:
    pod = hardened("evicted", SLEEP, terminationGracePeriodSeconds=1)
    pod["metadata"]["labels"] = {"app": "evicted"}
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "keep"},
              "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "evicted"}}}}  # fmt: skip
    _create(cluster, restricted, budget)
    _create(cluster, restricted, pod)
    _wait(cluster, restricted, "evicted", "Running")

    with pytest.raises(RuntimeError, match="disruption budget"):
        cluster.evict(restricted, "evicted")
    cluster.kubectl("delete", "poddisruptionbudget", "keep", f"--namespace={restricted}")
    cluster.evict(restricted, "evicted")

    until("the pod is gone", lambda: "evicted" not in _names(cluster, "pods", restricted))
    until("it is said why", lambda: "Killing" in {event["reason"] for event in cluster.events(restricted, "evicted")})


def test_pods_outlive_an_outage_of_the_api_server(own_cluster: Cluster, restricted: str) -> None:
    _create(own_cluster, restricted, hardened("survivor", SLEEP, terminationGracePeriodSeconds=0))
    _wait(own_cluster, restricted, "survivor", "Running")

    with own_cluster.api_down(), pytest.raises(RuntimeError, match="refused"):
        own_cluster.kubectl("get", "--raw=/readyz")

    (status,) = own_cluster.get("pod/survivor", f"--namespace={restricted}")["status"]["containerStatuses"]
    assert (status["restartCount"], "running" in status["state"]) == (0, True)
    _create(own_cluster, restricted, hardened("afterwards", ["true"]))
    _wait(own_cluster, restricted, "afterwards", "Succeeded")
    own_cluster.kubectl("delete", "pod", "survivor", f"--namespace={restricted}")


STARTER = """
import signal
from tests.engines.kubernetes.cluster import Node, slot
with slot() as (number, lock), Node(number).running(lock):
    print(number, flush=True)
    signal.pause()
"""


def test_a_killed_starter_leaves_nothing_that_the_next_start_does_not_remove() -> None:
    if reason := why_not():
        pytest.skip(reason)
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    with subprocess.Popen([sys.executable, "-c", STARTER], cwd=root, env=environment, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        number = int(killed.stdout.readline())
        left = f"{STATES}/{number}/"
        until("its programs run", lambda: {"etcd", "containerd", "kube-apiserver"} <= _running(left))
        killed.kill()

    until("its programs are gone", lambda: not _running(left))
    until("its network is gone", lambda: not Path(f"/sys/class/net/marketdata{number}").exists())
    assert left not in Path("/proc/mounts").read_text()
    assert (STATES / str(number) / "etcd").exists()
    again = STARTER.replace("signal.pause()", "")
    subprocess.run([sys.executable, "-c", again], cwd=root, env=environment, check=True, capture_output=True)
    assert not (STATES / str(number)).exists()
    assert not list(CGROUPS.glob(f"**/marketdata{number}"))


def _running(folder: str) -> set[str]:
    """Names of the programs that work in a folder."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        if any(folder in word for word in process.info["cmdline"] or ()):
            found.add(process.info["name"])
    return found
