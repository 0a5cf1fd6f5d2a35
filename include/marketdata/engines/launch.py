"""Starts a program detached from its caller and writes down which process it became.

Run as a script: ``python launch.py <record> <log> <user or -> -- <command> …``. The caller may be killed at any moment: the program runs
only if its record was written, so that no engine is ever running that nobody can find. It must stay importable without
the package, because nothing but the standard library and psutil is loaded here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil


def started_at(process: psutil.Process) -> float:
    """When a process was created, in seconds: since boot on Linux, where a stepped wall clock moves psutil's figure."""
    created = process.create_time()
    return round(created - psutil.boot_time(), 2) if sys.platform == "linux" else created


def become(user: str) -> None:
    import pwd

    account = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def main(record: Path, log: Path, user: str, command: list[str]) -> None:
    may_run, recorded = os.pipe()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    child = os.fork()
    if child:
        temporary = record.with_suffix(".new")
        temporary.write_text(json.dumps({"pid": child, "created": started_at(psutil.Process(child))}))
        temporary.replace(record)
        os.write(recorded, b"1")
        os._exit(0)
    os.close(recorded)
    os.setsid()
    if not os.read(may_run, 1):
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    try:
        if user != "-":
            become(user)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
        os._exit(127)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[5:])
