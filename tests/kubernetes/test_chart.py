"""The charts as they render: names that are stated, bounds, identities, hardening, what a wrong value is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from marketdata.operations import ground
from marketdata.orchestration.defaults import Tier
from marketdata.orchestration.environment import SECRETS
from marketdata.settings import Settings
from marketdata.streaming import topics
from tests.conftest import ROOT
from tests.kubernetes import charts
from tests.kubernetes.charts import Object, kind, one, render, values

TENANTS = ("acme", "globex")
STAGES = ("normalization", "enrichment", "aggregation", "projection")
CONSUMER = "commodity-analytics-consumer"
DRILLS = ground.PREFIX


@pytest.fixture(scope="module")
def production() -> list[Object]:
    return charts.production(*TENANTS)


@pytest.fixture(scope="module")
def development() -> list[Object]:
    switched_on = f"--set=services.{CONSUMER}.enabled=true"
    return [*render("platform", *values("platform", "development"), switched_on), *render("data-processing")]


def templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name and pod template of every Deployment."""
    for deployment in kind(objects, "Deployment"):
        yield deployment["metadata"]["name"], deployment["spec"]["template"]


def amount(quantity: str) -> Fraction:
    """A Kubernetes quantity as a number: cores, or bytes."""
    number, unit = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", quantity).groups()  # type: ignore[union-attr]
    scale = {"": Fraction(1), "m": Fraction(1, 1000), "Mi": Fraction(2**20), "Gi": Fraction(2**30)}
    return Fraction(number) * scale[unit]


# --- lint, schema, counting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", ["default", "development", "production"])
@pytest.mark.parametrize("chart", ["platform", "data-processing"])
def test_the_charts_lint(chart: str, environment: str) -> None:
    unknown = charts.UNKNOWN_HERE if (chart, environment) == ("platform", "production") else ()
    folder = str(charts.DEPLOY / chart)
    version = f"--kube-version={charts.KUBERNETES}"
    assert "0 chart(s) failed" in charts.helm(
        "lint", "--strict", folder, version, *values(chart, environment), *unknown
    )


@pytest.mark.parametrize(
    ("chart", "change", "says"),
    [
        ("platform", "kafak.enabled=false", "'kafak' not allowed"),
        ("platform", "namespaces.production.quota.cpus=2", "'cpus' not allowed"),
        ("platform", f"services.{CONSUMER}.repicas=2", "'repicas' not allowed"),
        ("platform", "settings.POSTGRES_DSN=x", "POSTGRES_DSN"),
        ("platform", "settings.TRINO_HOST=https://me:secret@trino", "TRINO_HOST"),
        ("platform", "secrets.lake-credentials.keys[0].access_key_id=x", "/secrets/lake-credentials/keys/0"),
        ("platform", "global.environment=prod", "global/environment"),
        ("platform", "tenants={Acme}", "tenants/0"),
        ("data-processing", "services.normalisation.image.tag=v1.2.4", "'normalisation' not allowed"),
        ("data-processing", "services.projection.autoscaling.enable=true", "'enable' not allowed"),
        ("data-processing", "environment.REDIS_POOL_MIN=1", "REDIS_POOL_MIN"),
    ],
)
def test_a_wrong_value_is_refused_by_name(chart: str, change: str, says: str) -> None:
    with pytest.raises(charts.HelmError, match=re.escape(says)):
        render(chart, f"--set={change}")


def test_the_commands_of_the_readme_render() -> None:
    """As a shell reads them; what stands for something unknown is filled in."""
    text = (charts.DEPLOY / "README.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    script = "".join(blocks).replace("$ ", "")
    script = script.replace("sha256:…", charts.DIGEST).replace(",…}", "}").replace("{…}", "{10.20.0.0/24}")
    assert "…" not in script
    shell = f'helm() {{ printf "%s\\n" "$@" ""; }}\n{script}'
    said = subprocess.run(["bash", "-eu", "-c", shell], capture_output=True, text=True, check=True).stdout
    commands = [command.splitlines() for command in said.strip().split("\n\n")]
    assert len(commands) == 6
    only_to_install = {"--create-namespace", "--wait", "--timeout=15m", "--reuse-values"}
    for upgrade, install, *words in commands:
        assert (upgrade, install) == ("upgrade", "--install")
        rest = [str(ROOT / word) if word.startswith(("deploy/", "helm-values/")) else word for word in words]
        version = f"--kube-version={charts.KUBERNETES}"
        assert charts.helm("template", *(word for word in rest if word not in only_to_install), version)


def test_there_are_more_than_thirty_objects_and_no_two_of_one_name(production: list[Object]) -> None:
    names = Counter(charts.key(found) for found in production)
    assert [name for name, times in names.items() if times > 1] == []
    without_policies = [found for found in production if found["kind"] != "NetworkPolicy"]
    assert len(without_policies) >= 30


def test_every_object_says_whose_it_is(production: list[Object]) -> None:
    for found in production:
        assert found["metadata"]["labels"]["app.kubernetes.io/part-of"] == "marketdata", charts.key(found)


# --- namespaces and bounds ------------------------------------------------------------------------------------------


def test_every_namespace_admits_hardened_pods_only_and_outlives_the_chart(production: list[Object]) -> None:
    namespaces = {found["metadata"]["name"]: found["metadata"] for found in kind(production, "Namespace")}
    stated = {"production", "kafka", "data-processing", "airflow", "monitoring"}
    assert namespaces.keys() == stated | {f"tenant-{tenant}" for tenant in TENANTS}
    for name, metadata in namespaces.items():
        for mode in ("enforce", "audit", "warn"):
            assert metadata["labels"][f"pod-security.kubernetes.io/{mode}"] == "restricted", name
            assert metadata["labels"][f"pod-security.kubernetes.io/{mode}-version"] == "v1.34", name
        assert metadata["annotations"]["helm.sh/resource-policy"] == "keep"
    assert namespaces["data-processing"]["labels"]["linkerd.io/inject"] == "enabled"
    assert namespaces["production"]["annotations"]["linkerd.io/inject"] == "disabled"


def test_production_is_bounded_as_stated(production: list[Object]) -> None:
    quota = one(production, "ResourceQuota", "quota", "production")["spec"]["hard"]
    assert quota == {
        "requests.cpu": "200",
        "limits.cpu": "200",
        "requests.memory": "400Gi",
        "limits.memory": "400Gi",
        "pods": "200",
    }
    (limits,) = one(production, "LimitRange", "defaults", "production")["spec"]["limits"]
    assert limits == {
        "type": "Container",
        "defaultRequest": {"cpu": "500m", "memory": "512Mi"},
        "default": {"cpu": "1000m", "memory": "1Gi"},
    }


def test_priorities_are_those_of_the_tiers(production: list[Object]) -> None:
    found = {priority["metadata"]["name"]: priority["value"] for priority in kind(production, "PriorityClass")}
    assert found.keys() == {f"marketdata-{tier}" for tier in Tier}
    assert found["marketdata-critical"] > found["marketdata-standard"] > 0
    for name, template in templates(production):
        assert template["spec"]["priorityClassName"] == f"marketdata-{template['metadata']['labels']['tier']}", name


# --- identities and secrets -----------------------------------------------------------------------------------------


def test_the_stated_identity_has_no_rule_and_the_launcher_none_but_for_pods(production: list[Object]) -> None:
    account = one(production, "ServiceAccount", "production-etl", "production")
    assert account["automountServiceAccountToken"] is False
    assert one(production, "Role", "production-etl-role", "production")["rules"] == []
    binding = one(production, "RoleBinding", "production-etl-binding", "production")
    assert binding["roleRef"]["name"] == "production-etl-role"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "production-etl", "namespace": "production"}]

    launcher = one(production, "RoleBinding", "airflow-pod-launcher")
    assert launcher["metadata"]["namespace"] == "production"
    assert launcher["subjects"] == [{"kind": "ServiceAccount", "name": "airflow-pod-launcher", "namespace": "airflow"}]
    verbs = {
        resource: rule["verbs"]
        for rule in one(production, "Role", "airflow-pod-launcher")["rules"]
        for resource in rule["resources"]
    }
    assert verbs == {
        "pods": ["create", "get", "list", "watch", "patch", "delete"],
        "pods/log": ["get"],
        "events": ["get", "list"],
    }


def test_nothing_is_for_the_whole_cluster_and_nothing_is_a_wildcard(production: list[Object]) -> None:
    kinds = {found["kind"] for found in production}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding", "Secret"}
    for role in kind(production, "Role"):
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "secrets" not in rule["resources"]


def test_the_tasks_variables_and_the_services_come_from_one_table_of_secrets() -> None:
    own = yaml.safe_load((charts.DEPLOY / "platform" / "values.yaml").read_text())
    said = {name: (one["secret"], one["key"]) for name, one in own["secretVariables"].items()}
    assert said == {name: (one.secret, one.key) for name, one in SECRETS.items()}
    for name, key in said.values():
        assert key in own["secrets"][name]["keys"]
        assert "production" in own["secrets"][name]["namespaces"]
        assert own["secrets"][name]["tenants"] is True


def test_every_secret_that_a_values_file_refers_to_is_in_the_table() -> None:
    own = yaml.safe_load((charts.DEPLOY / "platform" / "values.yaml").read_text())["secrets"]
    referred = {}
    for file in sorted(charts.VALUES.glob("*.yaml")):
        # Velero's is in a namespace of its own, and of nobody else's.
        if file.stem.partition(".")[0] != "velero":
            referred |= dict.fromkeys(_referred(yaml.safe_load(file.read_text())), file.name)
    assert len(referred) > 10
    assert {name: file for name, file in referred.items() if name not in own} == {}


def _referred(found: Any, parent: str = "") -> Iterator[str]:
    """Names of Secrets: values of keys like `existingSecret`, and `name` inside of such a key."""
    if isinstance(found, dict):
        for name, inside in found.items():
            if isinstance(inside, str):
                is_name = re.search(r"[sS]ecret(Name)?$", name)
                if is_name or (name == "name" and re.search(r"[sS]ecret(KeyRef)?$", parent)):
                    yield inside
            else:
                yield from _referred(inside, name)
    elif isinstance(found, list):
        for inside in found:
            yield from _referred(inside, parent)


def test_secrets_are_fetched_by_reference_to_where_the_table_says(production: list[Object]) -> None:
    own = yaml.safe_load((charts.DEPLOY / "platform" / "values.yaml").read_text())["secrets"]
    fetched = {charts.key(found)[1:]: found["spec"] for found in kind(production, "ExternalSecret")}
    wanted = {(namespace, name) for name, secret in own.items() for namespace in secret["namespaces"]}
    wanted |= {(f"tenant-{tenant}", name) for name in own if own[name].get("tenants") for tenant in TENANTS}
    wanted |= {("kafka", "kafka-users")} | {("kafka", f"kafka-user-tenant-{tenant}") for tenant in TENANTS}
    assert fetched.keys() == wanted
    for (namespace, name), spec in fetched.items():
        assert spec["target"]["name"] == name
        for entry in spec["data"]:
            owner = name.removeprefix("kafka-user-") if name.startswith("kafka-user-") else namespace
            assert entry["remoteRef"] == {"key": f"marketdata/{owner}/{name}", "property": entry["secretKey"]}
    for name in own:
        for namespace in own[name]["namespaces"]:
            assert [entry["secretKey"] for entry in fetched[namespace, name]["data"]] == own[name]["keys"]


# --- what pods are told ---------------------------------------------------------------------------------------------


def test_settings_are_settings_and_no_secrets(production: list[Object]) -> None:
    secret = set(SECRETS)
    told = one(production, "ConfigMap", "production-settings")["data"]
    assert told["ENVIRONMENT"] == "production"
    for name in told:
        assert name.lower() in Settings.model_fields
        assert name not in secret


@pytest.mark.parametrize(("script", "command"), [("extract.py", "extract"), ("quality_check.py", "validate")])
def test_the_stated_scripts_are_the_image_s_commands(
    script: str, command: str, production: list[Object], tmp_path: Path
) -> None:
    scripts = one(production, "ConfigMap", "production-etl-scripts", "production")["data"]
    assert scripts.keys() == {"extract.py", "quality_check.py"}
    (tmp_path / script).write_text(scripts[script])
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "120"}
    said = [
        subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout.split("\n", 2)[2]
        for words in (
            [sys.executable, str(tmp_path / script), "--help"],
            [sys.executable, "-m", "marketdata.tasks.cli", command, "--help"],
        )
    ]
    assert said[0] == said[1]
    assert "--dataset" in said[0]


# --- Kafka ----------------------------------------------------------------------------------------------------------


def test_kafka_comes_out_under_the_stated_names(production: list[Object]) -> None:
    (pool,) = kind(production, "KafkaNodePool")
    (kafka,) = kind(production, "Kafka")
    cluster = kafka["metadata"]["name"]
    # As Strimzi names them.
    assert pool["metadata"]["labels"]["strimzi.io/cluster"] == cluster
    assert f"{cluster}-{pool['metadata']['name']}-0" == "datahub-kafka-kafka-pool-0"
    assert f"{cluster}-kafka-bootstrap.{kafka['metadata']['namespace']}" == "datahub-kafka-kafka-bootstrap.kafka"
    assert pool["spec"]["replicas"] == 3
    broker = kafka["spec"]["kafka"]
    assert broker["config"]["auto.create.topics.enable"] is False
    assert broker["config"]["default.replication.factor"] == 3
    assert broker["config"]["min.insync.replicas"] == 2
    assert broker["config"]["request.timeout.ms"] == 10_000
    assert broker["template"]["podDisruptionBudget"] == {"maxUnavailable": 1}
    affinity = pool["spec"]["template"]["pod"]["affinity"]["podAntiAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"


def test_production_has_the_tls_listener_only(production: list[Object], development: list[Object]) -> None:
    def listeners(objects: list[Object]) -> dict[int, bool]:
        (kafka,) = kind(objects, "Kafka")
        return {listener["port"]: listener["tls"] for listener in kafka["spec"]["kafka"]["listeners"]}

    assert listeners(production) == {9093: True}
    assert listeners(development) == {9093: True, 9092: False}
    (kafka,) = kind(production, "Kafka")
    assert kafka["spec"]["kafka"]["authorization"] == {"type": "simple"}


def test_topics_are_those_of_the_catalogue(production: list[Object]) -> None:
    found = {
        topic["metadata"]["name"]: topic
        for topic in kind(production, "KafkaTopic")
        if "tenant" not in topic["metadata"]["labels"]
    }
    assert found.keys() == {topic.name for topic in topics.catalogue()}
    for topic in topics.catalogue():
        spec = found[topic.name]["spec"]
        assert found[topic.name]["metadata"]["annotations"]["marketdata/format"] == topic.format
        assert (spec["partitions"], spec["replicas"]) == (topic.partitions, topic.replication_factor)
        assert {name: str(value) for name, value in spec["config"].items()} == dict(topic.config)


def test_removing_the_chart_removes_no_data(production: list[Object]) -> None:
    kept = [found for found in production if found["kind"] in ("Kafka", "KafkaNodePool", "KafkaTopic", "Namespace")]
    assert len(kept) > 10
    for found in kept:
        assert found["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep", charts.key(found)
    (pool,) = kind(production, "KafkaNodePool")
    assert all(volume["deleteClaim"] is False for volume in pool["spec"]["storage"]["volumes"])


def test_users_of_kafka_may_do_what_is_theirs(production: list[Object]) -> None:
    known = {topic.name for topic in topics.catalogue()}
    rights: dict[str, set[tuple[str, str, str, str]]] = {}
    for user in kind(production, "KafkaUser"):
        rights[user["metadata"]["name"]] = {
            (acl["resource"]["type"], acl["resource"]["patternType"], acl["resource"]["name"], operation)
            for acl in user["spec"]["authorization"]["acls"]
            for operation in acl["operations"]
        }
    for name, some in rights.items():
        for type_, pattern, resource, operation in some:
            if operation in ("Create", "Delete"):
                assert (name, pattern, resource) == ("marketdata-pipeline", "prefix", DRILLS), (
                    "topics are made by the chart"
                )
            else:
                assert operation in ("Read", "Write", "Describe", "DescribeConfigs"), name
            if type_ == "topic" and pattern == "literal" and resource != "*":
                assert resource in known, name

    def topics_with(name: str, operation: str) -> set[str]:
        return {resource for type_, _, resource, may in rights[name] if (type_, may) == ("topic", operation)}

    assert topics_with("marketdata-pipeline", "Write") == {"commodity-prices", "commodity-prices-ledger", DRILLS}
    assert "commodity-prices" not in topics_with(CONSUMER, "Write")
    assert topics_with("airflow", "Read") | topics_with("airflow", "Write") == set()
    assert ("group", "literal", "commodity-analytics", "Read") in rights[CONSUMER]
    # Publishing is one transaction, whose id begins with the topic's name.
    assert ("transactionalId", "prefix", "commodity-prices.", "Write") in rights["marketdata-pipeline"]


# --- long-running services ------------------------------------------------------------------------------------------


def test_every_service_is_hardened(production: list[Object], development: list[Object]) -> None:
    found = [*templates(production), *templates(development)]
    assert {name for name, _ in found} == {CONSUMER, *(f"{stage}-service" for stage in STAGES)}
    for name, template in found:
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "privileged": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["volumes"] == [{"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}}]
        assert {"livenessProbe", "readinessProbe", "startupProbe"} <= container.keys()
        for variable in container["env"]:
            assert "valueFrom" in variable or variable["name"] in ("HOME", "TMPDIR")
        assert {"app", "environment", "tier", "component", "tenant"} <= template["metadata"]["labels"].keys()


def test_the_consumer_has_the_stated_shape(production: list[Object], development: list[Object]) -> None:
    deployment = one(production, "Deployment", CONSUMER, "production")["spec"]
    scaler = one(production, "HorizontalPodAutoscaler", CONSUMER)["spec"]
    (catalogued,) = (topic for topic in topics.catalogue() if topic.name == "commodity-prices")
    # The autoscaler has the number of pods: a number in both would be reset by every upgrade.
    assert "replicas" not in deployment
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, catalogued.partitions) == (3, 3)
    assert one(production, "PodDisruptionBudget", CONSUMER)["spec"]["minAvailable"] == 2
    spec = deployment["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 30
    (container,) = spec["containers"]
    assert container["image"] == f"marketdata-task@{charts.DIGEST}"
    resources = container["resources"]
    assert (resources["requests"]["cpu"], resources["requests"]["memory"]) == ("500m", "512Mi")
    assert (resources["limits"]["cpu"], resources["limits"]["memory"]) == ("1000m", "1Gi")

    (hard,) = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert hard["topologyKey"] == "kubernetes.io/hostname"
    assert hard["labelSelector"]["matchLabels"].items() <= deployment["template"]["metadata"]["labels"].items()
    elsewhere = one(development, "Deployment", CONSUMER)["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    assert elsewhere.keys() == {"preferredDuringSchedulingIgnoredDuringExecution"}
    assert elsewhere["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"] == 100


def test_the_consumer_is_started_and_asked_as_the_code_expects(production: list[Object]) -> None:
    from marketdata.tasks.cli import app

    (container,) = one(production, "Deployment", CONSUMER)["spec"]["template"]["spec"]["containers"]
    program, command = container["command"]
    assert program == "marketdata"
    assert command in {entry.name or entry.callback.__name__ for entry in app.registered_commands if entry.callback}
    (port,) = container["ports"]
    assert port["containerPort"] == Settings.model_fields["analytics_port"].default
    service = (ROOT / "include/marketdata/streaming/service.py").read_text()
    for probe in ("livenessProbe", "readinessProbe"):
        assert f'"{container[probe]["httpGet"]["path"]}"' in service


def test_services_to_come_have_a_floor_too() -> None:
    """Every service of three pods keeps two through a drain; one that reads no topic is not scaled by a lag."""
    own = yaml.safe_load((charts.DEPLOY / "platform" / "values.yaml").read_text())["services"]
    objects = render("platform", *(f"--set=services.{name}.enabled=true" for name in own))
    floors = {
        found["metadata"]["name"]: found["spec"]["minAvailable"] for found in kind(objects, "PodDisruptionBudget")
    }
    assert floors == {CONSUMER: 2, "prediction-consumer": 2, "model-server": 2}
    assert one(objects, "Deployment", "model-server")["spec"]["replicas"] == 3
    scaled = {found["metadata"]["name"] for found in kind(objects, "HorizontalPodAutoscaler")}
    assert scaled == {CONSUMER, "prediction-consumer"}


def test_more_pods_than_partitions_are_refused() -> None:
    with pytest.raises(
        charts.HelmError, match=r"4 pods, but commodity-prices has 3 partitions: the rest would be idle"
    ):
        render("platform", f"--set=services.{CONSUMER}.enabled=true", f"--set=services.{CONSUMER}.replicas=4")


def test_the_service_tier_has_the_stated_shape(production: list[Object]) -> None:
    for stage in STAGES:
        name = f"{stage}-service"
        deployment = one(production, "Deployment", name, "data-processing")["spec"]
        (container,) = deployment["template"]["spec"]["containers"]
        assert container["image"] == f"gcr.io/project/{name}:v1.2.3"
        assert {key: container["resources"][key]["cpu"] for key in ("requests", "limits")} == {
            "requests": "500m",
            "limits": "2000m",
        }
        assert {key: container["resources"][key]["memory"] for key in ("requests", "limits")} == {
            "requests": "512Mi",
            "limits": "2Gi",
        }
        scaler = one(production, "HorizontalPodAutoscaler", name)["spec"]
        assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 10)
        cpu, memory, lag = scaler["metrics"]
        assert cpu["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}
        assert memory["resource"] == {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 80}}
        assert lag["external"]["metric"]["name"] == "kafka_consumer_lag_records"
        assert one(production, "PodDisruptionBudget", name)["spec"]["minAvailable"] == 1
        told = one(production, "ConfigMap", name, "data-processing")["data"]
        assert told == {
            "DATA_PROC_CLICKHOUSE_POOL_MIN": "5",
            "DATA_PROC_CLICKHOUSE_POOL_MAX": "20",
            "DATA_PROC_REDIS_POOL_MIN": "10",
            "DATA_PROC_REDIS_POOL_MAX": "50",
            "DATA_PROC_NORMALIZATION_BATCH_SIZE": "1000",
            "DATA_PROC_NORMALIZATION_FLUSH_INTERVAL": "5",
            "DATA_PROC_KAFKA_FETCH_MIN_BYTES": "102400",
            "DATA_PROC_KAFKA_FETCH_MAX_WAIT_MS": "500",
            "DATA_PROC_TAXONOMY_CACHE_TTL": "3600",
            "DATA_PROC_INSTRUMENT_CACHE_TTL": "1800",
        }


def test_autoscaling_is_switched_on_service_by_service() -> None:
    objects = render("data-processing", "--set=services.projection.autoscaling.enabled=true")
    assert [found["metadata"]["name"] for found in kind(objects, "HorizontalPodAutoscaler")] == ["projection-service"]
    replicas = {found["metadata"]["name"]: found["spec"].get("replicas") for found in kind(objects, "Deployment")}
    assert replicas == {f"{stage}-service": None if stage == "projection" else 2 for stage in STAGES}


def test_the_worst_case_of_the_service_tier_fits_its_quota(production: list[Object]) -> None:
    """80 CPU and 80Gi as stated, for the services alone; with a proxy in each pod still within the quota."""
    alone: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for name, template in templates(production):
        if not name.endswith("-service"):
            continue
        deployment = one(production, "Deployment", name)["spec"]
        most = one(production, "HorizontalPodAutoscaler", name)["spec"]["maxReplicas"]
        pods = most + deployment["strategy"]["rollingUpdate"]["maxSurge"]
        proxy = template["metadata"]["annotations"]
        (container,) = template["spec"]["containers"]
        for resource in ("cpu", "memory"):
            own = amount(container["resources"]["limits"][resource])
            alone[resource] += pods * own
            asked[resource] += pods * (own + amount(proxy[f"config.linkerd.io/proxy-{resource}-limit"]))
        asked["pods"] += pods
    assert alone == {"cpu": 80, "memory": 80 * 2**30}
    quota = one(production, "ResourceQuota", "quota", "data-processing")["spec"]["hard"]
    assert asked["cpu"] <= amount(quota["limits.cpu"]) <= 200
    assert asked["memory"] <= amount(quota["limits.memory"]) <= 400 * 2**30
    assert asked["pods"] <= amount(quota["pods"])


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chart", "changes", "says"),
    [
        ("platform", ["image.digest="], "image: production names this image by digest"),
        ("platform", ["image.tag=0.1.0"], "tag 0.1.0 and digest sha256:[0-9a-f]{64} are both set"),
        ("platform", ["parts.network.workloads.brokers.ports.plaintext=9092"], "production has no plaintext listener"),
        (
            "data-processing",
            ["services.enrichment.image.tag=latest"],
            r'services.enrichment.image: tag "latest" may move',
        ),
        ("data-processing", ["services.enrichment.image.tag=v1"], r'tag "v1" may move'),
        ("data-processing", ["services.enrichment.image.tag="], r'tag "" may move'),
        (
            "data-processing",
            [f"services.enrichment.image.digest={charts.DIGEST}"],
            "services.enrichment.image: tag v1.2.3 and digest .* are both set",
        ),
        ("data-processing", ["services.enrichment.image.repository=gcr.io/project/x:latest"], "image/repository"),
    ],
)
def test_what_is_not_for_production_is_refused_there(chart: str, changes: list[str], says: str) -> None:
    unknown = charts.UNKNOWN_HERE if chart == "platform" else ()
    with pytest.raises(charts.HelmError, match=says):
        render(chart, *values(chart, "production"), *unknown, *(f"--set={change}" for change in changes))


def test_production_says_where_its_api_server_is() -> None:
    with pytest.raises(charts.HelmError, match="say where this cluster's API server is: kubectl get endpointslices"):
        render("platform", *values("platform", "production"), f"--set=image.digest={charts.DIGEST}")


# --- tenants --------------------------------------------------------------------------------------------------------


def of_tenant(tenant: str, *tenants: str) -> dict[tuple[str, str, str], Object]:
    """The objects that are there because this tenant is."""

    def rendered(*some: str) -> dict[tuple[str, str, str], Object]:
        found = render("platform", charts.with_tenants(*some), "--set=externalSecrets.enabled=true")
        return {charts.key(it): it for it in found}

    everything = rendered(*tenants)
    others = rendered(*(other for other in tenants if other != tenant))
    assert others.items() <= everything.items(), "a tenant changes what is not its own"
    return {name: everything[name] for name in everything.keys() - others.keys()}


def test_two_tenants_share_no_object() -> None:
    first, second = (of_tenant(tenant, *TENANTS) for tenant in TENANTS)
    assert not first.keys() & second.keys()
    assert {kind for kind, _, _ in first} == {kind for kind, _, _ in second}
    for name, (mine, other) in {"acme": (first, "globex"), "globex": (second, "acme")}.items():
        text = yaml.safe_dump_all(mine.values())
        assert name in text
        assert other not in text


def test_a_tenant_has_everything_of_its_own() -> None:
    objects = list(of_tenant("acme-2", "acme", "acme-2").values())
    assert {found["metadata"].get("namespace") for found in objects} == {None, "tenant-acme-2", "kafka"}
    quota = one(objects, "ResourceQuota", "quota")["spec"]["hard"]
    assert (quota["limits.cpu"], quota["limits.memory"], quota["pods"]) == ("20", "40Gi", "20")
    assert one(objects, "ServiceAccount", "tenant-etl")["automountServiceAccountToken"] is False
    assert one(objects, "Role", "tenant-etl-role")["rules"] == []
    assert one(objects, "NetworkPolicy", "default-deny")["metadata"]["namespace"] == "tenant-acme-2"
    assert one(objects, "ConfigMap", "tenant-settings")["data"] == {
        "TENANT": "acme-2",
        "TRINO_SCHEMA": "commodities_acme_2",
        "FEATURES_SCHEMA": "features_acme_2",
        "TOPIC_PREFIX": "acme-2.",
    }
    references = {found["metadata"]["name"]: found["spec"] for found in kind(objects, "ExternalSecret")}
    assert references.keys() == {key.secret for key in SECRETS.values()} | {"kafka-user-tenant-acme-2"}
    for spec in references.values():
        assert all("/tenant-acme-2/" in entry["remoteRef"]["key"] for entry in spec["data"])
    named = {found["metadata"]["name"] for found in kind(objects, "KafkaTopic")}
    assert named == {f"acme-2.{topic.name}" for topic in topics.catalogue() if topic.tenants}
    assert {"acme-2.commodity-prices", "acme-2.commodity-prices-dlq", "acme-2.ml-predictions"} < named
    assert "acme-2.platform-metrics" not in named


def test_no_prefix_of_a_tenant_is_the_beginning_of_another_s_topic() -> None:
    objects = render("platform", charts.with_tenants("acme", "acme-2"))
    (user,) = (found for found in kind(objects, "KafkaUser") if found["metadata"]["name"] == "tenant-acme")
    for acl in user["spec"]["authorization"]["acls"]:
        assert acl["resource"]["patternType"] == "prefix"
        reached = {
            found["metadata"]["labels"].get("tenant")
            for found in kind(objects, "KafkaTopic")
            if found["metadata"]["name"].startswith(acl["resource"]["name"])
        }
        assert reached == {"acme"}


def test_tenants_ask_for_no_more_than_there_is() -> None:
    def tenants(number: int) -> str:
        return charts.with_tenants(*(f"team-{one}" for one in range(number)))

    assert len(list(kind(render("platform", tenants(10)), "Namespace"))) == 15
    with pytest.raises(charts.HelmError, match=r"tenants: 11 tenants of 20 cpu ask for 220, and the platform has 200"):
        render("platform", tenants(11))
    with pytest.raises(charts.HelmError, match=r"10 tenants of 41Gi memory ask for 410Gi, and the platform has 400Gi"):
        render("platform", tenants(10), "--set=tenantQuota.memory=41Gi")
    with pytest.raises(charts.HelmError, match=r"10 tenants of 21 pods ask for 210"):
        render("platform", tenants(10), "--set=tenantQuota.pods=21")
