"""What the platform demands of every pod, and the list of what a given pod breaks.

It is asked about the pod as it is submitted, by the operator before every launch and by the tests about every task.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kubernetes.client import ApiClient  # type: ignore[import-untyped]
from kubernetes.client import models as k8s

from marketdata.orchestration.defaults import Tier
from marketdata.orchestration.environment import RESULT_FILE, SECRETS, TEMPORARY

NAMESPACE = "production"
SERVICE_ACCOUNT = "production-etl"
USER = 10001
MAX_SECONDS = 3600
TEMPORARY_SIZE = "256Mi"

LABELS = ("app", "environment", "tier", "component", "tenant", "workflow")
_VOLUMES = {"emptyDir", "configMap", "secret"}
_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|DSN|PRIVATE|(^|_)KEY($|_)", re.IGNORECASE)
_CREDENTIAL = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_INSTALLS = re.compile(r"\bpip3?\s+install\b|\buv\s+(pip|add|sync)\b|\bapt(-get)?\s+install\b")


def priority_class(tier: Tier) -> str:
    """The PriorityClass of a tier's pods; the platform's chart makes them."""
    return f"marketdata-{tier}"


def pod_security_context() -> k8s.V1PodSecurityContext:
    return k8s.V1PodSecurityContext(
        run_as_non_root=True,
        run_as_user=USER,
        run_as_group=USER,
        fs_group=USER,
        fs_group_change_policy="OnRootMismatch",
        seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
    )


def container_security_context() -> k8s.V1SecurityContext:
    return k8s.V1SecurityContext(
        allow_privilege_escalation=False,
        read_only_root_filesystem=True,
        privileged=False,
        capabilities=k8s.V1Capabilities(drop=["ALL"]),
    )


def violations(pod: k8s.V1Pod) -> list[str]:
    """What the pod breaks, each naming its field; an empty list for a pod that may be launched."""
    with ApiClient() as client:
        manifest = client.sanitize_for_serialization(pod)
    return [*_metadata(manifest.get("metadata") or {}), *_spec(manifest.get("spec") or {})]


def _metadata(metadata: Mapping[str, Any]) -> Iterator[str]:
    if metadata.get("namespace") != NAMESPACE:
        yield f"metadata.namespace must be {NAMESPACE}, not {metadata.get('namespace')}"
    for label in LABELS:
        if not (metadata.get("labels") or {}).get(label):
            yield f"metadata.labels.{label} is missing"


def _spec(spec: Mapping[str, Any]) -> Iterator[str]:
    for field, wanted in (
        ("serviceAccountName", SERVICE_ACCOUNT),
        ("automountServiceAccountToken", False),
        ("restartPolicy", "Never"),
    ):
        if spec.get(field) != wanted:
            yield f"spec.{field} must be {wanted}, not {spec.get(field)}"
    if spec.get("priorityClassName") not in [priority_class(tier) for tier in Tier]:
        yield f"spec.priorityClassName must be that of a tier, not {spec.get('priorityClassName')}"
    for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(field):
            yield f"spec.{field} must not be set"
    seconds = spec.get("activeDeadlineSeconds")
    if not seconds or seconds > MAX_SECONDS:
        yield f"spec.activeDeadlineSeconds must be at most {MAX_SECONDS}, not {seconds}"
    context = spec.get("securityContext") or {}
    wanted_context = ApiClient().sanitize_for_serialization(pod_security_context())
    for field, wanted in wanted_context.items():
        if context.get(field) != wanted:
            yield f"spec.securityContext.{field} must be {wanted}, not {context.get(field)}"
    for field in sorted(context.keys() - wanted_context.keys()):
        yield f"spec.securityContext.{field} must not be set"
    yield from _volumes(spec.get("volumes") or [])
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(group) or []:
            yield from _container(f"spec.{group}[{container.get('name')}]", container)
    base: Mapping[str, Any] = next((c for c in spec.get("containers") or [] if c.get("name") == "base"), {})
    yield from _base(base, {v["name"]: v for v in spec.get("volumes") or []})


def _volumes(volumes: list[Mapping[str, Any]]) -> Iterator[str]:
    for volume in volumes:
        where = f"spec.volumes[{volume['name']}]"
        for kind in sorted(volume.keys() - _VOLUMES - {"name"}):
            yield f"{where}.{kind} is not allowed; {', '.join(sorted(_VOLUMES))} are"
        if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit"):
            yield f"{where}.emptyDir.sizeLimit is missing"


def _container(where: str, container: Mapping[str, Any]) -> Iterator[str]:
    context = container.get("securityContext") or {}
    for field, wanted in ApiClient().sanitize_for_serialization(container_security_context()).items():
        if context.get(field) != wanted:
            yield f"{where}.securityContext.{field} must be {wanted}, not {context.get(field)}"
    for field in ("runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile", "procMount"):
        if field in context:
            yield f"{where}.securityContext.{field} must be left to the pod's"
    for kind in ("requests", "limits"):
        for resource in ("cpu", "memory", "ephemeral-storage"):
            if not ((container.get("resources") or {}).get(kind) or {}).get(resource):
                yield f"{where}.resources.{kind}.{resource} is missing"
    image = container.get("image") or ""
    _, _, tag = image.rpartition("/")[2].partition(":")
    if "@sha256:" not in image and tag in ("", "latest"):
        yield f"{where}.image must carry a tag other than latest, or a digest, not {image!r}"
    for port in container.get("ports") or []:
        if port.get("hostPort"):
            yield f"{where}.ports.hostPort must not be set"
    words = " ".join([*(container.get("command") or []), *(container.get("args") or [])])
    if _INSTALLS.search(words):
        yield f"{where}.command must not install packages; they are in the image"
    if _CREDENTIAL.search(words):
        yield f"{where}.args holds a literal credential"
    if container.get("envFrom"):
        yield f"{where}.envFrom is not allowed: every variable is named"
    for variable in container.get("env") or []:
        value = variable.get("value")
        if value and (_SECRET_NAME.search(variable["name"]) or _CREDENTIAL.search(value)):
            yield f"{where}.env[{variable['name']}] is a literal credential; refer to a Secret"


def _base(base: Mapping[str, Any], volumes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not base.get("command"):
        yield "spec.containers[base].command is missing: the image's entry point is not relied on"
    if base.get("terminationMessagePath") != RESULT_FILE:
        yield f"spec.containers[base].terminationMessagePath must be {RESULT_FILE}: the result is read from there"
    if base.get("terminationMessagePolicy") != "FallbackToLogsOnError":
        yield "spec.containers[base].terminationMessagePolicy must be FallbackToLogsOnError: it keeps the last words"
    mounted = {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in base.get("volumeMounts") or []}
    if (mounted.get(TEMPORARY, {}).get("emptyDir") or {}).get("sizeLimit") != TEMPORARY_SIZE:
        yield f"spec.containers[base].volumeMounts: {TEMPORARY} must be an emptyDir of {TEMPORARY_SIZE}"
    given = {variable["name"]: variable for variable in base.get("env") or []}
    for name, key in SECRETS.items():
        reference = ((given.get(name) or {}).get("valueFrom") or {}).get("secretKeyRef") or {}
        if (reference.get("name"), reference.get("key")) != (key.secret, key.key):
            yield f"spec.containers[base].env[{name}] must be key {key.key} of Secret {key.secret}"
