"""The environment of a task's pod: one table of where each variable comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kubernetes.client import models as k8s  # type: ignore[import-untyped]
from pydantic import SecretStr

from marketdata.settings import Settings

if TYPE_CHECKING:
    from airflow.sdk import Context

RESULT_VARIABLE = "MARKETDATA_RESULT"
"""Names the file a command writes its result to, as JSON."""

RESULT_FILE = "/dev/termination-log"
"""The container's termination message: Kubernetes keeps it in the pod's status, up to 4096 bytes."""

TEMPORARY = "/tmp"  # noqa: S108 - the one writable folder of a pod


@dataclass(frozen=True)
class SecretKey:
    """A key of a Kubernetes Secret. Optional: the pod starts without it, and the command says if it needs it."""

    secret: str
    key: str
    optional: bool = True


SECRETS: Mapping[str, SecretKey] = {
    "KAFKA_BROKERS": SecretKey("production-credentials", "kafka_brokers", optional=False),
    "KAFKA_TOPIC": SecretKey("production-credentials", "kafka_topic", optional=False),
    "KAFKA_USER": SecretKey("kafka-credentials", "user"),
    "KAFKA_PASSWORD": SecretKey("kafka-credentials", "password"),
    "KAFKA_CA": SecretKey("kafka-credentials", "ca"),
    "POSTGRES_DSN": SecretKey("postgres-credentials", "dsn"),
    "AWS_ACCESS_KEY_ID": SecretKey("lake-credentials", "access_key_id"),
    "AWS_SECRET_ACCESS_KEY": SecretKey("lake-credentials", "secret_access_key"),
    "COMMODITY_API_KEY": SecretKey("commodity-api-credentials", "api_key"),
}
"""Variables that reach a pod by reference: Airflow never sees their values."""

PLAIN = (
    "ENVIRONMENT",
    "TENANT",
    "LOG_LEVEL",
    "LAKE_URI",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "TRINO_HOST",
    "TRINO_PORT",
    "TRINO_USER",
    "TRINO_CATALOG",
    "TRINO_SCHEMA",
    "MARKETDATA_SOURCES",
    "MARKETDATA_FILES",
    "MARKETDATA_FILES_MAPPING",
    "COMMODITY_API_URL",
    "COMMODITY_API_PAGE_SIZE",
)
"""Variables that Airflow's own settings say, where they say anything."""

NOT_FOR_PODS = (
    "MARKETDATA_HOME",
    "MARKETDATA_IMAGE",
    "MARKETDATA_REVISION",
    "PUSHGATEWAY_URL",
    "RUNBOOKS_URL",
    "SCHEMA_REGISTRY_URL",
    "ANALYTICS_TOPIC",
    "ANALYTICS_GROUP",
    "ANALYTICS_MEMBER",
    "ANALYTICS_PORT",
    "ANALYTICS_ALERT_PERCENT",
)
"""Settings of Airflow, of a laptop, of consumers and of the image itself, which no task is told."""


def variables(settings: Settings, context: Context | None) -> list[k8s.V1EnvVar]:
    """The environment of a task's base container.

    Args:
        context: of the task instance; None where a pod is only looked at.
    """
    plain = {name: getattr(settings, name.lower()) for name in PLAIN}
    plain |= {RESULT_VARIABLE: RESULT_FILE, "TMPDIR": TEMPORARY, "HOME": TEMPORARY}
    if context is not None:
        instance: Any = context["ti"]
        plain |= {
            "MARKETDATA_DAG_ID": instance.dag_id,
            "MARKETDATA_TASK_ID": instance.task_id,
            "MARKETDATA_RUN_ID": instance.run_id,
            "MARKETDATA_TRY_NUMBER": instance.try_number,
        }
    literal = [k8s.V1EnvVar(name=name, value=str(value)) for name, value in plain.items() if value is not None]
    return literal + [_reference(name, key) for name, key in SECRETS.items()]


def credentials(settings: Settings) -> frozenset[str]:
    """The secret values this process knows, so that they can be struck out of what a child process says."""
    from urllib.parse import urlsplit

    known = {value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)}
    known |= {password for text in known if "://" in text and (password := urlsplit(text).password)}
    return frozenset(text for text in known if text)


def _reference(name: str, key: SecretKey) -> k8s.V1EnvVar:
    selector = k8s.V1SecretKeySelector(name=key.secret, key=key.key, optional=key.optional)
    return k8s.V1EnvVar(name=name, value_from=k8s.V1EnvVarSource(secret_key_ref=selector))
