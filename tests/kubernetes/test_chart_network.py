"""The rendered network policies against the list of calls, both ways.

What is evaluated here are the policies, by the rules of the networking.k8s.io/v1 API; that a network plugin enforces
them is not exercised anywhere in this repository.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import yaml

from marketdata.tasks.reference import CALLS
from tests.conftest import ROOT
from tests.kubernetes import charts
from tests.kubernetes.charts import Object

TENANTS = ("acme", "globex")
FACTS = yaml.safe_load(charts.CALLS.read_text())["network"]
WORKLOADS, ADDRESSES = FACTS["workloads"], FACTS["addresses"]
SAID_AT_INSTALLATION = {"kubernetes-api": ["10.96.0.1/32"], "nodes": ["10.20.0.0/24"]}
"""As in `charts.UNKNOWN_HERE`."""
PORTS = sorted(
    {port for one in [*WORKLOADS.values(), *ADDRESSES.values()] for port in one.get("ports", {}).values() if port}
    | {22, 80, 3306, 9092}
)
UNLIKELY = {"192.168.7.7": "a machine nobody named", "169.254.169.254": "the cloud's metadata"}


@dataclass(frozen=True)
class End:
    """A pod, or an address outside."""

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""

    def __str__(self) -> str:
        return f"{self.name} in {self.namespace}" if self.namespace else f"{self.name} at {self.address}"


def ends() -> Iterator[End]:
    """A pod of every workload, in every namespace where there are some, and addresses of every kind."""
    for name, workload in WORKLOADS.items():
        namespaces = [workload["namespace"]]
        if workload.get("tenants"):
            namespaces += [f"tenant-{tenant}" for tenant in TENANTS]
        for namespace in namespaces:
            yield End(name, namespace, workload["pods"])
        yield End(f"who calls itself {name}", "default", workload["pods"])
    yield End("internet", address="203.0.113.7")
    yield End("kubernetes-api", address="10.96.0.1")
    yield End("nodes", address="10.20.0.200")
    for address, name in UNLIKELY.items():
        yield End(name, address=address)


# --- what the list says -------------------------------------------------------------------------------------------


def is_of(end: End, name: str) -> bool:
    """Whether the pod is one of that workload, or the address one of that kind."""
    if name in ADDRESSES:
        ranges = SAID_AT_INSTALLATION.get(name) or ADDRESSES[name]["ranges"]
        return within(end.address, ranges) and not within(end.address, ADDRESSES[name].get("except", []))
    workload = WORKLOADS[name]
    here = end.namespace == workload["namespace"] or (
        bool(workload.get("tenants")) and end.namespace.startswith("tenant-")
    )
    return here and workload["pods"].items() <= end.labels.items()


def within(address: str, ranges: list[str]) -> bool:
    return bool(address) and any(ipaddress.ip_address(address) in ipaddress.ip_network(one) for one in ranges)


def said(source: End, target: End) -> set[tuple[int, str]]:
    """Ports, with protocols, that the list lets one call at the other."""
    found = set()
    for caller, workload in WORKLOADS.items():
        if not is_of(source, caller):
            continue
        for callee, names in workload.get("calls", {}).items():
            if is_of(target, callee):
                called = WORKLOADS.get(callee) or ADDRESSES[callee]
                found |= {
                    (called["ports"][name], protocol)
                    for name in names
                    for protocol in called.get("protocols", ["TCP"])
                    if called["ports"][name]
                }
    return found


# --- what the policies do -----------------------------------------------------------------------------------------


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """A label selector; an empty one selects everything."""
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "Exists", expression
        if expression["key"] not in labels:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(peer: Object, end: End, namespaces: Mapping[str, Mapping[str, str]], own: str) -> bool:
    if block := peer.get("ipBlock"):
        return within(end.address, [block["cidr"]]) and not within(end.address, block.get("except", []))
    if not end.namespace:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], namespaces[end.namespace]):
            return False
    elif end.namespace != own:
        return False
    return selects(peer.get("podSelector", {}), end.labels)


def passes(
    policies: list[Object], direction: str, at: End, other: End, namespaces: Mapping[str, Mapping[str, str]]
) -> set[tuple[int, str]] | None:
    """Ports that the policies of one end let through to or from the other; None: no policy is about that end."""
    mine = [
        policy
        for policy in policies
        if policy["metadata"]["namespace"] == at.namespace
        and direction in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], at.labels)
    ]
    if not mine or not at.namespace:
        return None
    key, side = direction.lower(), {"Ingress": "from", "Egress": "to"}[direction]
    found: set[tuple[int, str]] = set()
    for policy in mine:
        for rule in policy["spec"].get(key, []):
            # Without a list of peers, or with an empty one, a rule is about everybody: none of ours may be.
            assert rule[side], policy["metadata"]["name"]
            assert rule["ports"], policy["metadata"]["name"]
            if any(is_peer(peer, other, namespaces, at.namespace) for peer in rule[side]):
                found |= {(port["port"], port["protocol"]) for port in rule["ports"]}
    return found


def let_through(objects: list[Object]) -> Iterator[tuple[End, End, set[tuple[int, str]]]]:
    """Every pair of ends of which one is in our care, and the ports the policies leave open between them."""
    policies = list(charts.kind(objects, "NetworkPolicy"))
    namespaces: dict[str, Mapping[str, str]] = {
        end.namespace: {"kubernetes.io/metadata.name": end.namespace} for end in ends() if end.namespace
    }
    for namespace in charts.kind(objects, "Namespace"):
        name = namespace["metadata"]["name"]
        namespaces[name] = {"kubernetes.io/metadata.name": name, **namespace["metadata"]["labels"]}
    every = {(port, protocol) for port in PORTS for protocol in ("TCP", "UDP")}
    everybody = list(ends())
    for source in everybody:
        for target in everybody:
            out = passes(policies, "Egress", source, target, namespaces)
            into = passes(policies, "Ingress", target, source, namespaces)
            if out is None and into is None:
                continue
            yield source, target, every & (every if out is None else out) & (every if into is None else into)


@pytest.fixture(scope="module")
def production() -> list[Object]:
    return charts.production(*TENANTS)


def test_the_policies_let_through_what_the_list_says_and_nothing_else(production: list[Object]) -> None:
    pairs = 0
    wrong = []
    for source, target, ports in let_through(production):
        pairs += 1
        if ports != (wanted := said(source, target)):
            wrong.append(f"{source} -> {target}: open {sorted(ports)}, said {sorted(wanted)}")
    assert wrong == []
    assert pairs > 9_000


CRITICAL = [
    ("extract", "production", "internet", 443, True),
    ("transform", "production", "internet", 443, False),
    ("publish", "production", "internet", 443, False),
    ("extract", "production", "internet", 80, False),
    ("extract", "production", "brokers", 9093, False),
    ("publish", "production", "brokers", 9093, True),
    ("publish", "production", "brokers", 9092, False),
    ("transform", "production", "brokers", 9093, False),
    ("load", "production", "trino", 8443, True),
    ("publish", "production", "trino", 8443, False),
    ("transform", "production", "object-store", 9000, True),
    ("extract", "production", "the cloud's metadata", 443, False),
    ("extract", "production", "kubernetes-api", 443, False),
    ("publish", "production", "kubernetes-api", 443, False),
    ("publish", "production", "airflow-api", 8080, False),
    ("airflow-scheduler", "airflow", "kubernetes-api", 443, True),
    ("airflow-api", "airflow", "kubernetes-api", 443, False),
    ("who calls itself publish", "default", "brokers", 9093, False),
    ("who calls itself trino", "default", "postgres", 5432, False),
    ("internet", "", "airflow-api", 8080, False),
    ("extract", "tenant-acme", "internet", 443, True),
    ("publish", "tenant-acme", "brokers", 9093, True),
    ("transform", "tenant-acme", "brokers", 9093, False),
]
"""Written by hand, for the list itself may be wrong: source, its namespace, target, port, whether it is open."""


@pytest.mark.parametrize(("source", "namespace", "target", "port", "is_open"), CRITICAL)
def test_calls_that_matter(
    source: str, namespace: str, target: str, port: int, is_open: bool, production: list[Object]
) -> None:
    task = {"kubernetes_pod_operator": "True", "component": source}
    found = [one for one in ends() if (one.name, one.namespace) == (source, namespace)]
    start = found[0] if found else End(source, namespace, task)
    (end,) = {
        one.name: one for one in ends() if one.name == target and not one.namespace.startswith("tenant-")
    }.values()
    policies = list(charts.kind(production, "NetworkPolicy"))
    names = {one.namespace: {"kubernetes.io/metadata.name": one.namespace} for one in ends() if one.namespace}
    names |= {f"tenant-{tenant}": {"tenant": tenant} for tenant in TENANTS}
    out = passes(policies, "Egress", start, end, names)
    into = passes(policies, "Ingress", end, start, names)
    assert all(ports is None or (port, "TCP") in ports for ports in (out, into)) is is_open


def test_no_pod_reaches_another_tenant_s(production: list[Object]) -> None:
    met = 0
    for source, target, ports in let_through(production):
        if target.namespace == "tenant-globex":
            met += 1
            assert ports == set(), f"{source} -> {target}"
    assert met > 100


def test_in_every_namespace_of_ours_whoever_is_unknown_gets_nowhere(production: list[Object]) -> None:
    for namespace in charts.kind(production, "Namespace"):
        policy = charts.one(production, "NetworkPolicy", "default-deny", namespace["metadata"]["name"])
        assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert {one["metadata"]["name"] for one in charts.kind(production, "Namespace")} == {
        *FACTS["guarded"],
        *(f"tenant-{tenant}" for tenant in TENANTS),
    }


def test_in_development_kafka_is_open_without_a_password_and_only_there(production: list[Object]) -> None:
    def ports(objects: list[Object]) -> set[int]:
        brokers = charts.one(objects, "NetworkPolicy", "brokers-ingress")
        return {port["port"] for rule in brokers["spec"]["ingress"] for port in rule["ports"]}

    development = charts.render("platform", *charts.values("platform", "development"))
    assert ports(development) - ports(production) == {9092}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("workloads.publish.calls.brokers={tsl}", "network.workloads.publish.calls: brokers has no port tsl"),
        ("workloads.publish.calls.borkers={tls}", "network.workloads.publish.calls: there is no workload and no"),
        ("workloads.publish.cals.brokers={tls}", "'cals' not allowed"),
        ("workloads.publish.ports.http=80800", "got 80,800, want 65,535"),
    ],
)
def test_a_slip_in_the_list_is_refused_by_name(change: str, says: str) -> None:
    with pytest.raises(charts.HelmError, match=says):
        charts.render("platform", f"--set=parts.network.{change}")


def test_an_address_without_ranges_is_reached_by_nobody() -> None:
    objects = charts.render("platform", "--set-json=parts.network.addresses.sources.ranges=[]")
    names = {policy["metadata"]["name"] for policy in charts.kind(objects, "NetworkPolicy")}
    assert "extract-egress" not in names
    assert "publish-egress" in names


def test_every_step_of_the_pipeline_is_on_the_list() -> None:
    """A step that calls more than every task may has an entry of its own; the others are told here."""
    snapshot = json.loads((ROOT / "tests/dags/snapshots/commodity-price-pipeline.json").read_text())
    steps = {task["command"][0] for task in snapshot["tasks"].values()}
    assert steps - WORKLOADS.keys() == {"validate", "transform"}
    assert len(steps) == 7


def test_the_provider_labels_every_task_as_the_list_expects() -> None:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    task = SimpleNamespace(dag_id="dag", task_id="task", try_number=1, map_index=-1)
    labels = KubernetesPodOperator._get_ti_pod_labels({"ti": task, "run_id": "run", "dag": None})  # type: ignore[typeddict-item]
    assert WORKLOADS["task"]["pods"].items() <= labels.items()


def test_prometheus_may_reach_what_it_is_told_to_scrape() -> None:
    config = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())
    services = {
        "pushgateway": "pushgateway",
        "alertmanager": "alertmanager",
        "localhost": "prometheus",
        "datahub-kafka-kafka-bootstrap": "brokers",
        "postgres": "postgres",
        "trino": "trino",
    }
    for job in config["scrape_configs"]:
        caller = "blackbox-exporter" if job.get("metrics_path") == "/probe" else "prometheus"
        for target in (target for group in job["static_configs"] for target in group["targets"]):
            host, _, port = target.partition(":")
            callee = services[host.partition(".")[0]]
            calls = WORKLOADS[caller]["calls"][callee]
            # The plaintext port of Kafka is there where it is opened.
            numbers = {WORKLOADS[callee]["ports"][name] or 9092 for name in calls}
            assert int(port) in numbers, target


def test_the_reference_page_and_the_charts_read_the_same_list() -> None:
    assert CALLS == charts.CALLS
    assert (ROOT / "deploy/platform/charts/parts").resolve() == charts.CALLS.parent
    assert (ROOT / "deploy/data-processing/charts/parts").resolve() == charts.CALLS.parent
