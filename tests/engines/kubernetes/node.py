"""The first process of a node's own PID, mount and network namespaces; it runs as a script and imports no package.

It prepares the namespaces, then starts and stops programs as its standard input says, one line each, and answers each
line with a line. When its input ends, so does it, and the kernel ends everything else in the namespaces with it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    print("born", flush=True)
    programs: dict[str, subprocess.Popen[bytes]] = {}
    for line in sys.stdin:
        order, _, name = line.strip().partition(" ")
        if order == "prepare":
            for command in plan["prepare"]:
                subprocess.run(command, check=True)
            # Orphans of the programs are now this process's children, and nobody waits for them but the kernel.
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        elif order == "start":
            programs[name] = _start(plan["programs"][name], Path(plan["logs"]) / f"{name}.log")
        elif order == "kill":
            programs[name].kill()
            programs[name].wait()
        print("done", flush=True)


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            preexec_fn=_wait_for_children,
        )  # fmt: skip


def _wait_for_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


if __name__ == "__main__":
    main()
