"""What tests and benches put into a cluster themselves; the platform's own comes from its operator and charts."""

from __future__ import annotations

from typing import Any

from marketdata.orchestration.environment import SECRETS
from marketdata.settings import Settings
from tests.engines.kubernetes.build import PYTHON


def hardened(name: str, command: list[str], *, image: str = PYTHON, **spec: Any) -> dict[str, Any]:
    """A pod with the least rights that the platform asks for, which are less than the `restricted` rules admit.

    Args:
        spec: more fields of the pod's specification.
    """
    container = {
        "name": "base",
        "image": image,
        "imagePullPolicy": "Never",
        "command": command,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - a pod's own
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
            **spec,
        },
    }


def credentials(settings: Settings, namespace: str) -> list[dict[str, Any]]:
    """The Secrets that tasks' pods refer to, with what the settings say."""
    held: dict[str, dict[str, str]] = {}
    for variable, reference in SECRETS.items():
        if getattr(settings, variable.lower()) is not None:
            held.setdefault(reference.secret, {})[reference.key] = settings.require(variable.lower())
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "stringData": data}
        for name, data in held.items()
    ]
