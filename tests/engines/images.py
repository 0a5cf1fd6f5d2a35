"""The repository's images, built by buildah from the Dockerfile anyone builds, once for each state of their sources.

    python -m tests.engines.images [task|airflow]   # builds, and prints the name

No image registry is needed: bases stand in for the public ones (`build.PYTHON`, and `airflow_base`). Packages come from
where this machine's package clients get theirs: their files and certificates are there while building and in no image.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests.engines.kubernetes import build

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marketdata" / "images"

TIMESTAMP = 1_580_601_600
"""Of every file and of the images themselves, in seconds: the same sources give the same digest."""

_ALWAYS = ("Dockerfile", ".dockerignore", "include", "pyproject.toml", "README.md", "requirements-tools.txt")
SOURCES = {
    "task": (*_ALWAYS, "expectations", "requirements-task.txt"),
    "airflow": (*_ALWAYS, "dags", "plugins", "requirements.txt"),
}
"""What each image is made from."""

_CERTIFICATES = Path("/etc/ssl/certs")
_CLIENTS = {"pip": "pip.conf", "uv": "uv.toml"}

_AIRFLOW_BASE = r"""
RUN useradd --uid 50000 --gid 0 --create-home --home-dir /home/airflow airflow \
    && mkdir -p /opt/airflow/dags /opt/airflow/logs && chown -R 50000:0 /opt/airflow && chmod -R g+rwX /opt/airflow \
    && python3 -m venv /home/airflow/.local && chmod g=u /etc/passwd /home/airflow \
    && /home/airflow/.local/bin/pip install --quiet --no-cache-dir idna==3.7 mpmath==1.3.0 \
    && find / -xdev -name '*.pyc' -delete \
    && printf '%s\n' '#!/bin/sh' '[ "$(id -g)" = 0 ] || exit 1' \
       'case "$1" in bash|python) exec "$@";; airflow) shift;; esac' 'exec airflow "$@"' > /entrypoint \
    && chmod 755 /entrypoint
ENV VIRTUAL_ENV=/home/airflow/.local PATH=/home/airflow/.local/bin:/usr/local/bin:/usr/bin:/bin \
    AIRFLOW_HOME=/opt/airflow AIRFLOW__CORE__LOAD_EXAMPLES=false
WORKDIR /opt/airflow
USER 50000
ENTRYPOINT ["/entrypoint"]
"""
"""What the Dockerfile relies on in the public image: user, folders, entry point, an environment with other packages."""


def task_image() -> str:
    """Name of the image that tasks' pods run.

    Raises:
        RuntimeError: it cannot be built; the message ends with what the builder said last. So do the others.
    """
    return _image("task", {"PYTHON_BASE": _python_base()})


def rebuilt_task_image() -> str:
    """Name of the same, built from its sources again; only downloaded packages are not fetched once more."""
    name = "localhost/marketdata-rebuilt:1"
    _build(name, "task", {"PYTHON_BASE": _python_base()}, "--no-cache")
    return name


def airflow_image() -> str:
    """Name of the image that Airflow runs."""
    return _image("airflow", {"PYTHON_BASE": _python_base(), "AIRFLOW_BASE": airflow_base()})


def airflow_base() -> str:
    """A stand-in for the public Airflow image, with a package in another version and one that nobody asked for."""
    recipe = f"FROM {_python_base()}\n{_AIRFLOW_BASE}"
    name = f"localhost/airflow:{_hash(recipe)}"
    with _lock():
        if _id(name) is None:
            _buildah("build", *_mounts(), f"--timestamp={TIMESTAMP}", "--tag", name, "-", input=recipe)
    return name


def archive(name: str) -> Path:
    """A Docker archive of an image; only the newest one of each repository is kept."""
    repository, _, tag = name.partition(":")
    folder = CACHE / repository.replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{tag}-{_id(name)}.tar"  # other sources may give the same image: the archive also holds the name
    with _lock():
        if not file.exists():
            for older in folder.iterdir():
                older.unlink()
            forming = file.with_suffix(".forming")
            _buildah("push", "--quiet", name, f"docker-archive:{forming}:{name}")
            forming.rename(file)
    return file


def inspect(name: str) -> dict[str, Any]:
    """An image's configuration: user, environment, entry point, labels, layers, history."""
    found: dict[str, Any] = json.loads(_buildah("inspect", "--type=image", name))["OCIv1"]
    return found


def layer_bytes(name: str) -> list[int]:
    """Bytes of an image's layers as tar files, not compressed, the base's first."""
    manifest = json.loads(json.loads(_buildah("inspect", "--type=image", name))["Manifest"])
    return [int(layer["size"]) for layer in manifest["layers"]]


def context(folder: Path) -> set[str]:
    """The files that a builder is sent from a folder with a `.dockerignore`."""
    recipe = "FROM scratch\nCOPY . /\n"
    with tempfile.TemporaryDirectory() as sent:
        _buildah("build", "--isolation=chroot", f"--output={sent}", "--file=-", str(folder), input=recipe)
        return {str(path.relative_to(sent)) for path in Path(sent).rglob("*") if path.is_file()}


def _image(target: str, bases: Mapping[str, str]) -> str:
    files = [line for path in _files(SOURCES[target]) for line in (path.relative_to(ROOT), path.read_bytes())]
    name = f"localhost/marketdata-{target}:{_hash(*files, *bases.values())}"
    with _lock():
        if _id(name) is None:
            _build(name, target, bases)
    return name


def _build(name: str, target: str, arguments: Mapping[str, str], *options: str) -> None:
    created = datetime.fromtimestamp(TIMESTAMP, UTC).isoformat()
    said = {"VERSION": _version(), "REVISION": _revision(), "SOURCE": "checkout", "CREATED": created, **arguments}
    words = [f"--build-arg={key}={value}" for key, value in said.items()]
    stamp = f"--timestamp={TIMESTAMP}"
    _buildah("build", *_mounts(), *words, stamp, *options, "--layers", "--target", target, "--tag", name, str(ROOT))


def _files(entries: tuple[str, ...]) -> Iterator[Path]:
    for entry in entries:
        found = sorted((ROOT / entry).rglob("*")) if (ROOT / entry).is_dir() else [ROOT / entry]
        yield from (path for path in found if path.is_file() and "__pycache__" not in path.parts)


def _hash(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _python_base() -> str:
    """The base by its digest: a build of several stages would see a tag that moves meanwhile as two bases."""
    return _buildah("pull", "--quiet", f"docker-archive:{build.images()[-1]}").strip()


def _mounts() -> list[str]:
    """What lets the package clients in a build reach what those of this machine reach."""
    options = ["--isolation=chroot", f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro"]
    for client, file in _CLIENTS.items():
        places = (Path("/etc") / file, Path("/etc") / client / file, Path.home() / ".config" / client / file)
        options += [f"--secret=id={client},src={place}" for place in places if place.is_file()][-1:]
    return options


def _version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def _revision() -> str:
    """The commit, with `-dirty` where the sources are not it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _id(name: str) -> str | None:
    found = subprocess.run(
        ["buildah", "images", "--quiet", "--no-trunc", name], capture_output=True, text=True, check=False
    )
    return found.stdout.strip().removeprefix("sha256:") or None if found.returncode == 0 else None


def _lock() -> FileLock:
    CACHE.mkdir(parents=True, exist_ok=True)
    return FileLock(CACHE / "lock")


def _buildah(*arguments: str, input: str | None = None) -> str:  # noqa: A002 - as subprocess names it
    if shutil.which("buildah") is None:
        raise RuntimeError("buildah is not installed; on Debian: apt-get install buildah")
    done = subprocess.run(["buildah", *arguments], input=input, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"buildah {arguments[0]} failed: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    print({"task": task_image, "airflow": airflow_image}[(sys.argv[1:] or ["task"])[0]]())
