"""The operator as Airflow calls it, on a real cluster, in the name of the launcher and of nobody else."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk import DAG

from marketdata import settings
from marketdata.orchestration import policy
from marketdata.orchestration.pod import MarketdataPodOperator
from tests.engines.kubernetes import build
from tests.engines.kubernetes.cluster import Cluster
from tests.waiting import until

NAMESPACE, ACCOUNT = "airflow", "airflow-pod-launcher"
APP = "operator-test"
PATIENCE_SECONDS = 60.0

COMMAND = """#!/usr/bin/env python3
# `marketdata exec <code>`: a command that does what a test tells it, and hands over `result`.
import json, os, pathlib, signal, sys, time
def wait_for_the_test():
    while not os.path.exists("/tmp/go"):
        time.sleep(0.05)
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
attempt, result = int(os.environ["MARKETDATA_TRY_NUMBER"]), None
try:
    exec(sys.argv[2])
finally:
    if result is not None:
        pathlib.Path(os.environ["MARKETDATA_RESULT"]).write_text(json.dumps(result))
"""


@pytest.fixture(scope="module")
def launcher(cluster: Cluster, platform: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kubeconfig of Airflow's own account, which may do no more than its Role says.

    Of each module: one of them installs the chart anew, and the account's old tokens are void.
    """
    config = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--minify", "--flatten"))
    token = cluster.kubectl("create", "token", ACCOUNT, f"--namespace={NAMESPACE}", "--duration=4h").strip()
    config["users"][0]["user"] = {"token": token}
    file = tmp_path_factory.mktemp("launcher") / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="session")
def command_image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image whose `marketdata` is `COMMAND`."""
    folder = tmp_path_factory.mktemp("image")
    program = folder / "marketdata"
    program.write_text(COMMAND)
    name, archive = f"localhost/{APP}:dev", folder / "image.tar"
    _buildah("pull", "--quiet", f"docker-archive:{build.images()[-1]}")
    container = _buildah("from", build.PYTHON)
    _buildah("copy", "--quiet", "--chmod=755", container, str(program), "/usr/local/bin/marketdata")
    _buildah("commit", "--quiet", "--rm", container, name)
    _buildah("push", "--quiet", name, f"docker-archive:{archive}:{name}")
    cluster.load_image(archive)
    archive.unlink()
    return name


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Try:
    """One try of one task, running in a thread.

    Args:
        instance: what Airflow's task instance has; its `xcom_push` is the way home.
        said: more arguments of the operator.
    """

    def __init__(self, cluster: Cluster, words: list[str], instance: dict[str, Any], **said: Any) -> None:
        self._cluster = cluster
        self.xcom: dict[str, Any] = {}
        self.result: Any = None
        self.error: BaseException | None = None
        with DAG("operator-test", schedule=None) as dag:
            self.task = MarketdataPodOperator(**{
                "task_id": "t", "command": ["exec", *words], "app": APP, "tier": "critical", **said,
            })  # fmt: skip
        self.task.allow_nested_operators = True
        self.run_id = instance["run_id"]
        defaults = {"task_id": "t", "map_index": -1, "try_number": 1, "xcom_push": self.xcom.__setitem__}
        instance = {"dag_id": dag.dag_id, **defaults, **instance}
        self.state = "failed"
        """What Airflow says of the task when it is asked."""
        self._context: Any = {
            "ti": SimpleNamespace(
                **instance,
                get_task_states=lambda run_ids, task_ids, **_: {run_ids[0]: {task_ids[0]: self.state}},
            ),
            "run_id": self.run_id, "dag": dag, "task": self.task,
        }  # fmt: skip
        self._lines: list[str] = []
        self.task._cached_logger = logger = logging.Logger(f"{self.run_id} {instance['try_number']}")
        handler = logging.Handler()
        handler.emit = lambda record: self._lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
        logger.addHandler(handler)
        self._thread = threading.Thread(target=self._execute, daemon=True)
        self._thread.start()

    def _execute(self) -> None:
        try:
            self.result = self.task.execute(self._context)
        except BaseException as error:
            self.error = error

    @property
    def log(self) -> str:
        return "\n".join(self._lines)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def ended(self, seconds: float = PATIENCE_SECONDS) -> Try:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"still running after {seconds} s:\n{self.log}"
        return self

    def succeeded(self) -> Any:
        self.ended()
        assert self.error is None, f"{self.error}\n{self.log}"
        return self.result

    def failed(self, seconds: float = PATIENCE_SECONDS) -> BaseException:
        """The error of a try that has to fail."""
        self.ended(seconds)
        assert self.error is not None, self.log
        return self.error

    def said(self, text: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the log holds this text."""
        until(f"the log says {text!r}", lambda: text in self.log, seconds, but=lambda: f"{self.error}\n{self.log}")

    def pods(self) -> list[dict[str, Any]]:
        """The pods of this task of this run that are there."""
        return pods_of(self._cluster, self.run_id)

    def pod_name(self) -> str:
        """Name of the pod, as soon as it is there."""
        found: list[dict[str, Any]] = until("the pod is there", self.pods)
        return str(found[-1]["metadata"]["name"])

    def go(self) -> None:
        """Let a command that waits for the test go on, or do so as soon as it has begun."""
        words = ("exec", self.pod_name(), f"--namespace={policy.NAMESPACE}", "--", "python3", "-c")
        refusals = [""]

        def told() -> bool:
            try:
                self._cluster.kubectl(*words, "open('/tmp/go', 'w')")
            except RuntimeError as refusal:  # its container is not there yet
                refusals.append(str(refusal))
                return False
            return True

        until("it is told to go on", told, but=lambda: refusals[-1])


def pods_of(cluster: Cluster, run_id: str) -> list[dict[str, Any]]:
    selector = f"--selector=app={APP},run_id={run_id}"
    found: list[dict[str, Any]] = cluster.get("pods", f"--namespace={policy.NAMESPACE}", selector)["items"]
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def scheduled(cluster: Cluster, stem: str) -> set[str]:
    """The pods there ever were whose name begins like this, gone or not, by their uid."""
    events = cluster.get("events", f"--namespace={policy.NAMESPACE}", "--field-selector=reason=Scheduled")["items"]
    objects = [event["involvedObject"] for event in events]
    return {each["uid"] for each in objects if each["name"].startswith(f"{stem}-")}


class Launch:
    """Starts tries of tasks on the cluster."""

    def __init__(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, launcher: Path, image: str) -> None:
        self.cluster = cluster
        self._monkeypatch = monkeypatch
        self._environ("MARKETDATA_IMAGE", image)
        self.connect(launcher)

    def connect(self, kubeconfig: Path) -> None:
        """Use this kubeconfig from now on."""
        self._environ(
            "AIRFLOW_CONN_KUBERNETES_DEFAULT",
            json.dumps({"conn_type": "kubernetes", "extra": {"kube_config_path": str(kubeconfig)}}),
        )

    def image(self, name: str) -> None:
        self._environ("MARKETDATA_IMAGE", name)

    def __call__(self, code: str, *, run_id: str = "", attempt: int = 1, **said: Any) -> Try:
        return self._try(code, {"run_id": run_id or f"r{time.time_ns()}", "try_number": attempt}, **said)

    def unheard(self, code: str) -> Try:
        """A try that lives on although its supervisor is dead: it fails as soon as it has something to tell."""

        def push(*_: Any) -> None:
            raise BrokenPipeError

        ran = self._try(code, {"run_id": f"r{time.time_ns()}", "xcom_push": push})
        assert isinstance(ran.failed(), BrokenPipeError)
        return ran

    def created(self, ran: Try) -> int:
        """How many pods there ever were of a task of a run, gone or not."""
        assert ran.task.name is not None
        return len(scheduled(self.cluster, ran.task.name))

    def _try(self, code: str, instance: dict[str, Any], **said: Any) -> Try:
        settings.load.cache_clear()
        return Try(self.cluster, [code], instance, **said)

    def _environ(self, name: str, value: str) -> None:
        self._monkeypatch.setenv(name, value)


@pytest.fixture
def launch(
    cluster: Cluster, launcher: Path, command_image: str, settings_for: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Launch]:
    monkeypatch.setenv("LAKE_URI", "s3://lake/tests")
    monkeypatch.setenv("ENVIRONMENT", "production")
    yield Launch(cluster, monkeypatch, launcher, command_image)
    settings.load.cache_clear()
    words = ("delete", "pods", f"--namespace={policy.NAMESPACE}", f"--selector=app={APP}", "--grace-period=1")
    cluster.kubectl(*words, "--wait=false")


class Relay:
    """A way to the API server that can be interrupted: what a task sees when the server is away."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        host, _, port = cluster["server"].removeprefix("https://").partition(":")
        self._target = (host, int(port or 443))
        self._open: list[socket.socket] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.kubeconfig = folder / "relayed"
        cluster["server"], cluster["tls-server-name"] = f"https://127.0.0.1:{self._port}", host
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self._accepting()

    def _accepting(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Every connection is broken, and none is accepted, as by a server that was killed."""
        for end in (self._listener, *self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self._port))
        yield
        self._listener.listen()
        self._accepting()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Connections stay and nothing comes through, as from a server that hangs."""
        self._flowing.clear()
        yield
        self._flowing.set()

    def close(self) -> None:
        self._listener.close()
        self._flowing.set()


@pytest.fixture
def relay(launcher: Path, tmp_path: Path) -> Iterator[Relay]:
    made = Relay(launcher, tmp_path)
    yield made
    made.close()
