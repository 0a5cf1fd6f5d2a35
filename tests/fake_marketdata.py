"""A `marketdata` that does what a test tells it, and a pod to run it in."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import models as k8s

from marketdata import settings
from marketdata.orchestration import environment, local, policy

_FAKE = """#!{python}
import json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
says = json.loads((here / "behaviour.json").read_text()).get(sys.argv[1], {{}})
attempt = int(os.environ.get("MARKETDATA_TRY_NUMBER", 1))
with (here / "calls.ndjson").open("a") as calls:
    call = {{"words": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "try": attempt}}
    calls.write(json.dumps(call) + "\\n")
exec(says.get("code", ""))
for line in says.get("stderr", []):
    print(line, file=sys.stderr)
result = says.get("result", {{"batch": f"file:///lake/batches/{{sys.argv[1]}}/manifest.json"}})
if result is not None:
    pathlib.Path(os.environ["MARKETDATA_RESULT"]).write_text(result if isinstance(result, str) else json.dumps(result))
exits = says.get("exits", [0])
sys.exit(exits[min(attempt, len(exits)) - 1])
"""


class Fake:
    """The fake executable: what it shall do by command, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "marketdata"
        program.write_text(_FAKE.format(python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.behave()

    def behave(self, **commands: dict[str, Any]) -> None:
        """`code` to execute, lines of `stderr`, `result`, and the `exits` of each try, by command."""
        (self.folder / "behaviour.json").write_text(json.dumps(commands))

    def calls(self) -> list[dict[str, Any]]:
        log = self.folder / "calls.ndjson"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(local, "SCRIPTS", folder)
    return Fake(folder)


@pytest.fixture
def clean_settings(settings_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """`settings.load()` of a machine on which nothing is set."""
    monkeypatch.setenv("LAKE_URI", f"file://{tmp_path}/lake")
    settings.load.cache_clear()
    yield
    settings.load.cache_clear()


@pytest.fixture
def pod_of() -> Callable[..., k8s.V1Pod]:
    """A pod whose base container runs `marketdata` with these words."""

    def build(*words: str, deadline_seconds: int = 60, env: list[k8s.V1EnvVar] | None = None) -> k8s.V1Pod:
        result = k8s.V1EnvVar(name=environment.RESULT_VARIABLE, value=environment.RESULT_FILE)
        container = k8s.V1Container(
            name="base", command=["marketdata"], args=list(words), env=[result, *(env or [])],
            security_context=policy.container_security_context(),
        )  # fmt: skip
        return k8s.V1Pod(spec=k8s.V1PodSpec(containers=[container], active_deadline_seconds=deadline_seconds))

    return build
