"""A pod on a cluster: submitted once, followed to its end, its log, result and last words brought home.

**One pod.** A task's pods are numbered, and a name is there once: of two tries that want to create a pod only one can.
A try that finds a pod of its task takes it over, running or ended: what runs on the cluster does not depend on the life
of whoever started it.

**The result is the container's termination message**, which Kubernetes keeps in the pod's status: no second container,
no right to execute anything in a pod, nothing left to fetch when the pod has ended.

An API server that is away is waited for; the pod does not notice.
"""

from __future__ import annotations

import contextvars
import json
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes import watch  # type: ignore[import-untyped]
from kubernetes.client import ApiException  # type: ignore[import-untyped]
from kubernetes.client import models as k8s
from urllib3.exceptions import HTTPError

from marketdata.orchestration import output, profiles
from marketdata.orchestration.output import Outcome, Transcript, last_words

if TYPE_CHECKING:
    from airflow.sdk.types import Logger
    from kubernetes.client import CoreV1Api

API_SECONDS = 120
"""How long a silent API server is waited for. The pod goes on meanwhile."""

TROUBLE_SECONDS = 15
"""How long a container may fail to be created before its try fails; what passes by itself passes within seconds."""

GRACE_SECONDS = 30
"""Between SIGTERM and SIGKILL of a pod that is deleted."""

TOLD = "already_checked"
"""Label of a pod whose failure has been told: no try takes it over. The name is the Kubernetes provider's."""

_IDENTITY = ("dag_id", "task_id", "run_id", "map_index")
_ORDINARY = frozenset({"ContainerCreating", "PodInitializing"})
_HOPELESS = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_PASSING = frozenset({401, 409, 429, 500, 502, 503, 504})
"""Answers after which the same question may be answered; 401 because tokens expire."""

_UNCOUNTED = "status unknown for quota"
"""What is said of any pod between the making of a quota and its first count."""

_TIMEOUT = (5, 10)
_WATCH_SECONDS = 5
_LOG_SILENCE_SECONDS = 60
_LOG_END_SECONDS = 20
_LONGEST_LINE = 64 * 1024

Answer = TypeVar("Answer")


_running: set[ClusterPod] = set()


def kill_all() -> None:
    """Delete every pod this process follows: for one that is about to end and will have no successor."""
    for pod in list(_running):
        pod.kill()


class _EndingError(Exception):
    """A pod of the same task is being deleted and still runs."""


class _CannotStartError(Exception):
    """The pod will not run."""


class ClusterPod:
    """A pod of the cluster, from its creation, or from wherever an earlier try had got to, to its end.

    Args:
        pod: as it is to be submitted; a number is put behind its name.
        connect: makes a client of the cluster's API; a signal handler may call it.
        startup_seconds: a pod that does not run by then is given up.
        secrets: values to strike out of everything the command says.
        log: the task's log.
    """

    def __init__(
        self,
        pod: k8s.V1Pod,
        *,
        connect: Callable[[], CoreV1Api],
        startup_seconds: float,
        secrets: Collection[str],
        log: Logger,
    ) -> None:
        self._wanted = pod
        self._stem = pod.metadata.name
        self.namespace = pod.metadata.namespace
        self.name = self._stem
        """Of the pod; its number is there once the pod is."""
        self._connect = connect
        self._api = connect()
        self._startup_seconds = startup_seconds
        self._transcript = Transcript(log, secrets)
        self._log = log
        self._killed = False

    def run(self) -> Outcome:
        """Run the pod to its end. It is still there then; of one that failed the events are in the log.

        Raises:
            AirflowException: the pod did not run its command to an end, or what it handed over cannot be read.
            AirflowFailException: the cluster does not allow such a pod.
        """
        _running.add(self)
        try:
            return self._run()
        finally:
            _running.discard(self)

    def _run(self) -> Outcome:
        try:
            self._ask(self._claim)
        except ApiException as error:
            raise self._refused(error) from None
        if self._killed:
            self.kill()
        try:
            pod = self._follow()
        except _CannotStartError as error:
            self._tell_events()
            self.remove(grace_seconds=0)
            raise AirflowException(f"pod {self.name} {error}") from None
        ended = _terminated(pod)
        if ended is not None and ended.exit_code == 0:
            return Outcome(0, self._result(ended))
        self._tell_events()
        self._mark_told()
        self._log.info("The pod is kept: kubectl --namespace %s describe pod %s", self.namespace, self.name)
        cause = _cause(pod)
        if ended is None:
            raise AirflowException(f"pod {self.name} ended before its command did: {cause or pod.status.phase}")
        return Outcome(ended.exit_code, *self._handed_over(ended.message or "", cause or ended.reason or ""))

    def remove(self, grace_seconds: int | None = None) -> None:
        """Delete the pod, if it is there: until then whoever takes the task over asks it for the result."""
        try:
            pod = self._api.read_namespaced_pod(self.name, self.namespace, _request_timeout=_TIMEOUT)
            _delete(self._api, pod, grace_seconds)
        except (ApiException, HTTPError) as error:
            if getattr(error, "status", None) != 404:
                self._log.warning("Pod %s could not be deleted: %s", self.name, _said(error))

    def kill(self) -> None:
        """Delete the pod, running or not. A signal handler may call it."""
        self._killed = True
        try:
            # A client of its own: the interrupted one may hold a lock.
            api = self._connect()
            pod = api.read_namespaced_pod(self.name, self.namespace, _request_timeout=_TIMEOUT)
            _delete(api, pod, GRACE_SECONDS)
            self._log.info("Pod %s is deleted with its task.", self.name)
        except ApiException as error:
            if error.status != 404:
                self._log.warning("Pod %s could not be deleted: %s", self.name, _said(error))
        except HTTPError as error:
            self._log.warning("Pod %s could not be deleted and runs on to its deadline: %s", self.name, error)

    def _claim(self) -> None:
        """Take over the pod of this task that somebody has left, or create one."""
        labels = self._wanted.metadata.labels
        selector = ",".join(f"{name}={labels[name]}" for name in _IDENTITY if name in labels)
        found = self._api.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=_TIMEOUT).items
        for pod in found:
            ended = _has_ended(pod)
            if TOLD in pod.metadata.labels or (ended and not self._asks_the_same(pod)):
                continue
            if pod.metadata.deletion_timestamp is None:
                self.name = pod.metadata.name
                creator = pod.metadata.labels.get("try_number")
                self._log.info("Pod %s of try %s is there already: this try takes it over.", self.name, creator)
                return
            if not ended:
                raise _EndingError(f"pod {pod.metadata.name} of this task is still ending")
        number = 1 + max((int(pod.metadata.name.rpartition("-")[2]) for pod in found), default=-1)
        self.name = self._wanted.metadata.name = f"{self._stem}-{number}"
        self._api.create_namespaced_pod(self.namespace, self._wanted, _request_timeout=_TIMEOUT)
        self._log.info("Pod %s/%s is created.", self.namespace, self.name)

    def _asks_the_same(self, pod: k8s.V1Pod) -> bool:
        """Whether a pod's result is an answer to this try: a run that was cleared may ask anew."""
        theirs, ours = pod.spec.containers[0], self._wanted.spec.containers[0]
        return (theirs.image, theirs.args) == (ours.image, ours.args)

    def _refused(self, error: ApiException) -> AirflowException:
        said = _said(error)
        if "exceeded quota" in said:
            return AirflowException(
                f"there is no room for pod {self.name}: {said}; nothing was started (fix: wait until other pods have "
                f"ended, or raise the quota of namespace {self.namespace})"
            )
        return AirflowFailException(f"the cluster refuses pod {self.name}: {said}; nothing was started")

    def _follow(self) -> k8s.V1Pod:
        """The pod at its end; meanwhile its log goes to the task's."""
        startup = _Startup(self._startup_seconds, self._log)
        reader: _LogReader | None = None
        last: k8s.V1Pod | None = None
        try:
            for pod in self._states():
                if self._killed:
                    raise AirflowException(f"pod {self.name} was killed with its task")
                if pod is None:
                    cause = (last is not None and _cause(last)) or "it was deleted from outside"
                    raise AirflowException(f"pod {self.name} is gone: {cause}")
                last = pod
                if reader is None and _has_begun(pod):
                    self._log.info("Running on %s after %.1f s.", pod.spec.node_name, startup.seconds())
                    reader = _LogReader(self._api, pod, self._transcript)
                    reader.start()
                if _has_ended(pod):
                    if reader is not None and not reader.finish():
                        self._log.warning("The rest of the log is not here: kubectl logs %s", self.name)
                    return pod
                if reader is None:
                    startup.check(pod)
        finally:
            if reader is not None:
                reader.stop()
        raise AssertionError("a pod's states end with its end")

    def _states(self) -> Iterator[k8s.V1Pod | None]:
        """The pod whenever it changes, and at least every `_WATCH_SECONDS`; None when it is gone."""
        while True:
            try:
                pod = self._ask(
                    lambda: self._api.read_namespaced_pod(self.name, self.namespace, _request_timeout=_TIMEOUT)
                )
            except ApiException as error:
                if error.status != 404:
                    raise AirflowException(f"pod {self.name} cannot be followed: {_said(error)}") from None
                yield None
                return
            yield pod
            changes = watch.Watch().stream(
                self._api.list_namespaced_pod,
                self.namespace,
                field_selector=f"metadata.name={self.name}",
                resource_version=pod.metadata.resource_version,
                timeout_seconds=_WATCH_SECONDS,
                _request_timeout=(_TIMEOUT[0], 2 * _WATCH_SECONDS),
            )
            try:
                for change in changes:
                    yield change["object"]
                    if change["type"] == "DELETED":
                        yield None
                        return
            except (HTTPError, ApiException):
                # The next question says what is the matter, and is patient.
                continue

    def _result(self, ended: k8s.V1ContainerStateTerminated) -> Any:
        try:
            return output.result(ended.message or "")
        except AirflowException:
            # The next try would read the same.
            self.remove()
            raise

    def _handed_over(self, message: str, cause: str) -> tuple[Any, str]:
        """Result and reason of a failure. Kubernetes puts the log's end where the command wrote no result."""
        said = self._transcript.last or message.splitlines()
        why = cause if cause not in ("", "Error") else last_words(said)
        if message.strip() and message.strip().splitlines()[-1] == (said[-1:] or [""])[0].strip():
            return None, why
        try:
            return output.result(message), why
        except AirflowException:
            return None, why

    def _tell_events(self) -> None:
        """What the cluster noted about the pod, into the task's log."""
        try:
            events = self._api.list_namespaced_event(
                self.namespace, field_selector=f"involvedObject.name={self.name}", _request_timeout=_TIMEOUT
            ).items
        except (ApiException, HTTPError) as error:
            self._log.warning("The pod's events cannot be read: %s", _said(error))
            return
        for event in sorted(events, key=lambda event: str(event.metadata.creation_timestamp)):
            tell = self._log.warning if event.type == "Warning" else self._log.info
            tell("Event %s: %s", event.reason, event.message)

    def _mark_told(self) -> None:
        """Keep the next try from taking this pod over."""
        body = {"metadata": {"labels": {TOLD: "True"}}}
        try:
            self._api.patch_namespaced_pod(self.name, self.namespace, body, _request_timeout=_TIMEOUT)
        except (ApiException, HTTPError) as error:
            self._log.warning("The next try will tell of this pod again: %s", _said(error))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """The API server's answer, patiently.

        Raises:
            AirflowException: it has given none for `API_SECONDS`.
            ApiException: it refuses, and would again.
        """
        told = False

        def tell(state: tenacity.RetryCallState) -> None:
            nonlocal told
            reason = _said(state.outcome.exception()) if state.outcome else ""
            if not told:
                self._log.warning("Waiting up to %d s for the cluster: %s", API_SECONDS, reason)
            told = True
            self._api = self._connect()

        patient = tenacity.Retrying(
            stop=tenacity.stop_after_delay(API_SECONDS),
            wait=tenacity.wait_fixed(1),
            retry=tenacity.retry_if_exception(_passes),
            before_sleep=tell,
            reraise=True,
        )
        try:
            answer = patient(question)
        except (HTTPError, ApiException, _EndingError) as error:
            if not _passes(error):
                raise
            raise AirflowException(
                f"the cluster has given no usable answer for {API_SECONDS} s: {_said(error)}; "
                f"if pod {self.name} runs, the next try takes it over"
            ) from None
        if told:
            self._log.info("The cluster has answered.")
        return answer


class _Startup:
    """Whether a pod that does not run yet is waited for.

    Args:
        limit_seconds: how long it may take.
        log: the task's log.
    """

    def __init__(self, limit_seconds: float, log: Logger) -> None:
        self._limit_seconds = limit_seconds
        self._log = log
        self._begun = time.monotonic()
        self._troubled_since: float | None = None
        self._unscheduled = ""

    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def check(self, pod: k8s.V1Pod) -> None:
        """
        Raises:
            _CannotStartError: waiting is no use, or has been long enough.
        """
        now = time.monotonic()
        trouble, hopeless = _trouble(pod)
        self._troubled_since = (self._troubled_since or now) if trouble else None
        if hopeless or (self._troubled_since is not None and now - self._troubled_since >= TROUBLE_SECONDS):
            raise _CannotStartError(f"cannot start: {trouble}")
        unscheduled = _unscheduled(pod)
        if unscheduled not in ("", self._unscheduled):
            self._log.warning("The pod has no node yet: %s", unscheduled)
        self._unscheduled = unscheduled
        if self.seconds() > self._limit_seconds:
            why = trouble or unscheduled or "the cluster gives no reason"
            raise _CannotStartError(f"did not start within {self._limit_seconds:.0f} s: {why}")


class _LogReader(threading.Thread):
    """Carries the log of a pod's base container into a transcript, every line once, until the container has ended."""

    def __init__(self, api: CoreV1Api, pod: k8s.V1Pod, transcript: Transcript) -> None:
        context = contextvars.copy_context()
        super().__init__(name=f"log of {pod.metadata.name}", daemon=True, target=lambda: context.run(self._read))
        self._api = api
        self._pod = pod
        self._transcript = transcript
        self._ended = threading.Event()
        self._stopped = threading.Event()
        self._newest = ""

    def finish(self) -> bool:
        """Wait for the last line; False if it does not come."""
        self._ended.set()
        self.join(_LOG_END_SECONDS)
        return not self.is_alive()

    def stop(self) -> None:
        self._stopped.set()

    def _read(self) -> None:
        while not self._stopped.is_set():
            last = self._ended.is_set()
            try:
                self._read_on()
            except ApiException as error:
                if error.status == 404:
                    return
            except HTTPError:
                last = False
            if last:
                return
            # A stream that ends while the pod's status says "running" is ahead of it, or was cut.
            self._ended.wait(0.5)

    def _read_on(self) -> None:
        response = self._api.read_namespaced_pod_log(
            self._pod.metadata.name,
            self._pod.metadata.namespace,
            container="base",
            follow=True,
            timestamps=True,
            _preload_content=False,
            _request_timeout=(_TIMEOUT[0], _LOG_SILENCE_SECONDS),
        )
        try:
            newest = self._newest
            for line in _lines(response.stream()):
                stamp, _, text = line.partition(" ")
                if stamp > newest:
                    self._newest = stamp
                    if text.strip():
                        self._transcript.say(text)
                if self._stopped.is_set():
                    return
        finally:
            response.close()


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        yield from (line[:_LONGEST_LINE].decode(errors="replace") for line in lines)
    if rest:
        yield rest.decode(errors="replace")


def _base(pod: k8s.V1Pod) -> k8s.V1ContainerState | None:
    statuses = pod.status.container_statuses or []
    return next((status.state for status in statuses if status.name == "base"), None)


def _terminated(pod: k8s.V1Pod) -> k8s.V1ContainerStateTerminated | None:
    state = _base(pod)
    return state.terminated if state is not None else None


def _has_begun(pod: k8s.V1Pod) -> bool:
    state = _base(pod)
    return state is not None and (state.running is not None or state.terminated is not None)


def _has_ended(pod: k8s.V1Pod) -> bool:
    return _terminated(pod) is not None or pod.status.phase in ("Succeeded", "Failed")


def _trouble(pod: k8s.V1Pod) -> tuple[str, bool]:
    """Why a container cannot be created, empty where nothing is wrong; and whether waiting is no use."""
    state = _base(pod)
    waiting = state.waiting if state is not None else None
    if waiting is None or not waiting.reason or waiting.reason in _ORDINARY:
        return "", False
    text = f"{waiting.reason}: {waiting.message or 'no more is known'}"
    if "Image" in waiting.reason:
        image = pod.spec.containers[0].image
        text += f" (fix: set MARKETDATA_IMAGE to an image the node can get, not {image})"
    elif waiting.reason == "CreateContainerConfigError":
        text += f" (fix: create it in namespace {pod.metadata.namespace})"
    return text, waiting.reason in _HOPELESS


def _unscheduled(pod: k8s.V1Pod) -> str:
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message}"
    return ""


def _cause(pod: k8s.V1Pod) -> str:
    """Why a pod ended, where it was not the command's own doing; else empty."""
    status, ended = pod.status, _terminated(pod)
    if status.reason == "DeadlineExceeded":
        return f"it ran longer than its deadline of {pod.spec.active_deadline_seconds} s and was killed"
    if ended is not None and ended.reason == "OOMKilled":
        return _out_of_memory(pod)
    if status.message or status.reason:
        return f"{status.reason or 'ended by the cluster'}: {status.message or 'no more is known'}"
    for condition in status.conditions or []:
        if condition.type == "DisruptionTarget" and condition.status == "True":
            return f"it was evicted from its node ({condition.reason}: {condition.message})"
    if pod.metadata.deletion_timestamp is not None:
        return "it was deleted from outside while its command ran"
    if ended is not None and ended.exit_code == 128 + signal.SIGKILL:
        # A runtime that hears of a container's end before it hears of the memory reports the end alone.
        return f"most likely {_out_of_memory(pod)}"
    return ""


def _out_of_memory(pod: k8s.V1Pod) -> str:
    limit = pod.spec.containers[0].resources.limits["memory"]
    larger = profiles.larger_than(limit)
    remedy = f"profile {larger} has more" if larger else "no profile has more: give it less at once"
    return f"out of memory: its limit is {limit} (fix: {remedy})"


def _delete(api: CoreV1Api, pod: k8s.V1Pod, grace_seconds: int | None) -> None:
    options = k8s.V1DeleteOptions(
        grace_period_seconds=grace_seconds, preconditions=k8s.V1Preconditions(uid=pod.metadata.uid)
    )
    api.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace, body=options, _request_timeout=_TIMEOUT)


def _passes(error: BaseException) -> bool:
    """Whether the same question may be answered a moment later."""
    if isinstance(error, ApiException):
        return error.status in _PASSING or _UNCOUNTED in _said(error)
    return isinstance(error, HTTPError | _EndingError)


def _said(error: BaseException | None) -> str:
    """An error in one line; of an answer of the API server, its message."""
    if isinstance(error, ApiException):
        try:
            return str(json.loads(error.body)["message"])
        except (TypeError, ValueError, KeyError):
            return f"{error.status} {error.reason}"
    return " ".join(str(error).split())
