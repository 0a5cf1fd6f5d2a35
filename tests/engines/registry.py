"""A real schema registry on this machine: Apicurio 3.3.3, which speaks Confluent's protocol; its memory is lost."""

from __future__ import annotations

import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marketdata.engines import jars
from marketdata.engines.process import free_port
from tests.engines.jvm import server

VERSION = "3.3.3"
ARCHIVE = (
    "8bc6751c76d963734224b01d5e7f84ccb3cb61c87d3bd77c36c35f10a5cbed63  "
    f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
)
PATH = "/apis/ccompat/v7"
"""Where the protocol of Confluent's registry begins."""


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Run the registry until the block ends; yields its address as `SCHEMA_REGISTRY_URL` wants it."""
    port = free_port()
    home = _installed()
    arguments = [
        "-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
        "-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={port}", "-Dquarkus.management.enabled=false",
        "-jar", str(home / "quarkus-run.jar"),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}{PATH}"
    with server(arguments, lambda: _answers(url), folder=folder, name="registry", seconds=120):
        yield url


def _installed() -> Path:
    def make(folder: Path) -> None:
        (archive,) = jars.fetch(ARCHIVE, folder)
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        archive.unlink()

    return jars.cached(f"registry-{VERSION}", make)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/subjects", timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False
