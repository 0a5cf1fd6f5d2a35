"""The task image: its size, whether the same sources give it again, and how soon a task in it says its first word."""

from __future__ import annotations

import json
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.engines import images
from tests.engines.kubernetes import build
from tests.engines.kubernetes.cluster import Cluster, cluster
from tests.engines.kubernetes.objects import hardened
from tests.waiting import until

NAMESPACE = "bench-image"
REPEATS = 5
VALIDATE = ["--dataset", "commodity_prices", "--run-id", "r", "--batch", "file:///tmp/none"]
FIRST_LINES = {
    "empty_python": (build.PYTHON, ["python3", "-c", "print()"]),
    "help": ("", ["marketdata", "--help"]),
    "validate": ("", ["marketdata", "validate", *VALIDATE]),
}
"""Image (empty: the task image) and command; `validate` says first that no run record is kept without PostgreSQL."""

_SIZES = """
import importlib.metadata, json, pathlib
def size(file):
    path = pathlib.Path(file.locate())
    compiled = path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc"
    return sum(each.stat().st_size for each in {path, compiled if path.suffix == ".py" else path} if each.is_file())
print(json.dumps({d.metadata["Name"]: sum(map(size, d.files or [])) for d in importlib.metadata.distributions()}))
"""


def run() -> dict[str, Any]:
    """Megabytes of the image, of what is added to its base and of the largest packages; a rebuild; medians of seconds.

    The seconds are those from a container's start to the first line of its command, beside an empty Python's.
    """
    image = images.task_image()
    with cluster() as running:
        running.load_image(images.archive(image))
        running.kubectl("create", "namespace", NAMESPACE)
        try:
            account = ("get", "serviceaccounts", f"--namespace={NAMESPACE}")
            until("the namespace has its account", lambda: "default" in running.kubectl(*account))
            # In turn, so that whatever else the machine does meets them alike; the first round warms the page cache.
            rounds = [
                {name: _first_line(running, f"{name}-{number}", *of, image) for name, of in FIRST_LINES.items()}
                for number in range(REPEATS + 1)
            ][1:]
            sizes = json.loads(_logs(running, "sizes", image, ["python3", "-c", _SIZES]))
        finally:
            running.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    begun = time.perf_counter()
    again = images.inspect(images.rebuilt_task_image())["rootfs"]
    rebuild = {"seconds": round(time.perf_counter() - begun), "same": again == images.inspect(image)["rootfs"]}
    layers, compressed = images.layer_bytes(image), _compressed(image)
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:12]
    return {
        "megabytes": {"image": _mb(layers), "added": _mb(layers[1:]), "package": _mb(layers[-1:])},
        "compressed_megabytes": {"image": _mb(compressed), "added": _mb(compressed[1:])},
        "rebuild": rebuild,
        "largest": {name: _mb([size]) for name, size in largest},
        "seconds_to_first_line": {
            name: round(statistics.median(taken[name] for taken in rounds), 2) for name in FIRST_LINES
        },
    }


def _first_line(running: Cluster, name: str, image: str, command: Sequence[str], task_image: str) -> float:
    """Seconds between the first words of a container's first process and those of its command, by the node's clock."""
    words = ["sh", "-c", 'echo started; exec "$@"', "sh", *command]
    said = _logs(running, name.replace("_", "-"), image or task_image, words, "--timestamps").splitlines()
    started, first = (datetime.fromisoformat(line.split()[0][:26].rstrip("Z") + "+00:00") for line in said[:2])
    return (first - started).total_seconds()


def _logs(running: Cluster, name: str, image: str, command: list[str], *options: str) -> str:
    pod = hardened(name, command, image=image)
    where = f"--namespace={NAMESPACE}"
    running.kubectl("create", where, "--filename=-", input=json.dumps(pod))
    ended = ("Succeeded", "Failed")
    until(f"pod {name} has ended", lambda: running.get("pod", name, where)["status"]["phase"] in ended, 120)
    return running.kubectl("logs", name, where, *options)


def _compressed(image: str) -> list[int]:
    """Bytes of the image's layers as a registry keeps them."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "image.tar"
        subprocess.run(["buildah", "push", "--quiet", image, f"oci-archive:{archive}"], check=True, capture_output=True)
        with tarfile.open(archive) as tar:
            blob = _json(tar, "index.json")["manifests"][0]["digest"].partition(":")[2]
            return [int(layer["size"]) for layer in _json(tar, f"blobs/sha256/{blob}")["layers"]]


def _json(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(name)
    assert file is not None
    return json.load(file)


def _mb(sizes: Sequence[int]) -> float:
    return round(sum(sizes) / 1e6, 1)


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
