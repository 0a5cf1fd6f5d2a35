"""Real engines for tests, each started once a session and only when asked for.

Other folders import what they need, e.g. ``from tests.engines.conftest import s3, trino, trino_server  # noqa: F401``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marketdata.settings import Settings
from tests.engines.kafka import Brokers
from tests.engines.kafka import brokers as run_brokers
from tests.engines.registry import registry as run_registry
from tests.engines.s3proxy import S3, s3proxy
from tests.engines.trino import Lake
from tests.engines.trino import trino as run_trino


@pytest.fixture(scope="session")
def brokers(new_home: Callable[[str], Path]) -> Iterator[Brokers]:
    """Three Kafka brokers."""
    with run_brokers(new_home("kafka")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka(embedded: Settings, brokers: Brokers) -> Settings:
    """Settings of a Kafka and a PostgreSQL: three brokers, and the embedded PostgreSQL."""
    return embedded.model_copy(update={"kafka_brokers": brokers.addresses})


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a schema registry."""
    with run_registry(tmp_path_factory.mktemp("registry")) as url:
        yield url


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3-compatible store with one empty bucket."""
    with s3proxy(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture(scope="session")
def trino_server(embedded: Settings, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One Trino on the embedded PostgreSQL: catalog `iceberg` on this disk, catalog `iceberg_s3` on the store."""
    lakes = {"iceberg": Lake(embedded.require("lake_uri")), "iceberg_s3": Lake(f"s3://{s3.bucket}/lake", s3)}
    with run_trino(embedded.require("postgres_dsn"), lakes, tmp_path_factory.mktemp("trino") / "server") as (
        host,
        port,
    ):
        yield {"trino_host": host, "trino_port": port, "postgres_dsn": embedded.require("postgres_dsn")}


@pytest.fixture(scope="session")
def trino(trino_server: dict[str, Any], embedded: Settings) -> dict[str, Any]:
    """Overrides of Settings: Trino on a lake on this disk."""
    return {**trino_server, "trino_catalog": "iceberg", "lake_uri": embedded.require("lake_uri")}


@pytest.fixture(scope="session")
def trino_s3(trino_server: dict[str, Any], s3: S3) -> dict[str, Any]:
    """Overrides of Settings: Trino on a lake in an S3-compatible store."""
    return {**trino_server, "trino_catalog": "iceberg_s3", "lake_uri": f"s3://{s3.bucket}/lake", **s3.settings()}
