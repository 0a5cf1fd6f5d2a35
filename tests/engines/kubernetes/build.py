"""What a cluster is made of, each made once and kept in this user's cache: programs and images.

    python -m tests.engines.kubernetes.build        # all of it, Debian packages included

Kubernetes itself is built from its Go module; etcd, containerd, runc and the network plugins are Debian's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from tests.engines.go import go

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marketdata" / "kubernetes"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
PACKAGES = (
    "etcd-server", "containerd", "runc", "containernetworking-plugins", "iptables", "nftables", "conntrack", "ethtool",
    "socat", "iproute2", "procps", "gcc", "libc6-dev", "buildah", "debootstrap",
)  # fmt: skip
INSTALLED = ("etcd", "containerd", "runc", "buildah", "debootstrap", "unshare", "ip", "gcc")
"""What of the packages is called by name."""

PAUSE = "localhost/pause:1"
PYTHON = "localhost/python:3.11-slim-bookworm"
"""Stands in for the public image of that name."""


def version() -> str:
    """The version of Kubernetes."""
    found = re.search(r"^require k8s.io/kubernetes (v[0-9.]+)$", (HERE / "go.mod").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def packages() -> None:
    """Install the Debian packages that are not there."""
    status = subprocess.run(["dpkg-query", "--show", *PACKAGES], capture_output=True, check=False)
    if status.returncode:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        options = ["-o", "DPkg::Lock::Timeout=300", "-qq", "--yes", "--no-install-recommends"]
        subprocess.run(["apt-get", "install", *options, *PACKAGES], check=True, env=environment)


def binaries() -> Path:
    """Folder of the programs; the first time they are compiled (about 20 minutes of one core).

    Raises:
        RuntimeError: there is no Go, or they could not be built.
    """

    def make(folder: Path) -> None:
        major, minor, _ = version().removeprefix("v").split(".")
        values = {"gitVersion": version(), "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        named = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items())
        programs = [f"k8s.io/kubernetes/cmd/{program}" for program in PROGRAMS]
        _run([go(), "build", "-buildvcs=false", f"-ldflags=-s -w {named}", "-o", f"{folder}/", *programs])
        _run(["gcc", "-static", "-Os", "-o", str(folder / "pause"), "pause.c"])

    return _once(f"bin-{version()}", make)


def images() -> list[Path]:
    """Docker archives of what holds a pod together, and of the stand-in for the public Python image."""
    return [_once("pause-1", _make_pause) / "pause.tar", _once("python-1", _make_python) / "python.tar"]


def _make_pause(folder: Path) -> None:
    config = ["--entrypoint", '["/pause"]', "--user", "65535"]
    _archive(PAUSE, folder / "pause.tar", binaries() / "pause", "/pause", *config)


def _make_python(folder: Path) -> None:
    """Debian's own Python in as much of Debian as the public slim image has, and as free to be installed into."""
    root = folder / "root"
    include = "--include=ca-certificates,python-is-python3,python3,python3-pip,python3-venv"
    _run(["debootstrap", "--variant=minbase", include, "bookworm", str(root)])
    for left_out in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(root / left_out)
    for compiled in list(root.rglob("__pycache__")):
        shutil.rmtree(compiled)
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
    _archive(PYTHON, folder / "python.tar", root, "/", "--cmd", "python3")
    shutil.rmtree(root)


def _archive(name: str, archive: Path, source: Path, target: str, *config: str) -> None:
    """Make an image of files alone, in buildah's store and as an archive."""
    container = _run(["buildah", "from", "scratch"])
    _run(["buildah", "add", "--quiet", container, str(source), target])
    _run(["buildah", "config", *config, container])
    _run(["buildah", "commit", "--quiet", "--rm", container, name])
    _run(["buildah", "push", "--quiet", name, f"docker-archive:{archive}:{name}"])


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, whole or not at all; two who ask at once make it once."""
    folder = CACHE / name
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with FileLock(CACHE / f"{name}.lock"):
            if not folder.exists():
                forming = folder.with_name(f"{name}.forming")
                shutil.rmtree(forming, ignore_errors=True)
                forming.mkdir()
                make(forming)
                forming.rename(folder)
    return folder


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} … failed: {done.stderr[-2000:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    packages()
    print(binaries())
    print(*images(), sep="\n")
