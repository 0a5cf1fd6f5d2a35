"""The operator: what an author may say, what a pod then is, and what becomes of a failure."""

from __future__ import annotations

import inspect
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client import models as k8s

from marketdata import settings
from marketdata.errors import UsageError
from marketdata.orchestration import environment, policy, profiles
from marketdata.orchestration.defaults import Tier
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
    wanted = {"app": "commodity-pipeline", "environment": "production", "tier": "critical", "component": "extract"}
    assert wanted.items() <= built.metadata.labels.items()


def test_contexts_are_exactly_those_of_the_specification() -> None:
    built = pod()
    assert built.spec.security_context == k8s.V1PodSecurityContext(
        run_as_non_root=True, run_as_user=10001, run_as_group=10001, fs_group=10001,
        fs_group_change_policy="OnRootMismatch", seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
    )  # fmt: skip
    assert [c.name for c in built.spec.containers] == ["base", "airflow-xcom-sidecar"]
    for each in built.spec.containers:
        assert each.security_context == k8s.V1SecurityContext(
            allow_privilege_escalation=False, read_only_root_filesystem=True, privileged=False,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
        )  # fmt: skip
        assert {"cpu", "memory"} <= each.resources.requests.keys() & each.resources.limits.keys()


def test_the_command_is_the_images_program_with_the_authors_words() -> None:
    base = container(pod())
    assert (base.command, base.args) == (["marketdata"], SAID["command"])
    assert {mount.mount_path for mount in base.volume_mounts} == {"/tmp", "/airflow/xcom"}  # noqa: S108


def test_clean_up_and_takeover() -> None:
    task = operator()
    assert task.on_finish_action == "delete_succeeded_pod"
    assert task.on_kill_action == "delete_pod"
    assert task.durable
    assert task.startup_timeout_seconds == 300
    assert not task.log_pod_spec_on_failure


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


class TestFailureOnKubernetes:
    """What the provider calls at the end of a pod, with the pod as the cluster returns it."""

    @pytest.fixture
    def task(self, monkeypatch: pytest.MonkeyPatch) -> MarketdataPodOperator:
        task = operator()
        for quiet in ("is_istio_enabled", "patch_already_checked", "process_pod_deletion"):
            monkeypatch.setattr(task, quiet, lambda *_, **__: False)
        for reader in ("_read_pod_events", "_read_pod_container_states"):
            monkeypatch.setattr(task, reader, lambda *_, **__: None)
        return task

    def ended(self, code: int | None, message: str = "", reason: str = "Error", phase: str = "Failed") -> k8s.V1Pod:
        terminated = (
            None if code is None else k8s.V1ContainerStateTerminated(exit_code=code, message=message, reason=reason)
        )
        status = k8s.V1ContainerStatus(
            name="base", image="i", image_id="i", ready=False, restart_count=0,
            state=k8s.V1ContainerState(terminated=terminated),
        )  # fmt: skip
        return k8s.V1Pod(
            metadata=k8s.V1ObjectMeta(name="some-pod"),
            status=k8s.V1PodStatus(phase=phase, container_statuses=[status], reason=reason if code is None else None),
        )

    def test_success(self, task: MarketdataPodOperator) -> None:
        task.cleanup(self.ended(0), self.ended(0, phase="Succeeded"))

    @pytest.mark.parametrize(("code", "kind"), [(64, AirflowFailException), (65, AirflowFailException)])
    def test_no_other_try(self, task: MarketdataPodOperator, code: int, kind: type[Exception]) -> None:
        remote = self.ended(code, '{"level": "INFO", "message": "x"}\nerror: 7 % refused\n  fix: look\n')
        with pytest.raises(kind, match=rf"marketdata extract failed \(exit {code}: .*7 % refused \(fix: look\)"):
            task.cleanup(remote, remote)

    @pytest.mark.parametrize("code", [1, 69, 70, 75])
    def test_another_try(self, task: MarketdataPodOperator, code: int) -> None:
        with pytest.raises(AirflowException, match=rf"exit {code}.*no brokers") as raised:
            task.cleanup(self.ended(code, "error: no brokers"), self.ended(code, "error: no brokers"))
        assert not isinstance(raised.value, AirflowFailException)

    def test_out_of_memory_is_named(self, task: MarketdataPodOperator) -> None:
        with pytest.raises(AirflowException, match=r"exit 137: killed.*OOMKilled"):
            task.cleanup(self.ended(137, reason="OOMKilled"), self.ended(137, reason="OOMKilled"))

    def test_a_pod_that_never_ran_is_named_with_the_clusters_reason(self, task: MarketdataPodOperator) -> None:
        with pytest.raises(AirflowException, match="pod some-pod ended before its command did: DeadlineExceeded"):
            task.cleanup(self.ended(None, reason="DeadlineExceeded"), self.ended(None, reason="DeadlineExceeded"))


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
        pushed: dict[str, Any] = {}
        return {
            "ti": SimpleNamespace(
                run_id="r",
                get_task_states=lambda dag_id, task_ids, run_ids: {"r": {t: states[t] for t in task_ids}},
                xcom_push=lambda key, value: pushed.__setitem__(key, value),
                pushed=pushed,
            )
        }

    def test_green_after_green(self, last: MarketdataPodOperator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(last, "_execute_here", lambda _: {"rows": 1})
        assert last.execute(self.context(first="success", middle="skipped")) == {"rows": 1}

    def test_never_green_after_red(self, last: MarketdataPodOperator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(last, "_execute_here", lambda _: {"rows": 1})
        context = self.context(first="failed", middle="upstream_failed")
        with pytest.raises(AirflowFailException, match=r"first \(failed\), middle \(upstream_failed\)"):
            last.execute(context)
        assert context["ti"].pushed == {"return_value": {"rows": 1}}, "what it found is kept"

    def test_both_reasons_are_told(self, last: MarketdataPodOperator, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(_: Any) -> None:
            raise AirflowException("no batch")

        monkeypatch.setattr(last, "_execute_here", fails)
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
