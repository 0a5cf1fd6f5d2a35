"""A real S3 protocol on this machine: s3proxy 4.1.0, objects as files in a folder."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from marketdata.engines import jars
from marketdata.engines.process import LOOPBACK, free_port
from tests.engines.jvm import server

VERSION = "4.1.0"
JAR = (
    "a4d025969aaf796616ed4b1e2491d87d455ce84bb28cb9db086b2e6aaa68b48d  "
    f"org.gaul:s3proxy:{VERSION}:jar:jar-with-dependencies"
)


@dataclass(frozen=True)
class S3:
    """An S3-compatible store with one bucket."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str

    def settings(self) -> dict[str, str]:
        """The same as overrides of Settings."""
        return {
            "aws_endpoint_url": self.endpoint,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "aws_region": "us-east-1",
        }


@contextmanager
def s3proxy(folder: Path, bucket: str = "lake", host: str = LOOPBACK) -> Iterator[S3]:
    """Run s3proxy at an address of this machine until the block ends; `folder` takes its objects and its log."""
    store = S3(f"http://{host}:{free_port(host=host)}", bucket, "marketdata", "not-a-secret-at-all")
    (folder / "objects" / bucket).mkdir(parents=True)
    properties = folder / "s3proxy.conf"
    properties.write_text(
        f"s3proxy.endpoint={store.endpoint}\n"
        "s3proxy.authorization=aws-v2-or-v4\n"
        f"s3proxy.identity={store.access_key}\n"
        f"s3proxy.credential={store.secret_key}\n"
        "s3proxy.ignore-unknown-headers=true\n"
        "jclouds.provider=filesystem-nio2\n"
        "jclouds.identity=unused\n"
        "jclouds.credential=unused\n"
        f"jclouds.filesystem.basedir={folder / 'objects'}\n"
    )
    arguments = ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-jar", str(_jar()), "--properties", str(properties)]
    with server(arguments, lambda: _answers(store.endpoint), folder=folder, name="s3proxy", seconds=60):
        yield store


def _jar() -> Path:
    def make(folder: Path) -> None:
        (jar,) = jars.fetch(JAR, folder)
        jar.rename(folder / "s3proxy.jar")

    return jars.cached(f"s3proxy-{VERSION}", make) / "s3proxy.jar"


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=2):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True  # it refuses the unsigned request: it is up
    except OSError:
        return False
