"""Starts a program detached from its caller and prints which process it became.

Run as a script, ``python launch.py <log> <user or -> <command> …``, so that nothing but the standard library and psutil
is loaded. The program is a child of nobody here: it survives its starter and leaves no zombie in it.
"""

from __future__ import annotations

import json
import os
import sys

import psutil


def started_at(process: psutil.Process) -> float:
    """When a process was created, in seconds: since boot on Linux, where a stepped wall clock moves psutil's figure."""
    created = process.create_time()
    return round(created - psutil.boot_time(), 2) if sys.platform == "linux" else created


def _become(user: str) -> None:
    import pwd

    account = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def _main(log: str, user: str, command: list[str]) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    child = os.fork()
    if child:
        sys.stdout.write(json.dumps({"pid": child, "created": started_at(psutil.Process(child))}))
        return
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    try:
        if user != "-":
            _become(user)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3:])
