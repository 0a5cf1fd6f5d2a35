"""A cluster for the session, with what the platform needs in it and beside it.

`KUBECONFIG` set: that cluster is used, e.g. a kind's or minikube's; pods reach this machine's services at
`MARKETDATA_TEST_HOST`, or at this machine's address in the network of the cluster's node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from marketdata import engines
from marketdata.orchestration import policy
from marketdata.settings import ENDPOINTS_VARIABLE, Settings
from marketdata.streaming import topics
from tests.engines.kubernetes.cluster import Cluster, why_not
from tests.engines.kubernetes.cluster import cluster as run_cluster
from tests.engines.kubernetes.objects import credentials
from tests.engines.s3proxy import s3proxy
from tests.kubernetes import charts


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Kubernetes cluster."""
    if reason := why_not():
        pytest.skip(reason)
    with run_cluster() as running:
        yield running


@pytest.fixture
def own_cluster(cluster: Cluster) -> Cluster:
    """The cluster, where it is ours to break."""
    if cluster.own is None:
        pytest.skip("the cluster of KUBECONFIG is somebody else's, and this test breaks it")
    return cluster


@pytest.fixture(scope="session")
def services(cluster: Cluster, new_home: Callable[[str], Path]) -> Iterator[Settings]:
    """Settings of real Kafka with the platform's topics, PostgreSQL and S3, as pods and this machine reach them."""
    home = new_home("services")

    @contextmanager
    def at_home() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MARKETDATA_HOME", str(home))
            patch.setenv(ENDPOINTS_VARIABLE, str(home / "engines" / "endpoints.json"))
            yield

    with s3proxy(home / "s3", host=cluster.host) as store:
        try:
            with at_home():
                lake = {"lake_uri": f"s3://{store.bucket}/lake", **store.settings()}
                settings = engines.up(Settings(**lake), ["kafka", "postgres"], host=cluster.host)
            topics.apply(settings)
            yield settings
        finally:
            with at_home():
                engines.down(Settings())


@pytest.fixture(scope="session")
def image(cluster: Cluster) -> str:
    """Name of the task image, built from this checkout and on the node."""
    from tests.engines import images

    name = images.task_image()
    cluster.load_image(images.archive(name))
    return name


@pytest.fixture(scope="session")
def platform(cluster: Cluster, services: Settings) -> str:
    """The namespace of the tasks: the project's chart is installed, and the Secrets say where `services` are."""
    charts.install_platform(cluster)
    cluster.apply(*credentials(services, policy.NAMESPACE))
    return policy.NAMESPACE
