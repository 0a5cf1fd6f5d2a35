"""The policy objects to every mutant: each hardening field taken away, one at a time, is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk import DAG
from kubernetes.client import models as k8s

from marketdata.orchestration import policy
from marketdata.orchestration.pod import MarketdataPodOperator

pytestmark = pytest.mark.usefixtures("clean_settings")


@pytest.fixture
def pod() -> k8s.V1Pod:
    with DAG("some-dag", schedule=None):
        task = MarketdataPodOperator(task_id="t", command=["load"], app="a", tier="critical")
    return task.build_pod_request_obj(dry_run=True)


def test_the_operators_pod_breaks_nothing(pod: k8s.V1Pod) -> None:
    assert policy.violations(pod) == []


def base(pod: k8s.V1Pod) -> k8s.V1Container:
    return pod.spec.containers[0]


Mutate = Callable[[k8s.V1Pod], object]
MUTANTS: dict[str, tuple[str, Mutate]] = {
    "namespace": ("metadata.namespace", lambda p: setattr(p.metadata, "namespace", "default")),
    "account": ("spec.serviceAccountName", lambda p: setattr(p.spec, "service_account_name", None)),
    "token": ("spec.automountServiceAccountToken", lambda p: setattr(p.spec, "automount_service_account_token", None)),
    "restart": ("spec.restartPolicy", lambda p: setattr(p.spec, "restart_policy", "OnFailure")),
    "no priority": ("spec.priorityClassName", lambda p: setattr(p.spec, "priority_class_name", None)),
    "the cluster's priority": ("spec.priorityClassName", lambda p: setattr(
        p.spec, "priority_class_name", "system-node-critical")),
    "result elsewhere": ("terminationMessagePath", lambda p: setattr(base(p), "termination_message_path", "/dev/null")),
    "no last words": ("terminationMessagePolicy", lambda p: setattr(base(p), "termination_message_policy", "File")),
    "host network": ("spec.hostNetwork", lambda p: setattr(p.spec, "host_network", True)),
    "host pid": ("spec.hostPID", lambda p: setattr(p.spec, "host_pid", True)),
    "host ipc": ("spec.hostIPC", lambda p: setattr(p.spec, "host_ipc", True)),
    "shared processes": ("spec.shareProcessNamespace", lambda p: setattr(p.spec, "share_process_namespace", True)),
    "no deadline": ("spec.activeDeadlineSeconds", lambda p: setattr(p.spec, "active_deadline_seconds", None)),
    "late deadline": ("spec.activeDeadlineSeconds", lambda p: setattr(p.spec, "active_deadline_seconds", 3601)),
    "no pod context": ("spec.securityContext.runAsNonRoot", lambda p: setattr(p.spec, "security_context", None)),
    "sysctls": ("spec.securityContext.sysctls", lambda p: setattr(
        p.spec.security_context, "sysctls", [k8s.V1Sysctl(name="kernel.msgmax", value="1")])),
    "host path": ("spec.volumes[host].hostPath", lambda p: p.spec.volumes.append(
        k8s.V1Volume(name="host", host_path=k8s.V1HostPathVolumeSource(path="/")))),
    "projected token": ("spec.volumes[token].projected", lambda p: p.spec.volumes.append(
        k8s.V1Volume(name="token", projected=k8s.V1ProjectedVolumeSource(sources=[])))),
    "unbounded volume": ("spec.volumes[big].emptyDir.sizeLimit", lambda p: p.spec.volumes.append(
        k8s.V1Volume(name="big", empty_dir=k8s.V1EmptyDirVolumeSource()))),
    "no tmp": ("must be an emptyDir of 256Mi", lambda p: setattr(
        base(p), "volume_mounts", [m for m in base(p).volume_mounts if m.name != "tmp"])),
    "large tmp": ("must be an emptyDir of 256Mi", lambda p: setattr(
        next(v for v in p.spec.volumes if v.name == "tmp").empty_dir, "size_limit", "10Gi")),
    "latest": ("spec.containers[base].image", lambda p: setattr(base(p), "image", "repo/task:latest")),
    "no tag": ("spec.containers[base].image", lambda p: setattr(base(p), "image", "registry:5000/task")),
    "no command": ("spec.containers[base].command", lambda p: setattr(base(p), "command", None)),
    "pip": ("must not install packages", lambda p: setattr(base(p), "args", ["-c", "pip install requests && x"])),
    "credential in words": ("args holds a literal credential", lambda p: setattr(
        base(p), "args", ["--dsn", "postgresql://u:pw@db/x"])),
    "credential by name": ("env[API_TOKEN] is a literal credential", lambda p: base(p).env.append(
        k8s.V1EnvVar(name="API_TOKEN", value="abc"))),
    "credential by form": ("env[SOME_URL] is a literal credential", lambda p: base(p).env.append(
        k8s.V1EnvVar(name="SOME_URL", value="https://u:pw@host"))),
    "literal brokers": ("env[KAFKA_BROKERS] must be key kafka_brokers", lambda p: setattr(
        base(p), "env", [v for v in base(p).env if v.name != "KAFKA_BROKERS"]
        + [k8s.V1EnvVar(name="KAFKA_BROKERS", value="kafka:9092")])),
    "another secret": ("env[KAFKA_TOPIC] must be key kafka_topic of Secret production-credentials", lambda p: setattr(
        next(v for v in base(p).env if v.name == "KAFKA_TOPIC").value_from.secret_key_ref, "name", "other")),
    "hidden variables": ("spec.containers[base].envFrom", lambda p: setattr(base(p), "env_from", [
        k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name="s"))])),
    "host port": ("ports.hostPort", lambda p: setattr(base(p), "ports", [
        k8s.V1ContainerPort(container_port=80, host_port=80)])),
    "added capability": ("spec.containers[base].securityContext.capabilities", lambda p: setattr(
        base(p).security_context.capabilities, "add", ["NET_ADMIN"])),
    "no container context": ("spec.containers[base].securityContext.privileged", lambda p: setattr(
        base(p), "security_context", None)),
    "soft sidecar": ("spec.containers[proxy].resources.limits.memory", lambda p: p.spec.containers.append(
        k8s.V1Container(name="proxy", image="a:1", security_context=policy.container_security_context()))),
    "soft init container": ("spec.initContainers[setup].securityContext.privileged", lambda p: setattr(
        p.spec, "init_containers", [k8s.V1Container(name="setup", image="a:1")])),
}  # fmt: skip
for label in ("app", "environment", "tier", "component", "tenant", "workflow"):
    MUTANTS[f"label {label}"] = (f"metadata.labels.{label}", lambda p, label=label: p.metadata.labels.pop(label))
for field in k8s.V1PodSecurityContext.attribute_map:
    if getattr(policy.pod_security_context(), field) is not None:
        MUTANTS[f"pod context without {field}"] = (
            f"spec.securityContext.{k8s.V1PodSecurityContext.attribute_map[field]}",
            lambda p, field=field: setattr(p.spec.security_context, field, None),
        )
for field in ("allow_privilege_escalation", "read_only_root_filesystem", "privileged", "capabilities"):
    MUTANTS[f"container without {field}"] = (
        f"spec.containers[base].securityContext.{k8s.V1SecurityContext.attribute_map[field]}",
        lambda p, field=field: setattr(base(p).security_context, field, None),
    )
for field, value in (("run_as_user", 0), ("run_as_non_root", False)):
    MUTANTS[f"container with {field} {value}"] = (
        f"spec.containers[base].securityContext.{k8s.V1SecurityContext.attribute_map[field]}",
        lambda p, field=field, value=value: setattr(base(p).security_context, field, value),
    )
for kind in ("requests", "limits"):
    for resource in ("cpu", "memory", "ephemeral-storage"):
        MUTANTS[f"container without {kind}.{resource}"] = (
            f"spec.containers[base].resources.{kind}.{resource}",
            lambda p, kind=kind, resource=resource: getattr(base(p).resources, kind).pop(resource),
        )


@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_is_named(pod: k8s.V1Pod, mutant: str) -> None:
    says, mutate = MUTANTS[mutant]
    mutated = copy.deepcopy(pod)
    mutate(mutated)
    broken = policy.violations(mutated)
    assert any(says in violation for violation in broken), broken


def test_a_secret_volume_and_a_digest_are_fine(pod: k8s.V1Pod) -> None:
    pod.spec.volumes.append(k8s.V1Volume(name="s", secret=k8s.V1SecretVolumeSource(secret_name="s")))
    base(pod).image = "registry:5000/task@sha256:" + "0" * 64
    assert policy.violations(pod) == []


def test_a_manifest_says_no_value_of_what_it_objects_to(pod: k8s.V1Pod) -> None:
    base(pod).env.append(k8s.V1EnvVar(name="DB_PASSWORD", value="hidden"))
    broken: Any = policy.violations(pod)
    assert broken
    assert "hidden" not in str(broken)
