"""The local container: what the command gets, what is made of what it says, and that nothing of it stays behind."""

from __future__ import annotations

import gc
import json
import logging
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import models as k8s

from marketdata.orchestration import local, output
from marketdata.orchestration.local import LocalContainer
from marketdata.orchestration.output import Outcome
from tests.fake_marketdata import Fake

PodOf = Callable[..., k8s.V1Pod]
log = logging.getLogger("test.local")


@pytest.fixture(autouse=True)
def _captured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger=log.name)


def run(pod: k8s.V1Pod, *secrets: str) -> Outcome:
    return LocalContainer(pod, secrets=secrets, log=log).run()


def test_the_result_file_is_the_result(fake: Fake, pod_of: PodOf) -> None:
    fake.behave(extract={"result": {"batch": "file:///lake/m.json", "rows": 3}})
    assert run(pod_of("extract", "--start", "2019-01-01")) == Outcome(0, {"batch": "file:///lake/m.json", "rows": 3})
    assert fake.calls()[0]["words"] == ["extract", "--start", "2019-01-01"]


def test_a_command_without_a_result_hands_over_nothing(fake: Fake, pod_of: PodOf) -> None:
    fake.behave(preflight={"result": None})
    assert run(pod_of("preflight")) == Outcome(0, None)


def test_the_command_gets_the_pods_environment_and_nothing_of_the_runners(
    fake: Fake, pod_of: PodOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://airflow:hidden@db/airflow",
        "AIRFLOW_CONN_OTHER": "http://user:hidden@host",
        "SLACK_WEBHOOK_URL": "https://hooks/hidden",
        "PYTHONPATH": "/somewhere",
        "POSTGRES_DSN": "postgresql://app:known@db/app",
        "MARKETDATA_HOME": "/home-of-marketdata",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("COMMODITY_API_KEY", raising=False)
    reference = k8s.V1EnvVarSource(secret_key_ref=k8s.V1SecretKeySelector(name="some-secret", key="dsn"))
    run(
        pod_of(
            "load",
            env=[
                k8s.V1EnvVar(name="TENANT", value="acme"),
                k8s.V1EnvVar(name="TMPDIR", value="/tmp"),  # noqa: S108
                k8s.V1EnvVar(name="POSTGRES_DSN", value_from=reference),
                k8s.V1EnvVar(name="COMMODITY_API_KEY", value_from=reference),
            ],
        )
    )
    given = fake.calls()[0]["env"]
    allowed = {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "MARKETDATA_HOME", "MARKETDATA_ENDPOINTS"}
    assert given.keys() - allowed == {"TENANT", "TMPDIR", "POSTGRES_DSN", "MARKETDATA_RESULT"}
    assert given["TENANT"] == "acme"
    assert given["POSTGRES_DSN"] == "postgresql://app:known@db/app"
    assert given["MARKETDATA_HOME"] == "/home-of-marketdata"


def test_it_works_in_a_temporary_folder_of_its_own_that_goes_with_it(fake: Fake, pod_of: PodOf) -> None:
    fake.behave(extract={"code": "pathlib.Path('scratch').write_text('x')"})
    tmp = k8s.V1EnvVar(name="TMPDIR", value="/tmp")  # noqa: S108
    run(pod_of("extract", env=[tmp]))
    run(pod_of("extract", env=[tmp]))
    first, second = fake.calls()
    assert first["env"]["TMPDIR"] == first["cwd"] != second["cwd"]
    assert not Path(first["cwd"]).parent.exists()
    assert Path(first["cwd"]).is_relative_to(tempfile.gettempdir())


@pytest.mark.parametrize("code", [1, 64, 65, 69, 70, 75])
def test_a_failure_says_its_code_and_its_own_reason(fake: Fake, pod_of: PodOf, code: int) -> None:
    fake.behave(
        validate={
            "exits": [code],
            "result": {"batch": "file:///verdict"},
            "stderr": [
                '{"level": "ERROR", "message": "long story", "exc_info": "Traceback…"}',
                "error: 7 % refused",
                "  fix: look",
            ],
        }
    )
    assert run(pod_of("validate")) == Outcome(code, {"batch": "file:///verdict"}, "7 % refused (fix: look)")


def test_a_crash_is_told_by_its_last_line(fake: Fake, pod_of: PodOf) -> None:
    fake.behave(transform={"code": "raise ValueError('no such column')"})
    assert run(pod_of("transform")) == Outcome(1, None, "ValueError: no such column")


def test_a_signal_is_told_as_a_shell_does(fake: Fake, pod_of: PodOf) -> None:
    fake.behave(transform={"code": "os.kill(os.getpid(), 9)"})
    assert run(pod_of("transform")) == Outcome(137, None, "it said nothing")


def test_a_command_that_is_not_there_is_said(tmp_path: Path, pod_of: PodOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SCRIPTS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(pod_of("extract")) == Outcome(127, None, "marketdata cannot be started: No such file or directory")


@pytest.mark.parametrize(
    ("result", "says"),
    [("no json", "is no JSON"), (json.dumps(["x" * output.LARGEST_RESULT]), "not smaller than 4096 bytes")],
)
def test_a_result_that_is_none_fails_the_task(fake: Fake, pod_of: PodOf, result: str, says: str) -> None:
    fake.behave(extract={"result": result})
    with pytest.raises(AirflowException, match=says):
        run(pod_of("extract"))


def test_log_lines_keep_their_level_and_lose_what_the_page_says_anyway(
    fake: Fake, pod_of: PodOf, caplog: pytest.LogCaptureFixture
) -> None:
    fake.behave(
        publish={
            "stderr": [
                '{"timestamp": "t", "level": "WARNING", "message": "slow broker", "run_id": "r", "records": 5}',
                "plain words",
                '{"level": "ERROR", "message": "no", "exc_info": "Traceback:\\n  x"}',
            ]
        }
    )
    run(pod_of("publish"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "slow broker (records=5)"),
        ("INFO", "plain words"),
        ("ERROR", "no\nTraceback:\n  x"),
    ]


def test_a_secret_is_struck_out_of_everything_the_command_says(
    fake: Fake, pod_of: PodOf, caplog: pytest.LogCaptureFixture
) -> None:
    fake.behave(load={"exits": [69], "stderr": ["trying pa55word", "error: no answer to postgresql://u:pa55word@db"]})
    outcome = run(pod_of("load"), "pa55word")
    assert outcome.why == "no answer to postgresql://u:***@db"
    assert "pa55word" not in caplog.text


def test_a_flood_is_cut_short_and_its_errors_are_still_shown(
    fake: Fake, pod_of: PodOf, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "SHOWN_LINES", 100)
    fake.behave(
        extract={
            "code": "sys.stdout.write('x' * 5_000_000 + '\\n' + 'line\\n' * 50_000); print('error: at last')",
            "exits": [69],
        }
    )
    outcome = run(pod_of("extract"))
    messages = [record.getMessage() for record in caplog.records]
    assert outcome.why == "at last"
    assert len(messages) == 100 + 2
    assert messages[-1] == "error: at last"
    assert max(map(len, messages)) <= local.LONGEST_LINE


def test_a_line_without_an_end_is_not_lost(fake: Fake, pod_of: PodOf, caplog: pytest.LogCaptureFixture) -> None:
    fake.behave(extract={"code": "sys.stdout.write('no newline')"})
    run(pod_of("extract"))
    assert [record.getMessage() for record in caplog.records] == ["no newline"]


def test_no_file_descriptor_is_left_open(fake: Fake, pod_of: PodOf) -> None:
    def pipes() -> int:
        """What a container opens; other tests' clients of Kafka open and close sockets meanwhile."""
        gc.collect()
        found = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                found.append(str(descriptor.readlink()))
        return sum(link.startswith("pipe:") for link in found)

    run(pod_of("extract"))
    before = pipes()
    for _ in range(3):
        run(pod_of("extract"))
    assert pipes() <= before
