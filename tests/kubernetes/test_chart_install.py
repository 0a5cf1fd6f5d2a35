"""The charts on a real API server: admitted object by object, installed, upgraded, removed; and bounds that bind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import NO_SHARED_DATA, SHARED
from tests.engines.kubernetes.cluster import Cluster
from tests.kubernetes import charts
from tests.kubernetes.charts import Object, values
from tests.waiting import until

CONSUMER = "commodity-analytics-consumer"
TENANTS = ("hooli", "initech")


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[Cluster]:
    """The platform is installed, with two tenants."""
    charts.install_platform(cluster, charts.with_tenants(*TENANTS))
    yield cluster
    charts.install_platform(cluster)
    cluster.kubectl("delete", "namespace", "--wait=false", *(f"tenant-{tenant}" for tenant in TENANTS))


@pytest.fixture(scope="module")
def definitions(cluster: Cluster) -> Iterator[None]:
    """The cluster knows the kinds of Strimzi's and Prometheus's operators."""
    if not SHARED.is_dir():
        pytest.skip(NO_SHARED_DATA)
    files = [f"--filename={file}" for file in charts.definitions(SHARED)]
    known = cluster.kubectl("get", "crds", "--output=name")
    ours = "kafkas.kafka.strimzi.io" not in known
    if ours:
        cluster.kubectl("create", *files)
        until("the API server serves the new kinds", lambda: all(map(is_established, cluster.get(*files)["items"])))
    yield
    if ours:
        cluster.kubectl("delete", "--wait=false", *files)


def is_established(definition: Object) -> bool:
    conditions = definition.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


@pytest.mark.usefixtures("definitions")
def test_the_api_server_takes_every_object_of_production(installed: Cluster) -> None:
    # There is no definition of ExternalSecret to be had here; test_chart.py looks at those.
    found = [one for one in charts.production(*TENANTS) if one["kind"] != "ExternalSecret"]
    for one in found:
        # As it would be without us: nobody has said which fields are whose.
        one["metadata"]["labels"].pop("app.kubernetes.io/managed-by")
    said = installed.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "--filename=-",
        input=yaml.safe_dump_all(found),
    )
    assert len(said.splitlines()) == len(found) > 150


@pytest.mark.usefixtures("definitions")
@pytest.mark.parametrize(
    ("kind", "break_it"),
    [
        ("NetworkPolicy", lambda spec: spec.update(polcyTypes=["Egress"])),
        ("KafkaUser", lambda spec: spec["authorization"]["acls"][0].update(operations=["Reed"])),
        ("Kafka", lambda spec: spec["kafka"]["listeners"][0].update(prot=9093)),
        ("PodMonitor", lambda spec: spec["podMetricsEndpoints"][0].update(prot="metrics")),
    ],
)
def test_the_api_server_would_refuse_a_slip(
    kind: str, break_it: Callable[[dict[str, Any]], None], installed: Cluster
) -> None:
    broken = next(charts.kind(charts.production(), kind))
    break_it(broken["spec"])
    with pytest.raises(RuntimeError, match=r"unknown field|strict decoding|Unsupported value"):
        installed.kubectl(
            "create", "--dry-run=server", "--validate=strict", "--filename=-", input=yaml.safe_dump(broken)
        )


def test_pods_of_every_service_are_admitted_where_only_hardened_ones_are(installed: Cluster) -> None:
    """A Deployment is admitted whatever its pods are like: so the pods themselves are offered."""
    found = list(charts.kind(charts.production(), "Deployment"))
    assert len(found) == 5
    for deployment in found:
        pod = pod_of(deployment)
        assert "created" in installed.kubectl("create", "--dry-run=server", "--filename=-", input=yaml.safe_dump(pod))
        del pod["spec"]["containers"][0]["securityContext"]
        with pytest.raises(RuntimeError, match=r'violates PodSecurity "restricted:v1.34".*allowPrivilegeEscalation'):
            installed.kubectl("create", "--dry-run=server", "--filename=-", input=yaml.safe_dump(pod))


def pod_of(deployment: Object) -> Object:
    template = deployment["spec"]["template"]
    metadata = {**template["metadata"], "name": "offered", "namespace": deployment["metadata"]["namespace"]}
    # Its account comes with the service, which is not installed.
    spec = {**template["spec"], "serviceAccountName": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.mark.usefixtures("definitions")
def test_a_new_image_is_one_flag_and_changes_nothing_else(installed: Cluster) -> None:
    """The stated commands, without waiting for images that are not to be had here."""
    chart = str(charts.DEPLOY / "data-processing")
    release = ["data-processing-pipeline", chart, "--namespace=data-processing"]
    access = f"--kubeconfig={installed.kubeconfig}"
    stages = ("normalization", "enrichment", "aggregation", "projection")
    scaled = [f"--set=services.{stage}.autoscaling.enabled=true" for stage in stages]
    stated = ["--create-namespace", "--set=global.environment=production", *scaled]
    # Pods that nothing can be pulled for would only be in the way: this namespace takes none for now.
    installed.kubectl("create", "quota", "nobody", "--hard=pods=0", "--namespace=data-processing")
    try:
        charts.helm("upgrade", "--install", *release, access, *values("data-processing", "production"), *stated)
        before = images(installed)
        charts.helm(
            "upgrade", "--install", *release, access, "--reuse-values", "--set=services.normalization.image.tag=v1.2.4"
        )
        changed = {"normalization-service": "gcr.io/project/normalization-service:v1.2.4"}
        assert images(installed) == before | changed
        assert before["normalization-service"].endswith(":v1.2.3")
        scalers = installed.get("hpa", "--namespace=data-processing")["items"]
        assert {one["metadata"]["name"] for one in scalers} == {f"{stage}-service" for stage in stages}
    finally:
        charts.uninstall(installed, "data-processing")
        installed.kubectl("delete", "resourcequota", "nobody", "--namespace=data-processing")
    assert installed.get("deployments", "--namespace=data-processing")["items"] == []


def images(cluster: Cluster) -> dict[str, str]:
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]["containers"][0]["image"]
        for one in cluster.get("deployments", "--namespace=data-processing")["items"]
    }


def test_the_autoscaler_brings_the_consumer_to_three_pods(installed: Cluster) -> None:
    """The Deployment says no number; a cluster without metrics has the floor all the same."""
    switched_on = [f"--set=services.{CONSUMER}.enabled=true", "--set=image.repository=localhost/none"]
    charts.install_platform(installed, charts.with_tenants(*TENANTS), *switched_on)

    def replicas() -> int:
        return int(installed.get("deployment", CONSUMER, "--namespace=production")["spec"]["replicas"])

    try:
        assert replicas() == 1
        until("three pods are wanted", lambda: replicas() == 3)
    finally:
        charts.install_platform(installed, charts.with_tenants(*TENANTS))
    assert "not found" in refusal(installed, "get", "deployment", CONSUMER, "--namespace=production")


def refusal(cluster: Cluster, *arguments: str, told: str | None = None) -> str:
    with pytest.raises(RuntimeError) as refused:
        cluster.kubectl(*arguments, input=told)
    return str(refused.value)


def waiting_pod(name: str, namespace: str, **resources: str) -> Object:
    """A hardened pod that counts against the quota and never runs: it waits for a gate that nobody opens."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container: Object = {"name": "base", "image": "localhost/none:0", "securityContext": security}
    if resources:
        container["resources"] = {"requests": resources, "limits": resources}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"test": "quota"}},
        "spec": {
            "schedulingGates": [{"name": "marketdata.test/never"}],
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        },
    }


def create(cluster: Cluster, *pods: Object) -> None:
    """Create pods, again while the quota is being counted: the server leaves that to its clients."""

    def created() -> bool:
        try:
            cluster.apply(*pods)
        except RuntimeError as error:
            if "(Conflict)" not in str(error) and "exceeded quota" not in str(error):
                raise
            return False
        return True

    until("all pods are created", created, 240)


@pytest.fixture
def emptied(installed: Cluster) -> Iterator[Cluster]:
    yield installed
    for namespace in ("production", "tenant-hooli"):
        installed.kubectl("delete", "--raw", f"/api/v1/namespaces/{namespace}/pods?labelSelector=test%3Dquota")


def test_the_two_hundred_and_first_pod_is_refused(emptied: Cluster) -> None:
    numbers = itertools.count()
    newest = ""

    def live_and_counted() -> tuple[int, int]:
        phases = "--field-selector=status.phase!=Succeeded,status.phase!=Failed"
        pods = emptied.get("pods", "--namespace=production", phases)["items"]
        quota = emptied.get("resourcequota", "quota", "--namespace=production")
        return len(pods), int(quota["status"]["used"]["pods"])

    def is_full() -> bool:
        """Tops up, as long as pods of earlier tests go."""
        nonlocal newest
        live, counted = live_and_counted()
        if names := [f"quota-{next(numbers)}" for _ in range(200 - max(live, counted))]:
            create(emptied, *(waiting_pod(name, "production", cpu="1m", memory="1Mi") for name in names))
            newest = names[-1]
        elif counted < live:
            # They were counted while they were being created; and are again when one goes, or after five minutes.
            emptied.kubectl("delete", "pod", newest, "--namespace=production", "--ignore-not-found")
        return live == counted == 200

    until("200 pods are live and counted", is_full, 240, but=live_and_counted)
    one_more = yaml.safe_dump(waiting_pod("quota-one-more", "production", cpu="1m", memory="1Mi"))
    said = refusal(emptied, "create", "--filename=-", told=one_more)
    assert "exceeded quota: quota, requested: pods=1, used: pods=200, limited: pods=200" in said


@pytest.mark.parametrize(
    ("resources", "says"),
    [({"cpu": "201", "memory": "1Mi"}, "limits.cpu=201"), ({"cpu": "1m", "memory": "401Gi"}, "401Gi")],
)
def test_a_pod_beyond_the_quota_is_refused(resources: dict[str, str], says: str, emptied: Cluster) -> None:
    pod = yaml.safe_dump(waiting_pod("quota-too-large", "production", **resources))
    said = refusal(emptied, "create", "--filename=-", told=pod)
    assert "exceeded quota: quota" in said
    assert says in said


def test_a_container_that_says_nothing_gets_the_default(emptied: Cluster) -> None:
    create(emptied, waiting_pod("quota-default", "production"))
    (container,) = emptied.get("pod", "quota-default", "--namespace=production")["spec"]["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "512Mi"},
        "limits": {"cpu": "1", "memory": "1Gi"},
    }


def test_a_tenant_has_a_quota_of_its_own(emptied: Cluster) -> None:
    too_large = waiting_pod("quota-too-large", "tenant-hooli", cpu="21", memory="1Mi")
    until("its quota counts", lambda: "exceeded quota" in emptied.refusal("tenant-hooli", too_large))
    said = refusal(emptied, "create", "--filename=-", told=yaml.safe_dump(too_large))
    assert "limited: limits.cpu=20" in said
    create(emptied, waiting_pod("quota-fits", "tenant-hooli", cpu="20", memory="1Mi"))


def test_removing_the_chart_leaves_namespaces_and_what_is_in_them(installed: Cluster, own_cluster: Cluster) -> None:
    held = ["configmap", "held", "--namespace=production"]
    own_cluster.kubectl("create", *held)
    try:
        charts.uninstall(own_cluster, "platform")
        assert "not found" in refusal(own_cluster, "get", "role", "airflow-pod-launcher", "--namespace=production")
        there = {one["metadata"]["name"] for one in own_cluster.get("namespaces")["items"]}
        assert there >= {"production", "kafka", "data-processing", "airflow", "monitoring", "tenant-hooli"}
        assert own_cluster.get(*held)["metadata"]["name"] == "held"
    finally:
        charts.install_platform(own_cluster, charts.with_tenants(*TENANTS))
        own_cluster.kubectl("delete", *held)
    assert own_cluster.get("role", "airflow-pod-launcher", "--namespace=production")["rules"]


def test_what_was_made_by_hand_is_taken_over(installed: Cluster) -> None:
    """The other tests of this folder, and people, may have made a namespace before the chart came."""
    owner = installed.get("namespace", "production")["metadata"]["annotations"]
    assert owner["meta.helm.sh/release-name"] == "platform"


def test_the_files_that_are_read_are_there() -> None:
    for link in ("platform/topics.yaml", "platform/charts/parts", "data-processing/charts/parts"):
        path = charts.DEPLOY / link
        assert path.is_symlink()
        assert not Path(path.readlink()).is_absolute()
        assert path.exists()
