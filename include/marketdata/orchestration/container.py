"""First process of a local container: runs one command, and leaves nothing behind, however it ends.

Started as a script, without site-packages, at the head of a process group of its own. Standard input is the lifeline:
it ends when the runner dies, by SIGKILL too. The command's exit code goes to the file descriptor given as first
argument; then, as in a container, everything that is left of the group is killed, this process included.
"""

from __future__ import annotations

import os
import select
import signal
import sys

NOT_FOUND = 127


def main(report: int, command: list[str]) -> None:
    os.set_inheritable(report, False)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    # The command gets the group's signals itself and decides; this process only has to outlive it.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        child = os.posix_spawnp(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            # Whatever the runner ignores or blocks, a command begins as it would in a pod.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            setsigmask=[],
        )
    except OSError as error:
        sys.stderr.write(f"error: {command[0]} cannot be started: {error.strerror}\n")
        sys.stderr.flush()
        os.write(report, str(NOT_FOUND).encode())
        return
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if 0 in ready and not os.read(0, 1):
            break
        if woken in ready:
            os.read(woken, 4096)
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            os.write(report, str(os.waitstatus_to_exitcode(status)).encode())
            break
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
