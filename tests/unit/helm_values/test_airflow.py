"""Airflow's values: its chart's schema and keys, and what Airflow may do, is told and runs as with either executor."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from marketdata.orchestration import policy
from marketdata.orchestration.environment import SECRETS
from marketdata.settings import Settings
from tests.unit.helm_values.releases import ROOT, VALUES, leaves, merge, read, under, values

CHART = Path("checks") / "airflow-chart-1.22.0"
INSTALLATIONS = {
    "development": ("development",),
    "production": ("production",),
    "development, KubernetesExecutor": ("development", "airflow.kubernetes-executor.yaml"),
    "production, KubernetesExecutor": ("production", "airflow.kubernetes-executor.yaml"),
}
EACH = pytest.mark.parametrize("installation", INSTALLATIONS.values(), ids=INSTALLATIONS)

RUNS = (
    "scheduler", "apiServer", "dagProcessor", "triggerer", "migrateDatabaseJob", "databaseCleanup", "otelCollector",
    "scheduler.logGroomerSidecar", "dagProcessor.logGroomerSidecar", "triggerer.logGroomerSidecar",
)  # fmt: skip
"""Every part that is started, each with a container of its own."""

OFF = {"createUserJob", "postgresql", "redis", "statsd", "cleanup", "flower", "kerberos"}
OWN_CONTEXTS = (
    "otelCollector.securityContexts.container",
    "statsd.securityContexts.container",
    "dags.gitSync.securityContexts.container",
)
"""Parts that the chart's common contexts do not reach."""


@cache
def defaults(shared_data: Path) -> dict[str, Any]:
    text = (shared_data / CHART / "values.yaml").read_text(encoding="utf-8")
    read: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    return read


@cache
def schema_of(shared_data: Path) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((shared_data / CHART / "values.schema.json").read_text(encoding="utf-8"))
    return schema


def effective(shared_data: Path, *installation: str) -> dict[str, Any]:
    """The chart's defaults with ours over them, as its templates see them."""
    return merge(defaults(shared_data), values("airflow", *installation))


def environment(given: dict[str, Any]) -> dict[str, Any]:
    """What every container of Airflow is told: variable by variable, a value or a reference."""
    extra = re.sub(r"\{\{.*?\}\}", "templated", given["extraEnv"])
    told = {variable["name"]: variable["value"] for variable in given["env"]}
    told |= {one["envName"]: (one["secretName"], one["secretKey"]) for one in given["secret"]}
    for one in yaml.safe_load(extra):
        reference = one.get("valueFrom", {}).get("secretKeyRef")
        told[one["name"]] = (reference["name"], reference["key"]) if reference else one["value"]
    return told


@EACH
def test_the_chart_s_schema_takes_them(shared_data: Path, installation: tuple[str, ...]) -> None:
    schema = schema_of(shared_data)
    jsonschema.validate(effective(shared_data, *installation), schema)


@EACH
def test_the_chart_knows_every_key(shared_data: Path, installation: tuple[str, ...]) -> None:
    """The schema lets unknown keys pass in most places, and then they do nothing."""
    schema = schema_of(shared_data)
    unknown = [
        ".".join(path)
        for path, _ in leaves(values("airflow", *installation))
        if path[0] != "global" and not known(schema, path)
    ]
    assert not unknown


def known(schema: dict[str, Any], path: tuple[str, ...]) -> bool:
    for key in path:
        if "$ref" in schema:
            return True  # an object of Kubernetes' own, which the schema checks
        properties = schema.get("properties", {})
        if key in properties:
            schema = properties[key]
        elif isinstance(schema.get("additionalProperties"), dict):
            schema = schema["additionalProperties"]
        else:
            return schema.get("type") == "object" and not properties and schema.get("additionalProperties") is not False
    return True


@pytest.mark.parametrize("name", sorted(path.name for path in VALUES.glob("airflow*.yaml")))
def test_no_value_repeats_a_default(shared_data: Path, name: str) -> None:
    chart = dict(leaves(defaults(shared_data)))
    base = dict(leaves(read("airflow.yaml"))) if name != "airflow.yaml" else {}
    repeated = [
        ".".join(path)
        for path, value in leaves(read(name))
        if path not in base and path in chart and chart[path] == value
    ]
    assert not repeated


@EACH
def test_no_pod_may_do_more_than_a_task_s(shared_data: Path, installation: tuple[str, ...]) -> None:
    given = effective(shared_data, *installation)
    pod = given["securityContexts"]["pod"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == policy.USER == given["uid"]
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for path in ("securityContexts.containers", *OWN_CONTEXTS):
        container = under(given, path)
        assert container["allowPrivilegeEscalation"] is False, path
        assert container["readOnlyRootFilesystem"] is True, path
        assert container["privileged"] is False, path
        assert container["capabilities"] == {"drop": ["ALL"]}, path
    for part in ("otelCollector", "statsd"):
        own = given[part]["securityContexts"]["pod"]
        assert (own["runAsNonRoot"], own["seccompProfile"]) == (True, {"type": "RuntimeDefault"}), part
    git_sync = given["dags"]["gitSync"]["securityContexts"]["container"]
    assert (git_sync["runAsNonRoot"], git_sync["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    # No part has contexts of its own that would take the place of these.
    for part in [*RUNS, "workers", "workers.kubernetes", "workers.celery"]:
        own = under(given, f"{part}.securityContexts") or {}
        assert part == "otelCollector" or not any(own.values()), part


@EACH
def test_every_container_is_bounded(shared_data: Path, installation: tuple[str, ...]) -> None:
    given = effective(shared_data, *installation)
    workers = ["workers.kubernetes"] if given["executor"] == "KubernetesExecutor" else []
    for part in [*RUNS, "statsd", "dags.gitSync", *workers]:
        resources = under(given, f"{part}.resources")
        for kind in ("requests", "limits"):
            assert resources[kind].keys() >= {"cpu", "memory"}, f"{part}.resources.{kind}"
    for volume in given["volumes"]:
        assert volume["emptyDir"]["sizeLimit"], volume["name"]
    assert given["logs"]["emptyDirConfig"]["sizeLimit"]


@EACH
def test_what_is_off_is_off(shared_data: Path, installation: tuple[str, ...]) -> None:
    given = effective(shared_data, *installation)
    assert {part for part in OFF if given[part]["enabled"]} == set()
    assert given["dags"]["gitSync"]["enabled"] is False, "DAGs are in the image"
    assert given["multiNamespaceMode"] is False, "it would make the launcher's role one of the whole cluster"
    assert given["networkPolicies"]["enabled"] is True


@EACH
def test_only_launchers_have_a_token(shared_data: Path, installation: tuple[str, ...]) -> None:
    given = effective(shared_data, *installation)
    for part in ("apiServer", "dagProcessor", "triggerer", "migrateDatabaseJob", "otelCollector", "statsd"):
        if part == "apiServer" and given["executor"] == "KubernetesExecutor":
            continue  # it reads the logs of workers that run
        assert given[part]["serviceAccount"]["automountServiceAccountToken"] is False, part
    launchers = [given["scheduler"], given["databaseCleanup"]]
    if given["executor"] == "KubernetesExecutor":
        launchers.append(given["workers"]["kubernetes"])
    for part in launchers:
        assert part["serviceAccount"]["name"] == "airflow-pod-launcher"
        assert part["serviceAccount"]["create"] is False, "the platform's chart makes it, with its role"
    assert given["allowPodLaunching"] is (given["executor"] == "KubernetesExecutor")


def test_the_platform_lets_every_part_call_what_it_must(network: dict[str, dict[str, Any]]) -> None:
    may = {
        one["pods"]["component"]: set(one["calls"])
        for one in network.values()
        if one["namespace"] == "airflow" and "component" in one["pods"]
    }
    for part, calls in {
        "scheduler": {"kubernetes-api", "postgres", "airflow-api", "pushgateway", "airflow-telemetry", "object-store"},
        "worker": {"kubernetes-api", "airflow-api"},
        "api-server": {"postgres", "airflow-scheduler", "object-store"},
        "dag-processor": {"postgres", "airflow-api"},
        "run-airflow-migrations": {"postgres"},
        "database-cleanup": {"postgres", "kubernetes-api"},
        "otel-collector": {"prometheus"},
    }.items():
        assert calls <= may.get(part, set()), part


def test_the_platform_s_chart_makes_the_launcher() -> None:
    accounts = (ROOT / "deploy" / "platform" / "templates" / "accounts.yaml").read_text(encoding="utf-8")
    assert re.search(r"kind: ServiceAccount\nmetadata:\n  name: airflow-pod-launcher\n  namespace: airflow\n", accounts)


@EACH
def test_variables_are_settings_and_secrets_are_referred_to(installation: tuple[str, ...]) -> None:
    given = values("airflow", *installation)
    told = environment(given)
    ours = {name for name in told if not name.startswith(("AIRFLOW_", "AIRFLOW__"))}
    assert ours <= {name.upper() for name in Settings.model_fields}
    assert ours >= {"ENVIRONMENT", "MARKETDATA_IMAGE", "LAKE_URI", "TRINO_HOST", "PUSHGATEWAY_URL", "POSTGRES_DSN"}
    assert given["global"]["environment"] == installation[0]
    for name in ours & SECRETS.keys():
        assert told[name] == (SECRETS[name].secret, SECRETS[name].key)
    connection = json.loads(told["AIRFLOW_CONN_KUBERNETES_DEFAULT"])
    assert connection["extra"] == {"in_cluster": True, "namespace": policy.NAMESPACE}
    assert told["AIRFLOW_CONN_SLACK_DEFAULT"] == ("slack-credentials", "connection")
    for name, value in told.items():
        assert isinstance(value, tuple) or not policy._SECRET_NAME.search(name), f"{name} is told in plain text"


@EACH
def test_the_lake_is_one(installation: tuple[str, ...]) -> None:
    """Airflow, Trino and the platform's services look into the same bucket."""
    lake = values("airflow", *installation)["global"]["lakeUri"]
    trino = values("trino", installation[0])
    assert trino["global"]["lakeUri"] == lake
    assert "default-warehouse-dir={{ .Values.global.lakeUri }}/warehouse" in trino["catalogs"]["iceberg"]
    platform = merge(
        yaml.safe_load((ROOT / "deploy" / "platform" / "values.yaml").read_text(encoding="utf-8")),
        read(f"platform.{installation[0]}.yaml"),
    )
    assert platform["settings"]["LAKE_URI"] == lake
    told = environment(values("airflow", *installation))
    for name in told.keys() & platform["settings"].keys() - {"LAKE_URI"}:
        assert platform["settings"][name] == told[name], name


def test_a_scheduler_lets_its_tasks_finish(shared_data: Path) -> None:
    given = effective(shared_data, "production")
    assert given["executor"] == "LocalExecutor"
    assert given["scheduler"]["terminationGracePeriodSeconds"] >= 600
    assert {"name": "DUMB_INIT_SETSID", "value": "0"} in given["scheduler"]["env"]
    assert given["scheduler"]["safeToEvict"] is False
    assert given["workers"]["persistence"]["enabled"] is True, "the logs of its tasks outlive its pod"


def test_production_can_lose_a_node(shared_data: Path) -> None:
    given = effective(shared_data, "production")
    for part in ("scheduler", "apiServer", "dagProcessor"):
        assert given[part]["replicas"] == 2, part
        assert given[part]["podDisruptionBudget"] == {"enabled": True, "config": {"maxUnavailable": 1}}, part


def test_failed_pods_are_gone_within_a_day_and_history_after_three_months(shared_data: Path) -> None:
    cleanup = effective(shared_data, "production")["databaseCleanup"]
    assert cleanup["enabled"] is True
    assert re.fullmatch(r"\d+ \* \* \* \*", cleanup["schedule"]), "every hour"
    command = cleanup["args"][-1]
    kept = int(re.findall(r"cleanup-pods --namespace=production --min-completed-minutes=(\d+)", command)[0])
    assert kept + 60 <= 24 * 60
    assert "db clean --yes" in command
    assert cleanup["retentionDays"] == 90
    assert command.startswith("set -e")


def test_pools_are_there_before_the_first_task() -> None:
    command = values("airflow", "production")["migrateDatabaseJob"]["args"][-1]
    imported = re.findall(r"airflow pools import (\S+)", command)
    assert imported == ["/opt/airflow/include/marketdata/orchestration/pools.json"]
    assert (ROOT / imported[0].removeprefix("/opt/airflow/")).exists()
    assert command.index("db migrate") < command.index("pools import")
    assert re.search(r"COPY .*include /opt/airflow/include", (ROOT / "Dockerfile").read_text(encoding="utf-8"))


def test_the_image_is_this_repository_s_and_has_what_the_values_name(shared_data: Path) -> None:
    given = effective(shared_data, "production")
    packages = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert f"apache-airflow=={given['airflowVersion']} " in packages
    assert given["defaultAirflowRepository"] == "marketdata-airflow"
    provider = re.findall(r"^airflow\.providers\.(\w+)\.", given["config"]["core"]["auth_manager"])
    assert all(f"apache-airflow-providers-{name}==" in packages for name in provider), (
        f"the API server would not start: requirements.txt has no apache-airflow-providers-{provider[0]}"
    )


@EACH
def test_workers_of_the_other_executor_are_the_same_image(shared_data: Path, installation: tuple[str, ...]) -> None:
    given = effective(shared_data, *installation)
    if given["executor"] == "KubernetesExecutor":
        tag = given["config"]["kubernetes_executor"]["worker_container_tag"]
        assert "defaultAirflowTag" in tag
        assert "defaultAirflowDigest" in tag
        assert given["logs"]["persistence"]["enabled"] is True, "a worker's logs would go with it"


@EACH
def test_metrics_go_to_one_backend(shared_data: Path, installation: tuple[str, ...]) -> None:
    given = effective(shared_data, *installation)
    assert given["otelCollector"]["metricsEnabled"] is True
    collector = yaml.safe_load(re.sub(r"\{\{.*?}}", "4318", given["otelCollector"]["config"]))
    (pipeline,) = collector["service"]["pipelines"].values()
    assert set(pipeline["exporters"]) <= set(collector["exporters"])
    stack = values("kube-prometheus-stack", installation[0])
    assert stack["prometheus"]["prometheusSpec"]["enableRemoteWriteReceiver"] is True
    (alias,) = [service for service in stack["extraManifests"] if service["metadata"]["name"] == "prometheus"]
    assert collector["exporters"]["prometheusremotewrite"]["endpoint"] == (
        f"http://prometheus.{alias['metadata']['namespace']}:{alias['spec']['ports'][0]['port']}/api/v1/write"
    )
