"""The real Trino of the other tests: does it read and write Iceberg tables where they say, as pyiceberg sees them?"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
from trino.dbapi import connect

from marketdata.settings import Settings


@pytest.mark.parametrize("lake", ["trino", "trino_s3"])
def test_a_table_written_by_trino_is_read_by_pyiceberg_after_a_merge(
    lake: str, request: pytest.FixtureRequest, settings_for: Callable[..., Settings]
) -> None:
    overrides: dict[str, Any] = request.getfixturevalue(lake)
    settings = settings_for(**overrides)
    cursor = connect(
        host=settings.trino_host, port=settings.trino_port, user=settings.trino_user, catalog=settings.trino_catalog
    ).cursor()

    def run(statement: str) -> list[Any]:
        return cursor.execute(statement).fetchall()

    run(f"CREATE SCHEMA smoke_{lake}")
    run(
        f"CREATE TABLE smoke_{lake}.prices (id bigint, price decimal(18, 6)) WITH (format_version = 2, "
        "extra_properties = MAP(ARRAY['marketdata.writer'], ARRAY['trino']))"
    )
    run(f"INSERT INTO smoke_{lake}.prices VALUES (1, 2.5), (2, -36.98)")
    run(
        f"MERGE INTO smoke_{lake}.prices t USING (VALUES (1, DECIMAL '3')) s (id, price) ON t.id = s.id "
        "WHEN MATCHED THEN UPDATE SET price = s.price"
    )

    assert sorted(run(f"SELECT id, price FROM smoke_{lake}.prices")) == [[1, Decimal("3")], [2, Decimal("-36.98")]]
    table = _pyiceberg(settings).load_table(f"smoke_{lake}.prices")
    assert table.location().startswith(f"{overrides['lake_uri']}/warehouse/")
    assert table.properties["marketdata.writer"] == "trino"
    assert sorted(table.scan().to_arrow().to_pylist(), key=lambda row: row["id"]) == [
        {"id": 1, "price": Decimal("3")},
        {"id": 2, "price": Decimal("-36.98")},
    ]


def _pyiceberg(settings: Settings) -> Any:
    from pyiceberg.catalog.sql import SqlCatalog

    store = {}
    if settings.aws_endpoint_url:
        store = {
            "s3.endpoint": settings.aws_endpoint_url,
            "s3.access-key-id": settings.require("aws_access_key_id"),
            "s3.secret-access-key": settings.require("aws_secret_access_key"),
            "s3.region": settings.aws_region,
        }
    address = urlsplit(settings.require("postgres_dsn"))._replace(scheme="postgresql+psycopg", path="/iceberg").geturl()
    return SqlCatalog("lake", uri=address, warehouse=f"{settings.lake_uri}/warehouse", **store)
