"""A real one-node Kubernetes that belongs to the process that started it.

Everything runs in PID, mount and network namespaces of its own, whose first process is `node.py`. So clusters run side
by side, none takes a port of this machine, and to stop one is to end one process: the kernel then ends all others,
unmounts what was mounted and removes the network. It does so as well when the process that started the cluster is
killed; what stays are files and empty cgroups, and the next start removes them. A cluster of daemons beside this
machine's own would need records of pids, mounts, bridges and addresses, and a clean-up that trusts them.

    python -m tests.engines.kubernetes.cluster      # a cluster that runs until Ctrl-C, for `KUBECONFIG`

It is a real one but for three things. Nobody serves DNS: pods are told the usual address, and no name is resolved. The
network enforces no NetworkPolicy. And pods reach this machine, at the cluster's `host`, but nothing beyond it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from tests.engines.kubernetes import build
from tests.engines.kubernetes.pki import Authority
from tests.engines.lifetime import ending_with_us

ROOT = Path(__file__).resolve().parents[3]
STATES = Path("/var/tmp/marketdata-kubernetes")  # noqa: S108 - on a disk, because overlay file systems need one
NODE = "node"
SERVICES, KUBERNETES_SERVICE, DNS = "10.96.0.0/16", "10.96.0.1", "10.96.0.10"
PODS = "10.244.0.0/24"
SIDE_BY_SIDE = range(1, 9)
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cluster:
    """A cluster tests may do anything to.

    Args:
        kubeconfig: an administrator's.
        host: address at which pods reach services of this machine.
        own: the node, if it runs for us and may be broken; None: the cluster is somebody else's.
    """

    kubeconfig: Path
    host: str
    own: Node | None = None

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002 - as subprocess names it
        """What kubectl prints.

        Raises:
            RuntimeError: kubectl failed; the message is what it said.
        """
        installed = shutil.which("kubectl") if self.own is None else None
        done = subprocess.run(
            [installed or str(build.binaries() / "kubectl"), "--kubeconfig", str(self.kubeconfig), *arguments],
            input=input, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """What `kubectl get` gives, as objects."""
        return json.loads(self.kubectl("get", *arguments, "--output=json"))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or change objects."""
        self.kubectl("apply", "--filename=-", input=yaml.safe_dump_all(objects))

    def refusal(self, namespace: str, pod: Mapping[str, Any]) -> str:
        """What the API server would say against this pod; empty where it would create it."""
        try:
            offer = ("create", "--dry-run=server", f"--namespace={namespace}", "--filename=-")
            self.kubectl(*offer, input=json.dumps(pod))
        except RuntimeError as error:
            return str(error)
        return ""

    def events(self, namespace: str, name: str) -> list[dict[str, Any]]:
        """Events about one object, oldest first."""
        selector = f"--field-selector=involvedObject.name={name}"
        found: list[dict[str, Any]] = self.get("events", f"--namespace={namespace}", selector)["items"]
        return sorted(found, key=lambda event: str(event["metadata"]["creationTimestamp"]))

    def evict(self, namespace: str, pod: str) -> None:
        """Evict a pod as a drain does: through the Eviction API, which disruption budgets may refuse."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "--filename=-", input=json.dumps(eviction))

    def load_image(self, archive: Path) -> None:
        """Put the images of a Docker archive on the node."""
        _run([*_loader(self.kubeconfig), str(archive)])

    @contextmanager
    def api_down(self) -> Iterator[None]:
        """The API server is killed, and nobody answers at its address, until the block ends; then it is back.

        Raises:
            RuntimeError: the cluster is not ours to break.
        """
        if self.own is None:
            raise RuntimeError("this cluster is somebody else's; its API server is left alone")
        self.own.order("kill", "kube-apiserver")
        try:
            yield
        finally:
            self.own.order("start", "kube-apiserver")
            self.own.until("the API server is back", lambda: self.kubectl("get", "--raw=/readyz") == "ok")


def why_not() -> str | None:
    """What keeps this machine from having a cluster; None: nothing."""
    if os.environ.get("KUBECONFIG"):
        return None
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("go"):
        return "a cluster needs root on Linux and Go, or KUBECONFIG to name one"
    if missing := [program for program in build.INSTALLED if not shutil.which(program)]:
        return f"not installed: {', '.join(missing)}; python -m tests.engines.kubernetes.build does it on Debian"
    return None


@contextmanager
def cluster() -> Iterator[Cluster]:
    """The cluster of `KUBECONFIG`, or one that lives as long as the block does (root, and what `build` makes).

    Raises:
        RuntimeError: it could not be started; the message ends with the last lines of its logs.
    """
    if configured := os.environ.get("KUBECONFIG"):
        kubeconfig = Path(configured)
        yield Cluster(kubeconfig, os.environ.get("MARKETDATA_TEST_HOST") or _address_towards(kubeconfig))
        return
    images = build.images()
    with slot() as (number, lock):
        node = Node(number)
        with node.running(lock):
            running = Cluster(node.kubeconfig("admin"), node.host, node)
            node.until("containerd listens", (node.state / "containerd.sock").exists)
            with ThreadPoolExecutor(1) as pool:
                loaded = [pool.submit(running.load_image, archive) for archive in images]
                node.until("the API server is ready", lambda: running.kubectl("get", "--raw=/readyz") == "ok")
                for name in ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"):
                    node.order("start", name)
                for image in loaded:
                    image.result()
            node.until("the node is ready", lambda: _is_ready(running))
            yield running


def _is_ready(cluster: Cluster) -> bool:
    status = {each["type"]: each["status"] for each in cluster.get("node", NODE)["status"]["conditions"]}
    cluster.kubectl("get", "serviceaccount", "default", "--namespace=default")
    return bool(status["Ready"] == "True")


class Node:
    """Machine and control plane in one: its files, its programs, and orders to its first process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.host, self.address = f"10.199.{number}.1", f"10.199.{number}.2"
        self.link = f"marketdata{number}"
        self.state = STATES / str(number)
        self.cgroup = f"marketdata{number}"
        self._orders: IO[str]
        self._answers: IO[str]

    def kubeconfig(self, name: str) -> Path:
        return self.state / f"{name}.kubeconfig"

    def order(self, *words: str) -> None:
        """Have the first process do something, and wait until it is done."""
        self._orders.write(" ".join(words) + "\n")
        self._orders.flush()
        self._heard("done")

    def until(self, what: str, condition: Callable[[], bool], seconds: float = 90) -> None:
        """Wait for a condition; one that raises is not met yet."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(RuntimeError):
                if condition():
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {seconds:.0f} s: {what}; {self._last_words()}")
            time.sleep(0.1)

    @contextmanager
    def running(self, lock: int) -> Iterator[None]:
        """The node lives until the block ends.

        Args:
            lock: file descriptor that stays open as long as anything of the node lives.
        """
        self._write_files()
        # Its input ends with this process, but a fork of this process would hold it open: so it is killed as well.
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--"]
        python = [sys.executable, "-I", "-S", str(Path(__file__).with_name("node.py")), str(self.state / "plan.json")]
        process = subprocess.Popen(
            ending_with_us(command + python), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.state,
            stderr=(self.state / "logs" / "node.log").open("wb"), start_new_session=True, pass_fds=[lock],
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout
        try:
            self._heard("born")
            self._connect(psutil.Process(process.pid).children()[0].pid)
            self.order("prepare")
            for name in ("etcd", "containerd", "kube-apiserver"):
                self.order("start", name)
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):
                self._orders.close()
            process.wait()
            self._answers.close()
            self.clear()

    def _heard(self, word: str) -> None:
        if self._answers.readline() != f"{word}\n":
            raise RuntimeError(f"the node's first process ended; {self._last_words()}")

    def _connect(self, pid: int) -> None:
        """A cable between this machine and the network namespace of a process."""
        _run(["ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(pid)])
        _run(["ip", "address", "add", f"{self.host}/24", "dev", self.link])
        _run(["ip", "link", "set", self.link, "up"])

    def clear(self) -> None:
        """Remove what the kernel does not: files, and empty cgroups; and the cable, should its end not be gone yet."""
        subprocess.run(["ip", "link", "delete", self.link], capture_output=True, check=False)
        self.until("the last cluster's processes are gone", lambda: _remove_cgroups(self.cgroup), 60)
        shutil.rmtree(self.state, ignore_errors=True)

    def _last_words(self) -> str:
        logs = {log.name: log.read_text(errors="replace") for log in (self.state / "logs").iterdir()}
        return "\n".join(f"{name}: {' | '.join(text.splitlines()[-2:])}" for name, text in sorted(logs.items()))

    def _write_files(self) -> None:
        for folder in ("pki", "logs", "cni", *self._private()):
            (self.state / folder).mkdir(parents=True)
        for group in _cgroup_roots():
            (group / self.cgroup).mkdir()
        authority = Authority(self.state / "pki")
        service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        authority.sign("kube-apiserver", "kube-apiserver", hosts=[*service, self.address, KUBERNETES_SERVICE])
        authority.sign("admin", "admin", "system:masters")
        authority.sign("kubelet", f"system:node:{NODE}", "system:nodes", [NODE, self.address])
        for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
            authority.sign(name, f"system:{name}")
        authority.sign("service-accounts", "service-accounts")
        for name in ("admin", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy"):
            authority.kubeconfig(name, f"https://{self.address}:6443", self.kubeconfig(name))
        (self.state / "containerd.toml").write_text(self._containerd())
        (self.state / "cni" / "10-bridge.conflist").write_text(json.dumps(_cni()))
        (self.state / "kubelet.yaml").write_text(yaml.safe_dump(self._kubelet()))
        plan = {"prepare": self._prepare(), "programs": self._programs(), "logs": str(self.state / "logs")}
        (self.state / "plan.json").write_text(json.dumps(plan))

    def _private(self) -> dict[str, str]:
        """Folders of the machine that the node has for itself: folder of the state → where it appears."""
        return {
            "run": "/run",
            "log": "/var/log",
            "lib-cni": "/var/lib/cni",
            "lib-kubelet": "/var/lib/kubelet",
        }

    def _prepare(self) -> list[list[str]]:
        mounts = []
        for folder, place in self._private().items():
            mounts += [["mkdir", "-p", place], ["mount", "--bind", str(self.state / folder), place]]
        return [
            ["mount", "--make-rshared", "/"],
            *mounts,
            ["ip", "link", "set", "lo", "up"],
            ["ip", "address", "add", f"{self.address}/24", "dev", "eth0"],
            ["ip", "link", "set", "eth0", "up"],
            ["sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1"],
        ]

    def _programs(self) -> dict[str, list[str]]:
        binaries, pki = build.binaries(), self.state / "pki"

        def flags(**values: object) -> list[str]:
            return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]

        def kubeconfigs(name: str) -> list[str]:
            path = self.kubeconfig(name)
            return flags(kubeconfig=path, authentication_kubeconfig=path, authorization_kubeconfig=path)

        return {
            "etcd": ["etcd", *flags(data_dir=self.state / "etcd", logger="zap"), "--unsafe-no-fsync"],
            "containerd": ["containerd", "--config", str(self.state / "containerd.toml")],
            "kube-apiserver": [
                str(binaries / "kube-apiserver"),
                *flags(
                    etcd_servers="http://127.0.0.1:2379",
                    advertise_address=self.address,
                    tls_cert_file=pki / "kube-apiserver.crt",
                    tls_private_key_file=pki / "kube-apiserver.key",
                    client_ca_file=pki / "ca.crt",
                    kubelet_client_certificate=pki / "admin.crt",
                    kubelet_client_key=pki / "admin.key",
                    kubelet_certificate_authority=pki / "ca.crt",
                    kubelet_preferred_address_types="InternalIP",
                    service_account_issuer="https://kubernetes.default.svc",
                    service_account_key_file=pki / "service-accounts.crt",
                    service_account_signing_key_file=pki / "service-accounts.key",
                    service_cluster_ip_range=SERVICES,
                    authorization_mode="Node,RBAC",
                    enable_admission_plugins="NodeRestriction",
                    allow_privileged="true",
                    audit_policy_file=ROOT / "deploy" / "audit-policy.yaml",
                    audit_log_path=self.state / "audit.log",
                ),
            ],
            "kube-controller-manager": [
                str(binaries / "kube-controller-manager"),
                *kubeconfigs("kube-controller-manager"),
                *flags(
                    service_account_private_key_file=pki / "service-accounts.key",
                    root_ca_file=pki / "ca.crt",
                    use_service_account_credentials="true",
                    leader_elect="false",
                ),
            ],
            "kube-scheduler": [
                str(binaries / "kube-scheduler"), *kubeconfigs("kube-scheduler"), *flags(leader_elect="false"),
            ],
            "kubelet": [
                str(binaries / "kubelet"),
                *flags(
                    config=self.state / "kubelet.yaml",
                    kubeconfig=self.kubeconfig("kubelet"),
                    hostname_override=NODE,
                    node_ip=self.address,
                ),
            ],
            "kube-proxy": [
                str(binaries / "kube-proxy"),
                *flags(
                    kubeconfig=self.kubeconfig("kube-proxy"),
                    hostname_override=NODE,
                    proxy_mode="nftables",
                    cluster_cidr=PODS,
                    conntrack_max_per_core=0,
                    oom_score_adj=0,
                ),
            ],
        }  # fmt: skip

    def _kubelet(self) -> dict[str, Any]:
        pki = self.state / "pki"
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,  # a lower one needs a right that containers of a CI do not have
            "containerRuntimeEndpoint": f"unix://{self.state}/containerd.sock",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pki / "kubelet.crt"),
            "tlsPrivateKeyFile": str(pki / "kubelet.key"),
            "clusterDNS": [DNS],
            "resolvConf": "",
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "volumeStatsAggPeriod": "5s",  # a volume that is too full is seen soon
        }

    def _containerd(self) -> str:
        return f"""\
version = 2
root = "{self.state}/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{self.state}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{build.PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self.state}/cni"
"""


def _cni() -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    port_map = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, port_map]}


@contextmanager
def slot() -> Iterator[tuple[int, int]]:
    """The first free number, and the lock on it; whoever inherits the lock's descriptor keeps the number taken.

    What killed clusters left under other numbers is removed on the way.
    """
    STATES.mkdir(parents=True, exist_ok=True)
    mine: tuple[int, int] | None = None
    for number in SIDE_BY_SIDE:
        lock = os.open(STATES / f"{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        Node(number).clear()
        if mine is None:
            mine = number, lock
        else:
            os.close(lock)
    if mine is None:
        raise RuntimeError(f"{len(SIDE_BY_SIDE)} clusters run on this machine; none was started")
    try:
        yield mine
    finally:
        os.close(mine[1])


def _cgroup_roots() -> list[Path]:
    """The root of each hierarchy: one where all controllers share it, else one for each."""
    if (CGROUPS / "cgroup.procs").exists():
        return [CGROUPS]
    return [root for root in CGROUPS.iterdir() if root.is_dir() and not root.is_symlink()]


def _remove_cgroups(name: str) -> bool:
    """Whether the cgroups of that name are gone; those that hold a process stay."""
    for root in _cgroup_roots():
        for folder, _, _ in os.walk(root / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
    return not any((root / name).exists() for root in _cgroup_roots())


def _loader(kubeconfig: Path) -> Sequence[str]:
    """The command that loads a Docker archive, whose path is its last argument."""
    listening = kubeconfig.with_name("containerd.sock")
    if listening.exists():
        return ["ctr", "--address", str(listening), "--namespace", "k8s.io", "images", "import"]
    context = yaml.safe_load(kubeconfig.read_text())["current-context"]
    if context.startswith("kind-"):
        return ["kind", "load", "image-archive", "--name", context.removeprefix("kind-")]
    if context == "minikube":
        return ["minikube", "image", "load"]
    raise RuntimeError(f"nobody here knows how images get onto the nodes of {context}: it is no kind, no minikube")


def _address_towards(kubeconfig: Path) -> str:
    """This machine's address in the network of the cluster's node."""
    addresses = Cluster(kubeconfig, "").get("nodes")["items"][0]["status"]["addresses"]
    node = next(address["address"] for address in addresses if address["type"] == "InternalIP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((node, 9))  # sends nothing: it only chooses the address to send from
        return str(probe.getsockname()[0])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with cluster() as running:
        print(f"export KUBECONFIG={running.kubeconfig}", flush=True)
        signal.pause()
