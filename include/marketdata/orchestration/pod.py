"""The one operator: a command of `marketdata` in a hardened pod, or, without a cluster, the same pod's command here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.container import get_container_status
from airflow.providers.cncf.kubernetes.utils.xcom_sidecar import PodDefaults
from airflow.sdk import BaseHook, TriggerRule
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException
from kubernetes.client import models as k8s  # type: ignore[import-untyped]

from marketdata import settings
from marketdata.errors import MarketdataError
from marketdata.orchestration import environment, output, policy, profiles
from marketdata.orchestration.defaults import Tier
from marketdata.orchestration.links import BatchLink, ReportLink
from marketdata.orchestration.local import LocalContainer

if TYPE_CHECKING:
    from airflow.sdk import Context

STARTUP_SECONDS = 300
"""A pod that has not started by then fails its try with the cluster's reason."""

_WORD = re.compile(r"[a-z][a-z-]*")
_SET_HERE = frozenset(inspect.signature(KubernetesPodOperator.__init__).parameters) - {"self", "kwargs"}
"""Everything the provider's operator can be told: a DAG author tells none of it, so none of it can be left out."""

_RED = frozenset({"failed", "upstream_failed"})


class MarketdataPodOperator(KubernetesPodOperator):
    """Run ``marketdata <command>`` in a pod of the platform.

    What a pod looks like is decided here and by `policy`, not by the author of a DAG: any other argument of
    KubernetesPodOperator is refused by name, in ``default_args`` too.

    A failed command is tried again unless its exit code says that the same would happen (64 and 65). A task that runs
    whatever happened and ends the run is failed if anything before it failed: the last task decides a run's colour.

    Args:
        command: words after ``marketdata``; the first is fixed, the others may be templates.
        profile: name of the compute profile.
        app: label ``app``, usually from the DAG's default_args.
        tier: label ``tier``, usually from the DAG's default_args.
    """

    template_fields: Sequence[str] = ("command",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"command": "py"}
    operator_extra_links = (ReportLink(), BatchLink())
    ui_color = "#e3f0ff"

    def __init__(
        self, *, command: list[str], app: str, tier: Tier | str, profile: str = "small", **kwargs: Any
    ) -> None:
        told = kwargs.keys() | kwargs.get("default_args", {}).keys()
        if refused := sorted(told & _SET_HERE):
            raise TypeError(f"{type(self).__name__} decides {', '.join(refused)} itself; leave it out")
        if not command or not _WORD.fullmatch(command[0]):
            raise ValueError(f"command must begin with a word of `marketdata --help`, not {command[:1]}")
        compute = profiles.get(profile)
        kwargs.setdefault("execution_timeout", timedelta(seconds=compute.deadline_seconds + STARTUP_SECONDS))
        super().__init__(
            namespace=policy.NAMESPACE,
            service_account_name=policy.SERVICE_ACCOUNT,
            automount_service_account_token=False,
            cmds=["marketdata"],
            security_context=policy.pod_security_context(),
            container_security_context=policy.container_security_context(),
            xcom_sidecar_container_security_context=policy.container_security_context(),
            container_resources=k8s.V1ResourceRequirements(requests=compute.requests, limits=compute.limits),
            volumes=[k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource(size_limit=policy.TEMPORARY_SIZE))],
            volume_mounts=[k8s.V1VolumeMount(name="tmp", mount_path=environment.TEMPORARY)],
            active_deadline_seconds=compute.deadline_seconds,
            startup_timeout_seconds=STARTUP_SECONDS,
            # The provider's 5 s would be most of a short task's time.
            startup_check_interval_seconds=1,
            base_container_status_polling_interval=0.5,
            get_logs=True,
            container_name_log_prefix_enabled=False,
            log_formatter=output.formatted,
            log_events_on_failure=True,
            # A pod's spec in a log or an alert helps nobody and shows too much.
            log_pod_spec_on_failure=False,
            # Kubernetes then keeps a failed command's last lines, which name the reason.
            termination_message_policy="FallbackToLogsOnError",
            do_xcom_push=True,
            deferrable=False,
            # A retry after its worker died takes over the pod that is still running.
            durable=True,
            on_finish_action="delete_succeeded_pod",
            on_kill_action="delete_pod",
            termination_grace_period=30,
            **kwargs,
        )
        self.command = command
        self.component = command[0]
        self.app = app
        self.tier = str(tier)
        self.profile = profile
        self._local: LocalContainer | None = None

    def execute(self, context: Context) -> Any:
        run = super().execute if self._has_cluster() else self._execute_here
        if self.trigger_rule == TriggerRule.ALL_SUCCESS or self.downstream_task_ids:
            return run(context)
        before = self._failed_before(context)
        try:
            result = run(context)
        except AirflowException as error:
            if not before:
                raise
            raise AirflowFailException(f"{error}; the run had failed before: {before}") from None
        if before:
            if result is not None:
                context["ti"].xcom_push("return_value", result)
            raise AirflowFailException(
                f"{self.task_id} did its work, but the run has failed: {before}; the first of them says why"
            )
        return result

    def build_pod_request_obj(self, context: Context | None = None, *, dry_run: bool = False) -> k8s.V1Pod:
        """The pod as it is submitted.

        Raises:
            AirflowFailException: the pod breaks the platform's policy, or a setting has the wrong form.
        """
        try:
            current = settings.load()
        except MarketdataError as error:
            raise AirflowFailException(str(error)) from error
        self.image = current.marketdata_image
        self.arguments = list(self.command)
        self.env_vars = environment.variables(current, context)
        self.labels = {
            "app": self.app,
            "environment": current.environment,
            "tier": self.tier,
            "component": self.component,
        }
        self.name = self._set_name(f"{self.dag_id}-{self.component}")
        pod = super().build_pod_request_obj(context, dry_run=dry_run)
        _bound_sidecar(pod)
        if broken := policy.violations(pod):
            raise AirflowFailException(f"pod of task {self.task_id} is not launched: {'; '.join(broken)}")
        return pod

    def cleanup(
        self,
        pod: k8s.V1Pod,
        remote_pod: k8s.V1Pod,
        xcom_result: dict[str, Any] | None = None,
        context: Context | None = None,
    ) -> None:
        """The provider's, with a failure told by the command's exit code and last words."""
        try:
            super().cleanup(pod, remote_pod, xcom_result, context)
        except AirflowException as error:
            status = get_container_status(remote_pod, self.base_container_name)
            ended = status.state.terminated if status and status.state else None
            if ended is None:
                reason = (remote_pod.status and (remote_pod.status.message or remote_pod.status.reason)) or "unknown"
                raise AirflowException(
                    f"pod {remote_pod.metadata.name} ended before its command did: {reason}"
                ) from error
            why = output.last_words((ended.message or ended.reason or "").splitlines())
            raise output.failure(self.component, ended.exit_code, why) from error

    def on_kill(self) -> None:
        if self._local is not None:
            self._local.kill()
        else:
            super().on_kill()

    def _has_cluster(self) -> bool:
        """Whether a Kubernetes connection is set, in the environment, a secrets backend or Airflow.

        Only "there is none" means none; any other answer fails this try.
        """
        try:
            BaseHook.get_connection(str(self.kubernetes_conn_id))
        except AirflowNotFoundException:
            if settings.load().environment == "production":
                raise AirflowFailException(
                    f"connection {self.kubernetes_conn_id} is not set, and production runs no task outside a pod; "
                    "nothing was started (fix: set AIRFLOW_CONN_KUBERNETES_DEFAULT)"
                ) from None
            return False
        return True

    def _execute_here(self, context: Context) -> Any:
        pod = self.build_pod_request_obj(context, dry_run=True)
        self._local = LocalContainer(pod, secrets=environment.credentials(settings.load()), log=self.log)
        self.log.info("No cluster is connected: running here: marketdata %s", " ".join(self.command))
        outcome = self._local.run()
        if outcome.exit_code == 0:
            return outcome.result
        if outcome.result is not None:
            context["ti"].xcom_push("return_value", outcome.result)
        raise output.failure(self.component, outcome.exit_code, outcome.why)

    def _failed_before(self, context: Context) -> str:
        """Tasks upstream that failed, as text; empty where all is well."""
        instance = context["ti"]
        upstream = sorted(self.get_flat_relative_ids(upstream=True))
        found: Mapping[str, Mapping[str, str]] = instance.get_task_states(
            dag_id=self.dag_id, task_ids=upstream, run_ids=[instance.run_id]
        )
        states = found.get(instance.run_id, {})
        return ", ".join(f"{task} ({states[task]})" for task in upstream if states.get(task) in _RED)


def _bound_sidecar(pod: k8s.V1Pod) -> None:
    """Give the result's sidecar and its volume the bounds that the provider only takes from the connection."""
    for container in pod.spec.containers:
        if container.name == PodDefaults.SIDECAR_CONTAINER_NAME:
            container.resources = k8s.V1ResourceRequirements(
                requests=profiles.SIDECAR.requests, limits=profiles.SIDECAR.limits
            )
    for volume in pod.spec.volumes:
        if volume.name == PodDefaults.VOLUME.name and volume.empty_dir is not None:
            volume.empty_dir.size_limit = "1Mi"
