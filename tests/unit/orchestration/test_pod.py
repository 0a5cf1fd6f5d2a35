"""The operator: what an author may say, what a pod then is, and what becomes of a failure."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout
from kubernetes.client import models as k8s

from marketdata import settings
from marketdata.errors import UsageError
from marketdata.orchestration import environment, policy, profiles
from marketdata.orchestration.cluster import ClusterPod
from marketdata.orchestration.defaults import Tier
from marketdata.orchestration.output import Outcome
from marketdata.orchestration.pod import MarketdataPodOperator

pytestmark = pytest.mark.usefixtures("clean_settings")

SAID = {"task_id": "t", "command": ["extract", "--dataset", "commodity_prices"], "app": "a", "tier": Tier.CRITICAL}
DECIDED = sorted(inspect.signature(KubernetesPodOperator.__init__).parameters.keys() - {"self", "kwargs"})


def operator(**said: Any) -> MarketdataPodOperator:
    with DAG("some-dag", schedule=None):
        return MarketdataPodOperator(**{**SAID, **said})


def pod(**said: Any) -> k8s.V1Pod:
    return operator(**said).build_pod_request_obj(dry_run=True)


def container(of: k8s.V1Pod, name: str = "base") -> k8s.V1Container:
    return next(c for c in of.spec.containers if c.name == name)


@pytest.mark.parametrize("name", DECIDED)
def test_an_author_cannot_decide(name: str) -> None:
    with pytest.raises(TypeError, match=rf"decides {name} itself"):
        operator(**{name: None})


@pytest.mark.parametrize("name", ["image", "hostnetwork", "env_vars", "full_pod_spec"])
def test_an_author_cannot_decide_it_for_a_whole_dag(name: str) -> None:
    with pytest.raises(TypeError, match=rf"decides {name} itself"), DAG("d", schedule=None, default_args={name: "x"}):
        MarketdataPodOperator(**SAID)


@pytest.mark.parametrize("name", ["app", "tier", "command"])
def test_what_must_be_said(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        MarketdataPodOperator(**{key: value for key, value in SAID.items() if key != name})


@pytest.mark.parametrize("command", [[], ["{{ params.command }}"], ["sh", "-c", "x"][1:], ["--help"], ["rm -rf"]])
def test_a_command_begins_with_a_fixed_word(command: list[str]) -> None:
    with pytest.raises(ValueError, match="command must begin"):
        operator(command=command)


def test_an_unknown_profile_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no compute profile is named 'huge'.*medium, small"):
        operator(profile="huge")


def test_templates_reach_the_commands_words_only() -> None:
    assert MarketdataPodOperator.template_fields == ("command",)


def test_the_default_profile_is_the_platforms() -> None:
    base = container(pod())
    assert {**base.resources.requests, "ephemeral-storage": None} == {
        "cpu": "500m", "memory": "512Mi", "ephemeral-storage": None,
    }  # fmt: skip
    assert (base.resources.limits["cpu"], base.resources.limits["memory"]) == ("1000m", "1Gi")


@pytest.mark.parametrize("profile", sorted(profiles.PROFILES))
def test_a_try_fits_into_its_run(profile: str) -> None:
    task = operator(profile=profile)
    assert 0 < profiles.get(profile).deadline_seconds <= 3600
    assert task.execution_timeout is not None
    assert timedelta(seconds=profiles.get(profile).deadline_seconds) < task.execution_timeout <= timedelta(hours=1)


def test_identity_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    settings.load.cache_clear()
    built = pod(app="commodity-pipeline")
    assert built.metadata.namespace == "production"
    assert built.spec.service_account_name == "production-etl"
    assert built.spec.automount_service_account_token is False
    wanted = {
        "app": "commodity-pipeline", "environment": "production", "tier": "critical", "component": "extract",
        "tenant": "default", "workflow": "some-dag",
    }  # fmt: skip
    assert wanted.items() <= built.metadata.labels.items()


def test_contexts_are_exactly_those_of_the_specification() -> None:
    built = pod()
    assert built.spec.security_context == k8s.V1PodSecurityContext(
        run_as_non_root=True, run_as_user=10001, run_as_group=10001, fs_group=10001,
        fs_group_change_policy="OnRootMismatch", seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
    )  # fmt: skip
    assert [c.name for c in built.spec.containers] == ["base"]
    for each in built.spec.containers:
        assert each.security_context == k8s.V1SecurityContext(
            allow_privilege_escalation=False, read_only_root_filesystem=True, privileged=False,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
        )  # fmt: skip
        assert {"cpu", "memory"} <= each.resources.requests.keys() & each.resources.limits.keys()


def test_the_command_is_the_images_program_with_the_authors_words() -> None:
    base = container(pod())
    assert (base.command, base.args) == (["marketdata"], SAID["command"])
    assert {mount.mount_path for mount in base.volume_mounts} == {"/tmp"}  # noqa: S108


def test_every_try_of_a_task_names_its_pods_alike_and_no_two_tasks_do() -> None:
    def name(**said: Any) -> str:
        instance = {"dag_id": "some-dag", "task_id": "t", "run_id": "r", "map_index": -1, "try_number": 1, **said}
        with DAG("some-dag", schedule=None) as dag:
            task = MarketdataPodOperator(**{**SAID, "task_id": instance["task_id"]})
        context: Any = {"ti": SimpleNamespace(**instance), "run_id": instance["run_id"], "dag": dag}
        return str(task.build_pod_request_obj(context, dry_run=True).metadata.name)

    assert name(try_number=1) == name(try_number=2)
    different = [{}, {"run_id": "s"}, {"task_id": "u"}, {"map_index": 0}, {"map_index": 1}]
    assert len({name(**said) for said in different}) == len(different)
    assert all(len(name(**said)) <= 63 - len("-99") for said in different)


def test_a_pods_name_fits_however_long_its_dags_is() -> None:
    with DAG("a-very-long-name-" * 10, schedule=None):
        task = MarketdataPodOperator(**SAID)
    name = task.build_pod_request_obj(dry_run=True).metadata.name
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 63 - len("-99")


def test_the_result_goes_where_the_cluster_keeps_it() -> None:
    base = container(pod())
    told = {variable.name: variable.value for variable in base.env}
    assert base.termination_message_path == told["MARKETDATA_RESULT"] == "/dev/termination-log"
    assert base.termination_message_policy == "FallbackToLogsOnError"


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("namespace", "default", "metadata.namespace"),
        ("security_context", {}, "spec.securityContext.runAsNonRoot"),
        ("hostnetwork", True, "spec.hostNetwork"),
        ("cmds", ["sh", "-c", "pip install x && marketdata"], "must not install packages"),
        ("container_resources", None, "resources.limits.memory"),
    ],
)
def test_a_pod_that_was_softened_after_all_is_not_launched(attribute: str, value: Any, says: str) -> None:
    task = operator()
    setattr(task, attribute, value)
    with pytest.raises(AirflowFailException, match=f"is not launched: .*{says}"):
        task.build_pod_request_obj(dry_run=True)


def test_a_credential_in_a_plain_setting_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMODITY_API_URL", "https://user:hidden@api.example")
    settings.load.cache_clear()
    with pytest.raises(AirflowFailException, match=r"env\[COMMODITY_API_URL\] is a literal credential") as raised:
        pod()
    assert "hidden" not in str(raised.value)


def test_a_setting_of_the_wrong_form_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKE_URI", "ftp://somewhere")
    settings.load.cache_clear()
    with pytest.raises(AirflowFailException, match="LAKE_URI"):
        pod()


class TestWhereItRuns:
    """A cluster is there when its connection is; only "there is none" means none."""

    def test_a_connection_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", "kubernetes://")
        assert operator()._has_cluster()

    def test_none(self) -> None:
        assert not operator()._has_cluster()

    def test_none_in_production_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ENVIRONMENT", "production")
        settings.load.cache_clear()
        with pytest.raises(AirflowFailException, match="AIRFLOW_CONN_KUBERNETES_DEFAULT"):
            operator()._has_cluster()

    def test_an_answer_that_is_none_is_not_taken_for_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def down(_: str) -> None:
            raise ConnectionError("the API server is away")

        monkeypatch.setattr("marketdata.orchestration.pod.BaseHook.get_connection", down)
        with pytest.raises(ConnectionError):
            operator()._has_cluster()


class TestOutcome:
    """What becomes of a task whose pod has ended, wherever it ran."""

    class Ended:
        def __init__(self, outcome: Outcome) -> None:
            self.outcome = outcome
            self.killed = self.removed = False

        def run(self) -> Outcome:
            return self.outcome

        def remove(self) -> None:
            self.removed = True

        def kill(self) -> None:
            self.killed = True

    @pytest.fixture(params=["cluster", "laptop"])
    def end(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        """Runs a task whose pod ends like this: what it returns and what it pushes."""

        def end(outcome: Outcome, push: Callable[..., None] | None = None) -> tuple[Any, dict[str, Any]]:
            task, pushed = operator(), {}
            monkeypatch.setattr(task, "_has_cluster", lambda: request.param == "cluster")
            monkeypatch.setattr(task, "allow_nested_operators", True)
            runner = "ClusterPod" if request.param == "cluster" else "LocalContainer"
            self.ended = self.Ended(outcome)
            monkeypatch.setattr(f"marketdata.orchestration.pod.{runner}", lambda *_, **__: self.ended)
            instance = SimpleNamespace(
                dag_id="some-dag", task_id="t", run_id="r", map_index=-1, try_number=1,
                xcom_push=push or pushed.__setitem__,
            )  # fmt: skip
            context: Any = {"ti": instance, "run_id": "r", "dag": task.dag}
            try:
                return task.execute(context), pushed
            except AirflowException as error:
                return error, pushed

        return end

    def test_success(self, end: Callable[..., Any]) -> None:
        assert end(Outcome(0, {"rows": 1})) == ({"rows": 1}, {"return_value": {"rows": 1}})
        assert self.ended.removed

    def test_what_airflow_did_not_get_stays_with_its_pod(self, end: Callable[..., Any]) -> None:
        def push(*_: Any) -> None:
            raise BrokenPipeError

        with pytest.raises(BrokenPipeError):
            end(Outcome(0, {"rows": 1}), push)
        assert not self.ended.removed

    def test_a_command_may_hand_over_nothing(self, end: Callable[..., Any]) -> None:
        assert end(Outcome(0, None)) == (None, {})

    @pytest.mark.parametrize("code", [64, 65])
    def test_no_other_try(self, end: Callable[..., Any], code: int) -> None:
        error, pushed = end(Outcome(code, {"batch": "file:///verdict"}, "7 % refused (fix: look)"))
        assert type(error) is AirflowFailException
        assert re.fullmatch(rf"marketdata extract failed \(exit {code}: .*\): 7 % refused \(fix: look\)", str(error))
        assert pushed == {"return_value": {"batch": "file:///verdict"}}, "what it says is kept"

    @pytest.mark.parametrize("code", [1, 69, 70, 75, 137, 143])
    def test_another_try(self, end: Callable[..., Any], code: int) -> None:
        error, _ = end(Outcome(code, None, "no brokers"))
        assert type(error) is AirflowException
        assert str(error).endswith("no brokers")

    def test_a_task_that_is_killed_kills_what_it_started(self) -> None:
        task = operator()
        task.on_kill()
        task._container = self.Ended(Outcome(0))
        task.on_kill()
        assert task._container.killed

    def test_a_task_that_takes_too_long_kills_what_it_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Endless(self.Ended):  # type: ignore[name-defined, misc]
            def run(self) -> Outcome:
                raise AirflowTaskTimeout("too long")

        task, endless = operator(), Endless(Outcome(0))
        monkeypatch.setattr(task, "_has_cluster", lambda: False)
        monkeypatch.setattr("marketdata.orchestration.pod.LocalContainer", lambda *_, **__: endless)
        instance = SimpleNamespace(dag_id="some-dag", task_id="t", run_id="r", map_index=-1, try_number=1)
        context: Any = {"ti": instance, "run_id": "r", "dag": task.dag}
        with pytest.raises(AirflowTaskTimeout):
            task._run(context)
        assert endless.killed
        task.on_kill()


class TestToldToEnd:
    """SIGTERM reaches a task that somebody has ended, and one whose scheduler has died: only the first is over."""

    @pytest.fixture
    def task(self, monkeypatch: pytest.MonkeyPatch) -> MarketdataPodOperator:
        task = operator()
        task._container = ClusterPod.__new__(ClusterPod)
        task._container.name = "the-pod"
        self.killed: list[str] = []
        monkeypatch.setattr(ClusterPod, "kill", lambda pod: self.killed.append(pod.name))
        return task

    def airflow_says(self, states: dict[str, Any], map_index: int = -1) -> Any:
        return SimpleNamespace(run_id="r", map_index=map_index, get_task_states=lambda **_: {"r": states})

    @pytest.mark.parametrize("state", ["failed", "success", "skipped", "restarting", "removed"])
    def test_what_is_over_takes_its_pod_with_it(self, task: MarketdataPodOperator, state: str) -> None:
        task._instance = self.airflow_says({"t": state})
        task.on_kill()
        assert self.killed == ["the-pod"]

    def test_what_is_not_there_any_more_takes_its_pod_with_it(self, task: MarketdataPodOperator) -> None:
        task._instance = self.airflow_says({})
        task.on_kill()
        assert self.killed == ["the-pod"]

    @pytest.mark.parametrize("state", [None, "scheduled", "queued", "running", "up_for_retry"])
    def test_what_goes_on_leaves_its_pod_to_the_next_try(self, task: MarketdataPodOperator, state: str | None) -> None:
        for task._instance in (self.airflow_says({"t": state}), self.airflow_says({"t_4": state}, map_index=4)):
            with pytest.raises(AirflowException, match="pod the-pod is left to the next one"):
                task.on_kill()
        assert not self.killed

    def test_nor_is_it_killed_where_airflow_gives_no_answer(self, task: MarketdataPodOperator) -> None:
        with pytest.raises(AirflowException, match="left to the next one"):
            task.on_kill()
        assert not self.killed


class TestTheLastTask:
    """A task that runs whatever happened and ends the run decides the run's colour."""

    @pytest.fixture
    def last(self, monkeypatch: pytest.MonkeyPatch) -> MarketdataPodOperator:
        with DAG("d", schedule=None):
            first = MarketdataPodOperator(**{**SAID, "task_id": "first"})
            middle = MarketdataPodOperator(**{**SAID, "task_id": "middle"})
            last = MarketdataPodOperator(**{**SAID, "task_id": "last", "trigger_rule": "all_done"})
            first >> middle >> last
        monkeypatch.setattr(last, "_has_cluster", lambda: False)
        monkeypatch.setattr(last, "allow_nested_operators", True)
        return last

    def context(self, **states: str) -> Any:
        return {
            "ti": SimpleNamespace(
                run_id="r", get_task_states=lambda dag_id, task_ids, run_ids: {"r": {t: states[t] for t in task_ids}}
            )
        }

    def test_green_after_green(self, last: MarketdataPodOperator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(last, "_run", lambda _: {"rows": 1})
        assert last.execute(self.context(first="success", middle="skipped")) == {"rows": 1}

    def test_never_green_after_red(self, last: MarketdataPodOperator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(last, "_run", lambda _: {"rows": 1})
        with pytest.raises(AirflowFailException, match=r"first \(failed\), middle \(upstream_failed\)"):
            last.execute(self.context(first="failed", middle="upstream_failed"))

    def test_both_reasons_are_told(self, last: MarketdataPodOperator, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(_: Any) -> None:
            raise AirflowException("no batch")

        monkeypatch.setattr(last, "_run", fails)
        with pytest.raises(AirflowFailException, match=r"no batch; the run had failed before: first \(failed\)"):
            last.execute(self.context(first="failed", middle="success"))


def test_the_environment_of_a_pod_holds_no_value_of_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_DSN", "postgresql://u:hidden@db/x")
    monkeypatch.setenv("KAFKA_BROKERS", "hidden:9092")
    settings.load.cache_clear()
    built = pod()
    assert "hidden" not in str(built)
    references = {v.name: v.value_from.secret_key_ref for v in container(built).env if v.value_from}
    assert references.keys() == environment.SECRETS.keys()
    assert not policy.violations(built)


def test_settings_are_read_for_the_pod_not_for_the_dag(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("settings were read while the DAG was parsed")

    never.cache_clear = lambda: None  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(settings, "load", never)
        operator()
