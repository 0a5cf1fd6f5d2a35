"""Command-line tools that exist as Go modules, built once into this user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from filelock import FileLock

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marketdata" / "go"
TOOLS = {
    "helm": "helm.sh/helm/v3/cmd/helm@v3.19.4",
    "kube-score": "github.com/zegl/kube-score/cmd/kube-score@v1.20.0",
    "gitleaks": "github.com/zricethezav/gitleaks/v8@v8.28.0",
}


def tool(name: str) -> Path:
    """The executable of that name, built the first time (one to three minutes); two who ask at once build it once.

    Raises:
        RuntimeError: there is no Go, or the build failed.
    """
    folder = CACHE / TOOLS[name].replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    executable = folder / name
    with FileLock(folder / "lock"):
        if not executable.exists():
            environment = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
            command = [go(), "install", "-trimpath", "-ldflags=-s -w", TOOLS[name]]
            built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if built.returncode:
                raise RuntimeError(f"{name} could not be built: {built.stderr[-2000:]}")
    return executable


def go() -> str:
    """The Go compiler.

    Raises:
        RuntimeError: there is none.
    """
    if found := shutil.which("go"):
        return found
    raise RuntimeError("no Go compiler on PATH; the suites on Kubernetes and the scans need Go 1.24 or newer")
