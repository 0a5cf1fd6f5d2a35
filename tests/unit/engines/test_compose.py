"""`compose.yaml` offers what `make engines-up` starts: the same versions, and the same settings where they matter."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from marketdata.engines import kafka as embedded
from marketdata.engines.postgres import DATABASES, Postgres
from marketdata.settings import CHECKOUT
from tests.engines import kafka, registry, trino
from tests.engines.s3proxy import S3


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())
    return content


def lines(properties: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in properties.splitlines())


def test_versions_are_those_of_the_tests(compose: dict[str, Any]) -> None:
    images = {name: service["image"] for name, service in compose["services"].items()}
    assert [images.pop(f"kafka-{broker}") for broker in kafka.IDS] == [f"apache/kafka:{embedded.VERSION}"] * 3
    assert images["trino"] == f"trinodb/trino:{trino.VERSION}"
    assert images["registry"] == f"apicurio/apicurio-registry:{registry.VERSION}"
    assert images["postgres"] == f"postgres:{Postgres.version}"


def test_brokers_promise_what_the_tests_brokers_promise(compose: dict[str, Any]) -> None:
    place = {broker: kafka._Place("h", 1, 2) for broker in kafka.IDS}
    tested = lines(kafka._properties(CHECKOUT, 1, place))
    for broker in kafka.IDS:
        environment = compose["services"][f"kafka-{broker}"]["environment"]
        assert environment["KAFKA_NODE_ID"] == str(broker)
        for name, value in environment.items():
            setting = name.removeprefix("KAFKA_").lower().replace("_", ".")
            if setting.endswith(("replication.factor", "isr", "replicas", "enable", "roles")):
                assert value == tested[setting], name
        promises = [name for name in tested if name.endswith(("factor", ".isr", "insync.replicas", "topics.enable"))]
        assert {f"KAFKA_{name.upper().replace('.', '_')}" for name in promises} <= environment.keys()


def test_trino_s_catalog_is_the_one_of_the_tests(compose: dict[str, Any]) -> None:
    dsn = "postgresql://marketdata:marketdata@postgres:5432/marketdata"
    lake = trino.Lake("s3://lake/lake", S3("http://s3:9000", "lake", "marketdata", "not-a-secret-at-all"))
    assert lines(compose["configs"]["iceberg"]["content"]) == trino._catalog(dsn, lake)


def test_the_catalog_s_tables_are_as_pyiceberg_makes_them(compose: dict[str, Any]) -> None:
    from pyiceberg.catalog.sql import SqlCatalogBaseTable
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    said = squeezed(compose["configs"]["databases"]["content"])
    for database in DATABASES[1:]:
        assert f"create database {database};" in said
    for table in SqlCatalogBaseTable.metadata.sorted_tables:
        assert squeezed(str(CreateTable(table).compile(dialect=postgresql.dialect()))) in said


def squeezed(sql: str) -> str:
    return re.sub(r" ?([(),]) ?", r"\1", re.sub(r"\s+", " ", sql).strip().lower())
