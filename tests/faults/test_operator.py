"""What is killed, and what must not survive it: a local pod, its command and what that has started."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kubernetes.client import models as k8s

from marketdata.orchestration.local import GRACE_SECONDS, LocalContainer
from tests.fake_marketdata import Fake, fake, pod_of
from tests.waiting import until

__all__ = ["fake", "pod_of"]

PATIENCE_SECONDS = 90.0
PodOf = Callable[..., k8s.V1Pod]

FAMILY = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
(here / "pids").write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAMILY


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def family(fake: Fake) -> list[int]:
    file = fake.folder / "pids"
    until("a child is started", lambda: file.exists() and len(file.read_text().split()) == 2, PATIENCE_SECONDS)
    return [int(pid) for pid in file.read_text().split()]


@pytest.mark.parametrize("code", [FAMILY, STUBBORN], ids=["obedient", "ignores SIGTERM"])
def test_a_killed_task_leaves_no_child_and_no_grandchild(fake: Fake, pod_of: PodOf, code: str) -> None:
    fake.behave(extract={"code": code})
    container = LocalContainer(pod_of("extract"), secrets=(), log=logging.getLogger(__name__))

    def kill() -> None:
        family(fake)
        container.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    started = time.monotonic()
    outcome = container.run()
    killer.join()
    assert (outcome.exit_code, outcome.why) == (143, "it was killed with its task")
    assert time.monotonic() - started < PATIENCE_SECONDS + GRACE_SECONDS
    until("everything the command started is gone", lambda: not any(map(alive, family(fake))), PATIENCE_SECONDS)


def test_a_missed_deadline_ends_everything(fake: Fake, pod_of: PodOf) -> None:
    fake.behave(extract={"code": STUBBORN})
    outcome = LocalContainer(pod_of("extract", deadline_seconds=10), secrets=(), log=logging.getLogger(__name__)).run()
    assert outcome.exit_code == 137
    assert outcome.why == "it ran longer than its deadline of 10 s and was killed"
    until("everything the command started is gone", lambda: not any(map(alive, family(fake))), PATIENCE_SECONDS)


def test_what_a_finished_command_left_running_ends_with_it(fake: Fake, pod_of: PodOf) -> None:
    fake.behave(extract={"code": FAMILY.replace("time.sleep(600)\n", "\n")})
    outcome = LocalContainer(pod_of("extract"), secrets=(), log=logging.getLogger(__name__)).run()
    assert outcome.exit_code == 0
    until("the child that held its output open is gone", lambda: not any(map(alive, family(fake))), PATIENCE_SECONDS)


def test_a_command_that_loses_its_first_process_is_not_left_alone(fake: Fake, pod_of: PodOf) -> None:
    fake.behave(extract={"code": FAMILY.replace("\ntime.sleep", "\nos.kill(os.getppid(), 9)\ntime.sleep")})
    outcome = LocalContainer(pod_of("extract"), secrets=(), log=logging.getLogger(__name__)).run()
    assert outcome.exit_code == 137
    until("everything the command started is gone", lambda: not any(map(alive, family(fake))), PATIENCE_SECONDS)


def test_an_exception_in_the_runner_ends_everything(fake: Fake, pod_of: PodOf) -> None:
    """Airflow's execution time-out is an exception out of the middle of `execute`."""

    class TimedOut(BaseException):
        pass

    def ring(*_: object) -> None:
        raise TimedOut

    fake.behave(extract={"code": STUBBORN})
    container = LocalContainer(pod_of("extract"), secrets=(), log=logging.getLogger(__name__))
    before = signal.signal(signal.SIGALRM, ring)
    threading.Thread(target=lambda: (family(fake), os.kill(os.getpid(), signal.SIGALRM))).start()
    try:
        with pytest.raises(TimedOut):
            container.run()
    finally:
        signal.signal(signal.SIGALRM, before)
    until("everything the command started is gone", lambda: not any(map(alive, family(fake))), PATIENCE_SECONDS)


@pytest.mark.parametrize("code", [FAMILY, STUBBORN], ids=["obedient", "ignores SIGTERM"])
def test_a_sigkilled_runner_takes_everything_with_it(fake: Fake, code: str) -> None:
    fake.behave(extract={"code": code})
    runner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import logging, sys\n"
            "from pathlib import Path\n"
            "from kubernetes.client import models as k8s\n"
            "from marketdata.orchestration import local\n"
            "local.SCRIPTS = Path(sys.argv[1])\n"
            "base = k8s.V1Container(name='base', command=['marketdata'], args=['extract'],\n"
            "    env=[k8s.V1EnvVar(name='MARKETDATA_RESULT', value='/airflow/xcom/return.json')])\n"
            "pod = k8s.V1Pod(spec=k8s.V1PodSpec(containers=[base], active_deadline_seconds=600))\n"
            "local.LocalContainer(pod, secrets=(), log=logging.getLogger()).run()\n",
            str(fake.folder),
        ]
    )
    try:
        pids = family(fake)
        assert all(map(alive, pids))
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        until("the command and its child died with the runner", lambda: not any(map(alive, pids)), PATIENCE_SECONDS)
    finally:
        runner.kill()
        runner.wait()


def test_a_command_that_is_told_to_end_ends_also_as_the_first_process_of_a_container() -> None:
    """There no signal has a default: SIGTERM would be lost, and every eviction would take its whole grace."""
    code = (
        "import os, signal, time\n"
        "from marketdata.tasks import cli\n"
        "cli.app = lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60))\n"
        "cli.main()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=50, check=False).returncode == 128 + signal.SIGTERM
