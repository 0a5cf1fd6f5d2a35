"""The one operator: a command of `marketdata` in a hardened pod, or, without a cluster, the same pod's command here."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import BaseHook, TriggerRule
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    AirflowTaskTimeout,
)
from kubernetes.client import CoreV1Api  # type: ignore[import-untyped]
from kubernetes.client import models as k8s

from marketdata import settings
from marketdata.errors import MarketdataError
from marketdata.orchestration import cluster, environment, output, policy, profiles
from marketdata.orchestration.cluster import ClusterPod
from marketdata.orchestration.defaults import Tier
from marketdata.orchestration.links import BatchLink, ReportLink
from marketdata.orchestration.local import LocalContainer

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
    from airflow.sdk import Context

STARTUP_SECONDS = 300
"""A pod that has not started by then fails its try with the cluster's reason."""

_WORD = re.compile(r"[a-z][a-z-]*")
_SET_HERE = frozenset(inspect.signature(KubernetesPodOperator.__init__).parameters) - {"self", "kwargs"}
"""Everything the provider's operator can be told: a DAG author tells none of it, so none of it can be left out."""

_RED = frozenset({"failed", "upstream_failed"})
_OVER = frozenset({"success", "skipped", "removed", "restarting", *_RED})
"""States of a task that somebody has put an end to. `restarting` is one that was cleared while it ran."""
_STEM_LENGTH = 45
"""Of a pod's name: with its digest and number it has to fit into the 63 characters of a host name."""


class _Container(Protocol):
    """What runs a pod's command: on a cluster or here."""

    def run(self) -> output.Outcome: ...
    def remove(self) -> None: ...
    def kill(self) -> None: ...


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
            container_resources=k8s.V1ResourceRequirements(requests=compute.requests, limits=compute.limits),
            volumes=[k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource(size_limit=policy.TEMPORARY_SIZE))],
            volume_mounts=[k8s.V1VolumeMount(name="tmp", mount_path=environment.TEMPORARY)],
            active_deadline_seconds=compute.deadline_seconds,
            # Kubernetes then keeps a failed command's last lines, which name the reason, where it wrote no result.
            termination_message_policy="FallbackToLogsOnError",
            termination_grace_period=cluster.GRACE_SECONDS,
            image_pull_policy="IfNotPresent",
            priority_class_name=policy.priority_class(Tier(tier)),
            # The name says which task of which run it is; a second pod of that name cannot be.
            random_name_suffix=False,
            # No sidecar, and no process that waits apart from the task: docs/adr/0013.
            do_xcom_push=False,
            deferrable=False,
            **kwargs,
        )
        self.command = command
        self.component = command[0]
        self.app = app
        self.tier = str(tier)
        self.profile = profile
        self._container: _Container | None = None
        self._instance: Any = None

    def execute(self, context: Context) -> Any:
        decides = self.trigger_rule != TriggerRule.ALL_SUCCESS and not self.downstream_task_ids
        before = self._failed_before(context) if decides else ""
        try:
            result = self._run(context)
        except AirflowException as error:
            if not before:
                raise
            raise AirflowFailException(f"{error}; the run had failed before: {before}") from None
        if before:
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
            "tenant": current.tenant,
            "workflow": self.dag_id,
        }
        self.name = self._stem(context)
        pod = super().build_pod_request_obj(context, dry_run=dry_run)
        pod.spec.containers[0].termination_message_path = environment.RESULT_FILE
        if broken := policy.violations(pod):
            raise AirflowFailException(f"pod of task {self.task_id} is not launched: {'; '.join(broken)}")
        return pod

    def on_kill(self) -> None:
        """What SIGTERM comes to: end what was started. A pod whose task goes on is left to the next try.

        Raises:
            AirflowException: this try ends, its pod does not.
        """
        self._killed = True
        if isinstance(self._container, ClusterPod) and self._goes_on():
            raise AirflowException(f"this try was told to end; pod {self._container.name} is left to the next one")
        if self._container is not None:
            self._container.kill()

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

    def _run(self, context: Context) -> Any:
        """Run the command, wherever it is to run; what it hands over is kept also when it fails."""
        self._instance = context["ti"]
        has_cluster = self._has_cluster()
        # Only a cluster's client could tell the one thing a dry run leaves out, a label.
        pod = self.build_pod_request_obj(context, dry_run=True)
        secrets = environment.credentials(settings.load())
        words = "marketdata " + " ".join(self.command)
        if has_cluster:
            self.log.info("On the cluster: %s", words)
            self._container = ClusterPod(
                pod, connect=self._connect, startup_seconds=STARTUP_SECONDS, secrets=secrets, log=self.log
            )
        else:
            self.log.info("No cluster is connected: running here: %s", words)
            self._container = LocalContainer(pod, secrets=secrets, log=self.log)
        if self._killed:
            raise AirflowException(f"{self.task_id} was killed before anything was started")
        try:
            outcome = self._container.run()
        except AirflowTaskTimeout:
            self._container.kill()
            self._container = None
            raise
        if outcome.result is not None:
            context["ti"].xcom_push("return_value", outcome.result)
        if outcome.exit_code:
            raise output.failure(self.component, outcome.exit_code, outcome.why)
        # Not before Airflow has the result: a try that nobody hears any more has failed above, and the next one asks.
        self._container.remove()
        return outcome.result

    def _connect(self) -> CoreV1Api:
        """A client of the cluster with the connection's credentials as they are now."""
        return CoreV1Api(cast("KubernetesHook", self.hook).get_conn())

    def _stem(self, context: Context | None) -> str:
        """The name of a task's pods, but for their number: the same for every try."""
        instance: Any = context["ti"] if context is not None else None
        task = [self.dag_id, self.task_id, *([instance.run_id, str(instance.map_index)] if instance else [])]
        digest = hashlib.sha256("\0".join(task).encode()).hexdigest()[:12]
        readable = re.sub(r"[^a-z0-9]+", "-", f"{self.dag_id}-{self.component}".lower())
        return f"{readable[:_STEM_LENGTH].strip('-')}-{digest}"

    def _goes_on(self) -> bool:
        """Whether Airflow still wants this task done: the end of a scheduler is not that of its tasks."""
        instance = self._instance
        try:
            found = instance.get_task_states(dag_id=self.dag_id, task_ids=[self.task_id], run_ids=[instance.run_id])
        except Exception as error:  # whatever goes wrong with asking, a pod too many is harmless and ends by itself
            self.log.warning("Airflow does not say whether the task goes on: %s", error)
            return True
        states = found.get(instance.run_id, {})
        key = self.task_id if instance.map_index < 0 else f"{self.task_id}_{instance.map_index}"
        return key in states and states[key] not in _OVER

    def _failed_before(self, context: Context) -> str:
        """Tasks upstream that failed, as text; empty where all is well."""
        instance = context["ti"]
        upstream = sorted(self.get_flat_relative_ids(upstream=True))
        found: Mapping[str, Mapping[str, str]] = instance.get_task_states(
            dag_id=self.dag_id, task_ids=upstream, run_ids=[instance.run_id]
        )
        states = found.get(instance.run_id, {})
        return ", ".join(f"{task} ({states[task]})" for task in upstream if states.get(task) in _RED)
