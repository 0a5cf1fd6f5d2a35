"""A network of its own for a few servers, each in a namespace that can be cut off from all the others.

    host ── veth ── [ switch namespace: bridge ] ──┬── [ node 1 ]
                                                   ├── [ node 2 ]
                                                   └── [ node 3 ]

The bridge lies in a namespace too, so that no firewall of the machine (Docker's, Kubernetes') has a say in what passes
between the nodes. Networks are numbered; the number is held by a lock that ends with its holder, however that ends, and
whoever next wants a network clears away what the dead left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

LOCKS = Path("/run/marketdata-networks")
NUMBERS = range(64)
NAMESPACES = Path("/run/netns")
NEEDS = "needs root on Linux, and the Debian packages iproute2 and nftables: each broker gets a network namespace"


def available() -> bool:
    """Whether this process may make namespaces."""
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nft", "nsenter"))):
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Network:
    """Nodes 1 to `nodes`, reachable from this machine and from one another.

    Addresses are of 198.18.0.0/15, which is set aside for measurements and routed nowhere.
    """

    number: int
    nodes: int

    def address(self, node: int) -> str:
        return f"198.18.{self.number}.{node}"

    def command(self, node: int) -> list[str]:
        """What to put before a program's arguments so that it runs on this node, as the same process."""
        return ["nsenter", f"--net={NAMESPACES / self.namespace(node)}", "--"]

    def cut(self, node: int, *, hears: bool = False, speaks: bool = False) -> None:
        """Cut a node off from everybody; it may still hear the others, or be heard by them.

        Packets vanish at the bridge, so that neither end is told, as if they were lost on a long way.
        """
        table = f"bridge cut{node}"
        rules = [f"add table {table}", f"flush table {table}"]
        rules.append(f"add chain {table} passing {{ type filter hook forward priority 0; }}")
        if not speaks:
            rules.append(f'add rule {table} passing iifname "node{node}" ether type ip drop')
        if not hears:
            rules.append(f'add rule {table} passing oifname "node{node}" ether type ip drop')
        self._filter(rules)

    def heal(self, node: int) -> None:
        """Let a node hear and speak again; nothing happens if it does."""
        self._filter([f"add table bridge cut{node}", f"delete table bridge cut{node}"])

    def _filter(self, rules: list[str]) -> None:
        _run(["ip", "netns", "exec", _switch(self.number), "nft", "-f", "-"], input="\n".join(rules))

    def namespace(self, node: int) -> str:
        return f"{_name(self.number)}-{node}"


@contextmanager
def network(nodes: int) -> Iterator[Network]:
    """A network that lives as long as the block, without its nodes' processes, which are killed with it.

    Raises:
        RuntimeError: it could not be made, or all numbers are taken.
    """
    LOCKS.mkdir(exist_ok=True)
    mine: Network | None = None
    with contextlib.ExitStack() as held:
        for number in NUMBERS:
            lock = _try_lock(number)
            if lock is None:
                continue
            _clear(number)
            if mine is None:
                held.enter_context(lock)
                mine = Network(number, nodes)
            else:
                lock.close()
            if not (LOCKS / str(number + 1)).exists():
                break
        if mine is None:
            raise RuntimeError(f"all {len(NUMBERS)} networks of {LOCKS} are in use")
        held.callback(_clear, mine.number)
        _make(mine)
        yield mine


def _make(made: Network) -> None:
    name, switch = _name(made.number), _switch(made.number)
    _run(["ip", "netns", "add", switch])
    inside = ["ip", "-n", switch]
    _run([*inside, "link", "add", "bridge", "type", "bridge"])
    _run([*inside, "link", "set", "bridge", "up"])
    _run(["ip", "link", "add", name, "type", "veth", "peer", "name", "host", "netns", switch])
    _run([*inside, "link", "set", "host", "master", "bridge", "up"])
    _run(["ip", "address", "add", f"{made.address(254)}/24", "dev", name])
    _run(["ip", "link", "set", name, "up"])
    for node in range(1, made.nodes + 1):
        namespace, port = made.namespace(node), f"node{node}"
        _run(["ip", "netns", "add", namespace])
        _run([*inside, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace])
        _run([*inside, "link", "set", port, "master", "bridge", "up"])
        _run(["ip", "-n", namespace, "address", "add", f"{made.address(node)}/24", "dev", "eth0"])
        _run(["ip", "-n", namespace, "link", "set", "eth0", "up"])
        _run(["ip", "-n", namespace, "link", "set", "lo", "up"])


def _clear(number: int) -> None:
    """Remove a network and every process in its namespaces; nothing happens where there is none."""
    ours = [path.name for path in NAMESPACES.glob(f"{_name(number)}-*")]
    deadline = time.monotonic() + 20
    while pids := [pid for name in ours for pid in _run(["ip", "netns", "pids", name]).split()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {', '.join(pids)} of network {number} do not end, even killed")
        time.sleep(0.01)
    for name in ours:
        _run(["ip", "netns", "delete", name])
    if Path(f"/sys/class/net/{_name(number)}").exists():
        # Its other end has gone with the namespace, but not before the kernel has got round to it.
        subprocess.run(["ip", "link", "delete", _name(number)], capture_output=True, check=False)


def _try_lock(number: int) -> IO[bytes] | None:
    """The lock of a number, unless somebody who is alive holds it."""
    file = (LOCKS / str(number)).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _name(number: int) -> str:
    return f"mdnet{number}"


def _switch(number: int) -> str:
    return f"{_name(number)}-switch"


def _run(command: list[str], input: str | None = None) -> str:  # noqa: A002 - as subprocess calls it
    done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
