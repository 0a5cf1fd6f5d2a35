"""The other charts' values: contexts, bounds, own objects, and what each of them is there for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from marketdata.orchestration import policy
from marketdata.orchestration.environment import TEMPORARY
from tests.unit.helm_values.releases import ENVIRONMENTS, ROOT, VALUES, leaves, read, under, values

CHECKS = Path("checks")
MONITORING = ROOT / "deploy" / "monitoring"

EACH = pytest.mark.parametrize("environment", ENVIRONMENTS)

BOUNDED = {
    "strimzi": ["resources"],
    "cloudnative-pg": ["resources"],
    "postgres": ["cluster.resources"],
    "redis": ["resources", "initResources", "sentinelResources"],
    "trino": ["coordinator.resources", "worker.resources"],
    "pushgateway": ["resources"],
    "blackbox-exporter": ["resources"],
    "kube-prometheus-stack": [
        "prometheus.prometheusSpec.resources",
        "alertmanager.alertmanagerSpec.resources",
        "grafana.resources",
        "kube-state-metrics.resources",
        "prometheusOperator.resources",
        "prometheusOperator.prometheusConfigReloader.resources",
    ],
    "mlflow": ["resources"],
    "velero": ["resources", "upgradeJobResources", "kubectl.resources"],
}
"""Where each chart takes the bounds of its containers. OpenCost's and Strimzi's own say a part of them."""

PARTLY_BY_CHART = {"strimzi", "opencost"}

SECCOMP = {
    "strimzi": "podSecurityContext",
    "redis": "podSecurityContext",
    "trino": "securityContext",
    "pushgateway": "securityContext",
    "blackbox-exporter": "podSecurityContext",
    "kube-prometheus-stack": "grafana.securityContext",
    "mlflow": "podSecurityContext",
    "opencost": "podSecurityContext",
    "velero": "podSecurityContext",
}
"""Pods whose charts leave the profile out. CloudNativePG's and the others of the monitoring chart say it themselves."""

CONTAINERS = {
    "pushgateway": ["containerSecurityContext"],
    "opencost": ["opencost.exporter.securityContext", "opencost.ui.securityContext"],
    "velero": ["containerSecurityContext", "kubectl.containerSecurityContext"],
}
"""Containers whose charts say nothing of their contexts."""


@EACH
@pytest.mark.parametrize("component", BOUNDED)
def test_every_container_is_bounded(component: str, environment: str) -> None:
    given = values(component, environment)
    for path in BOUNDED[component]:
        resources = under(given, path) or {}
        for kind in ("requests", "limits") if component not in PARTLY_BY_CHART else ("limits",):
            said = resources.get(kind, {}).keys()
            assert said >= ({"memory"} if component in PARTLY_BY_CHART else {"cpu", "memory"}), f"{path}.{kind}"


@EACH
@pytest.mark.parametrize("component", SECCOMP)
def test_every_pod_has_the_runtime_s_profile(component: str, environment: str) -> None:
    context = under(values(component, environment), SECCOMP[component])
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


@EACH
@pytest.mark.parametrize(("component", "path"), [(name, path) for name, paths in CONTAINERS.items() for path in paths])
def test_every_container_is_hardened(component: str, path: str, environment: str) -> None:
    assert under(values(component, environment), path) == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "privileged": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_opencost_s_chart_knows_every_key_and_none_repeats_its_default(shared_data: Path) -> None:
    text = (shared_data / CHECKS / "opencost" / "values.yaml").read_text(encoding="utf-8")
    chart = yaml.safe_load(text)
    free = {"podSecurityContext", "securityContext", "limits"}
    for path, value in leaves(read("opencost.yaml")):
        kept = next((i for i, key in enumerate(path) if key in free), len(path))
        there: Any = chart
        for key in path[:kept]:
            assert key in there, f"opencost has no {'.'.join(path)}"
            there = there[key]
        assert kept < len(path) or there != value, f"{'.'.join(path)} is the chart's default"


def test_trino_is_the_version_that_pyiceberg_can_read_after() -> None:
    assert read("trino.yaml")["image"]["tag"] == "476"
    assert "Trino 476" in next((ROOT / "docs" / "adr").glob("0008-*.md")).read_text(encoding="utf-8")


@EACH
def test_trino_s_catalog_is_the_suite_s(environment: str) -> None:
    """The same properties as the Trino that the contract suite runs against, but for addresses and credentials."""
    given = {name: text for name, text in values("trino", environment)["catalogs"].items() if text}
    assert set(given) == {"iceberg"}
    mine = dict(line.split("=", 1) for line in given["iceberg"].splitlines())
    suite = (ROOT / "tests" / "engines" / "trino.py").read_text(encoding="utf-8")
    theirs = dict(re.findall(r'"((?:iceberg|fs|s3|connector)\.[\w.-]+)": (.+?),?\n', suite))
    assert set(mine) - {"connector.name"} == set(theirs) - {"connector.name", "fs.native-local.enabled"}
    for key, value in theirs.items():
        if key in mine and (literal := re.fullmatch(r'"([^"{]+)"', value)):
            assert mine[key] == literal[1], key
    for key in ("connection-user", "connection-password"):
        assert mine[f"iceberg.jdbc-catalog.{key}"].startswith("${ENV:")
    assert "sslmode=require" in mine["iceberg.jdbc-catalog.connection-url"]
    named = {one["name"] for one in values("trino", environment)["env"]}
    assert named == set(re.findall(r"\$\{ENV:(\w+)\}", given["iceberg"]))


@EACH
def test_trino_writes_to_bounded_volumes(environment: str) -> None:
    given = values("trino", environment)
    assert given["containerSecurityContext"]["readOnlyRootFilesystem"] is True
    for part in ("coordinator", "worker"):
        volumes = {one["name"]: one["emptyDir"]["sizeLimit"] for one in given[part]["additionalVolumes"]}
        assert {one["mountPath"] for one in given[part]["additionalVolumeMounts"]} == {"/data/trino", TEMPORARY}
        assert all(volumes[one["name"]] for one in given[part]["additionalVolumeMounts"])


def test_postgres_survives_a_node_and_loses_nothing() -> None:
    given = values("postgres", "production")
    assert given["cluster"]["instances"] == 3
    assert given["cluster"]["affinity"] == {
        "topologyKey": "kubernetes.io/hostname",
        "podAntiAffinityType": "required",
    }
    assert given["cluster"]["postgresql"]["synchronous"] == {"method": "any", "number": 1}
    assert given["backups"]["enabled"] is True
    (nightly,) = given["backups"]["scheduledBackups"]
    assert re.fullmatch(r"0 \d+ \d+ \* \* \*", nightly["schedule"])
    assert given["poolers"][0]["instances"] == 2


@EACH
def test_databases_have_owners_and_nobody_is_superuser(environment: str) -> None:
    cluster = values("postgres", environment)["cluster"]
    assert cluster["enableSuperuserAccess"] is False
    roles = {role["name"]: role["passwordSecret"]["name"] for role in cluster["roles"]}
    databases = {one["name"]: one["owner"] for one in values("postgres", environment)["databases"]}
    assert databases == {name: name for name in roles}
    assert cluster["initdb"] == {
        "database": "marketdata",
        "owner": "marketdata",
        "secret": {"name": "postgres-marketdata"},
    }


@EACH
def test_the_pooler_keeps_no_session(environment: str) -> None:
    (pooler,) = values("postgres", environment)["poolers"]
    assert pooler["poolMode"] == "transaction"
    assert int(pooler["parameters"]["max_prepared_statements"]) > 0
    bounds = pooler["template"]["spec"]["containers"][0]["resources"]
    assert all(bounds[kind].keys() >= {"cpu", "memory"} for kind in ("requests", "limits"))


@EACH
def test_redis_is_the_workload_that_is_waited_for(environment: str) -> None:
    given = values("redis", environment)
    assert given["fullnameOverride"] == "redis-sentinel"
    assert given["haMode"]["enabled"] is True
    assert given["podDisruptionBudget"] == {"minAvailable": 2}
    assert given["extraSecretValkeyConfigs"]
    assert given["extraSecretSentinelConfigs"]


def test_the_pushgateway_remembers_and_is_scraped_with_its_own_labels() -> None:
    given = values("pushgateway", "production")
    assert given["persistentVolume"]["enabled"] is True
    assert "--persistence.file=/data/metrics" in given["extraArgs"]
    scrapes = read("kube-prometheus-stack.generated.yaml")["prometheus"]["prometheusSpec"]["additionalScrapeConfigs"]
    (job,) = [job for job in scrapes if job["job_name"] == "pushgateway"]
    assert job["honor_labels"] is True
    assert job["static_configs"] == [{"targets": [f"{given['fullnameOverride']}:9091"]}]


def test_every_scraped_name_is_a_service_of_ours() -> None:
    generated = read("kube-prometheus-stack.generated.yaml")["prometheus"]["prometheusSpec"]["additionalScrapeConfigs"]
    aliases = {one["metadata"]["name"] for one in read("kube-prometheus-stack.yaml")["extraManifests"]}
    here = (
        aliases
        | {read(f"{name}.yaml")["fullnameOverride"] for name in ("pushgateway", "blackbox-exporter")}
        | {"localhost"}
    )
    elsewhere = {"trino.production", "postgres.production", "datahub-kafka-kafka-bootstrap.kafka"}
    named = {
        target.rsplit(":", 1)[0] for job in generated for group in job["static_configs"] for target in group["targets"]
    }
    named |= {
        rule["replacement"].split(":")[0]
        for job in generated
        for rule in job.get("relabel_configs", [])
        if "replacement" in rule
    }
    assert named <= here | elsewhere
    assert "datahub-kafka-kafka-bootstrap.kafka:9093" in str(generated), (
        "the plaintext listener is closed in production"
    )


def test_blackbox_has_the_module_that_is_asked_for() -> None:
    modules = yaml.safe_load((MONITORING / "blackbox.yml").read_text(encoding="utf-8"))["modules"]
    mine = {name: module for name, module in read("blackbox-exporter.yaml")["config"]["modules"].items() if module}
    assert mine == modules


def test_rules_are_objects_that_the_operator_takes(shared_data: Path) -> None:
    schema = crd(shared_data / CHECKS / "prometheus-operator-0.93.0" / "monitoring.coreos.com_prometheusrules.yaml")
    rules = read("kube-prometheus-stack.generated.yaml")["additionalPrometheusRulesMap"]
    assert len(rules) == len(list((MONITORING / "rules").glob("*.yaml")))
    for name, content in rules.items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        jsonschema.validate({"spec": content}, schema)


def test_the_webhook_lies_where_alertmanager_looks() -> None:
    config = read("kube-prometheus-stack.generated.yaml")["alertmanager"]["config"]
    spec = read("kube-prometheus-stack.yaml")["alertmanager"]["alertmanagerSpec"]
    (volume,) = spec["volumes"]
    (mount,) = spec["volumeMounts"]
    assert mount["name"] == volume["name"]
    (item,) = volume["secret"]["items"]
    assert config["global"]["slack_api_url_file"] == f"{mount['mountPath']}/{item['path']}"
    assert item["key"] == "slack_webhook_url"


def test_grafana_asks_nobody_and_shows_our_dashboards() -> None:
    grafana = read("kube-prometheus-stack.yaml")["grafana"]
    assert grafana["rbac"]["create"] is False
    assert not any(sidecar["enabled"] for sidecar in grafana["sidecar"].values())
    assert grafana["admin"]["existingSecret"] == "grafana-admin"
    (configmap,) = grafana["dashboardsConfigMaps"].values()
    readme = (VALUES / "README.md").read_text(encoding="utf-8")
    assert f"create configmap {configmap} --from-file=deploy/monitoring/dashboards" in readme
    (source,) = grafana["datasources"]["datasources.yaml"]["datasources"]
    assert source["url"] == "http://prometheus.monitoring:9090"


def test_no_part_of_monitoring_reads_the_host() -> None:
    stack = read("kube-prometheus-stack.yaml")
    assert stack["nodeExporter"]["enabled"] is False
    assert stack["prometheusOperator"]["admissionWebhooks"]["enabled"] is False


@EACH
def test_every_namespace_of_ours_is_backed_up_every_night_for_a_month(shared_data: Path, environment: str) -> None:
    (schedule,) = values("velero", environment)["extraObjects"]
    checks = shared_data / CHECKS / "velero-1.18.1"
    jsonschema.validate({"spec": schedule["spec"]}, crd(checks / "velero.io_schedules.yaml"))
    assert schedule["metadata"] == {"name": "daily-full-backup", "namespace": "velero"}
    assert re.fullmatch(r"\d+ \d+ \* \* \*", schedule["spec"]["schedule"])
    assert schedule["spec"]["template"]["ttl"] == "720h0m0s"
    platform = yaml.safe_load((ROOT / "deploy" / "platform" / "values.yaml").read_text(encoding="utf-8"))
    assert set(schedule["spec"]["template"]["includedNamespaces"]) == set(platform["namespaces"])
    assert policy.NAMESPACE in schedule["spec"]["template"]["includedNamespaces"]


@EACH
def test_velero_copies_no_volume_and_so_needs_no_agent(environment: str) -> None:
    given = values("velero", environment)
    assert given["snapshotsEnabled"] is False
    assert "deployNodeAgent" not in given
    (plugin,) = given["initContainers"]
    assert plugin["securityContext"] == given["containerSecurityContext"]
    (location,) = given["configuration"]["backupStorageLocation"]
    assert location["config"]["s3Url"] == "http://minio.production:9000"


@EACH
def test_strimzi_s_pods_are_admitted_and_watched_in_one_namespace(environment: str) -> None:
    given = values("strimzi", environment)
    assert {"name": "STRIMZI_POD_SECURITY_PROVIDER_CLASS", "value": "restricted"} in given["extraEnvs"]
    assert given["generateNetworkPolicy"] is False, "its own would let everybody in"
    assert "watchAnyNamespace" not in given
    assert "watchNamespaces" not in given


def crd(path: Path) -> dict[str, Any]:
    """The schema of a kind's `spec`, in which unknown keys are refused, as the API server's strict validation does."""
    (version,) = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return {"type": "object", "properties": {"spec": _strict(spec)}, "required": ["spec"]}


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: _strict(inner) for key, inner in node.items()}
    if isinstance(strict.get("pattern"), str) and "(?i)" in strict["pattern"]:
        strict["pattern"] = "(?i)" + strict["pattern"].replace("(?i)", "")  # Python takes it in front only
    if isinstance(strict.get("properties"), dict) and strict.get("type") == "object":
        strict.setdefault("additionalProperties", False)
    return strict
