"""Real Trino 476 with its Iceberg connector, on the JDBC catalog that pyiceberg uses too, on a given PostgreSQL."""

from __future__ import annotations

import json
import shutil
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from marketdata.engines import jars
from marketdata.engines.process import free_port
from tests.engines.jvm import server
from tests.engines.s3proxy import S3

VERSION = "476"
SERVER = (
    f"0f388f9967c177ae70a47c099082fc95387f0c3cb96d8000d1d41fc3a5223158  io.trino:trino-server-core:{VERSION}:tar.gz"
)
PLUGIN = f"99edba5b491ed94d599aeb61e0794272d3569d8b563f3bb8569e8a49daa87b6c  io.trino:trino-iceberg:{VERSION}:zip"


@dataclass(frozen=True)
class Lake:
    """One Iceberg catalog of the server: where its tables lie, and the store if that is ``s3://``."""

    uri: str
    s3: S3 | None = None


@contextmanager
def trino(
    postgres_dsn: str, lakes: Mapping[str, Lake], folder: Path, port: int | None = None
) -> Iterator[tuple[str, int]]:
    """Run Trino until the block ends; yields host and port.

    Args:
        postgres_dsn: server of the JDBC catalog `lake`, which all the catalogs share; its database `iceberg` is used
            whatever the address names.
        lakes: by name of the catalog in Trino; tables lie in ``<uri>/warehouse`` unless their schema says otherwise.
        folder: a folder that does not exist yet, for configuration and log.
        port: default: a free one.
    """
    port = port or free_port()
    installed = _installed()
    (folder / "catalog").mkdir(parents=True)
    for name, lake in lakes.items():
        _create_catalog_tables(postgres_dsn, lake)
        _write(folder / "catalog" / f"{name}.properties", _catalog(postgres_dsn, lake))
    _write(folder / "config.properties", {
        "coordinator": "true",
        "node-scheduler.include-coordinator": "true",
        "http-server.http.port": str(port),
        "discovery.uri": f"http://127.0.0.1:{port}",
        "node.environment": "test",
        "node.internal-address": "127.0.0.1",
        "node.bind-ip": "127.0.0.1",
        "catalog.config-dir": str(folder / "catalog"),
        "plugin.dir": str(installed / "plugin"),
        "query.max-memory": "1GB",
    })  # fmt: skip
    _write(folder / "log.properties", {"io.trino": "WARN", "io.airlift": "WARN", "org.apache.iceberg": "WARN"})
    arguments = [
        "-Xmx2g", "-XX:+UseG1GC", "-XX:TieredStopAtLevel=1", "-Djdk.attach.allowAttachSelf=true",
        "--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow", "-Dfile.encoding=UTF-8",
        f"-Dconfig={folder / 'config.properties'}", f"-Dlog.levels-file={folder / 'log.properties'}",
        "-cp", f"{installed / 'lib'}/*", "io.trino.server.TrinoServer",
    ]  # fmt: skip
    with server(arguments, lambda: _started(port) and _writes(port, lakes), folder=folder, name="trino", seconds=600):
        yield "127.0.0.1", port


def _catalog(postgres_dsn: str, lake: Lake) -> dict[str, str]:
    dsn = urlsplit(postgres_dsn)
    catalog = {
        "connector.name": "iceberg",
        "iceberg.catalog.type": "jdbc",
        "iceberg.jdbc-catalog.catalog-name": "lake",
        "iceberg.jdbc-catalog.driver-class": "org.postgresql.Driver",
        "iceberg.jdbc-catalog.connection-url": f"jdbc:postgresql://{dsn.hostname}:{dsn.port}/iceberg?socketTimeout=60&tcpKeepAlive=true",
        "iceberg.jdbc-catalog.connection-user": dsn.username or "",
        "iceberg.jdbc-catalog.connection-password": dsn.password or "",
        "iceberg.jdbc-catalog.default-warehouse-dir": f"{lake.uri}/warehouse",
        "iceberg.jdbc-catalog.schema-version": "V1",
        "iceberg.allowed-extra-properties": "*",
        "iceberg.add-files-procedure.enabled": "true",
        # A first load brings every month of the history; by itself Trino stops at 100.
        "iceberg.max-partitions-per-writer": "4000",
        "fs.hadoop.enabled": "false",
    }
    if lake.s3 is None:
        return {**catalog, "fs.native-local.enabled": "true", "local.location": "/"}
    return {
        **catalog,
        "fs.native-s3.enabled": "true",
        "s3.endpoint": lake.s3.endpoint,
        "s3.region": "us-east-1",
        "s3.path-style-access": "true",
        "s3.aws-access-key": lake.s3.access_key,
        "s3.aws-secret-key": lake.s3.secret_key,
    }


def _create_catalog_tables(postgres_dsn: str, lake: Lake) -> None:
    """Trino expects the catalog's tables to be there; pyiceberg makes them."""
    from pyiceberg.catalog.sql import SqlCatalog

    address = urlsplit(postgres_dsn)._replace(scheme="postgresql+psycopg", path="/iceberg").geturl()
    SqlCatalog("lake", uri=address, warehouse=f"{lake.uri}/warehouse").close()


def _installed() -> Path:
    def make(folder: Path) -> None:
        archive, plugin = jars.fetch(f"{SERVER}\n{PLUGIN}", folder)
        with tarfile.open(archive) as server_files:
            server_files.extractall(folder / "unpacked", filter="data")
        with zipfile.ZipFile(plugin) as plugin_files:
            plugin_files.extractall(folder / "unpacked-plugin")  # noqa: S202 - zipfile strips leading and double dots
        (folder / "unpacked" / f"trino-server-core-{VERSION}" / "lib").rename(folder / "lib")
        (folder / "plugin").mkdir()
        (folder / "unpacked-plugin" / f"trino-iceberg-{VERSION}").rename(folder / "plugin" / "iceberg")
        for leftover in ("unpacked", "unpacked-plugin"):
            shutil.rmtree(folder / leftover)
        archive.unlink()
        plugin.unlink()

    return jars.cached(f"trino-{VERSION}", make)


def _started(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/info", timeout=2) as answer:
            return json.load(answer)["starting"] is False
    except OSError:
        return False


def _writes(port: int, catalogs: Iterable[str]) -> bool:
    """Trino answers before it knows that its only node carries the catalogs; until then an INSERT finds no nodes."""
    from trino.dbapi import connect
    from trino.exceptions import TrinoQueryError

    cursor = connect(host="127.0.0.1", port=port, user="test").cursor()
    for catalog in catalogs:
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {catalog}.readiness_{catalog}").fetchall()
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {catalog}.readiness_{catalog}.probe (a int)").fetchall()
        try:
            cursor.execute(f"INSERT INTO {catalog}.readiness_{catalog}.probe VALUES 1").fetchall()
        except TrinoQueryError as error:
            if error.error_name == "NO_NODES_AVAILABLE":
                return False
            raise
        cursor.execute(f"DROP SCHEMA {catalog}.readiness_{catalog} CASCADE").fetchall()
    return True


def _write(path: Path, properties: dict[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
