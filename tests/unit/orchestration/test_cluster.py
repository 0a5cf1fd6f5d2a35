"""How a pod is submitted and followed, told by a cluster that does what a test says; tests/kubernetes has real ones."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client import ApiClient, ApiException, V1PodList
from kubernetes.client import models as k8s
from urllib3.exceptions import ProtocolError

from marketdata.orchestration import cluster
from marketdata.orchestration.cluster import ClusterPod
from marketdata.orchestration.output import Outcome

LABELS = {"dag_id": "d", "task_id": "t", "run_id": "r", "try_number": "2"}
CLIENT = ApiClient()


def state(**base: Any) -> dict[str, Any]:
    """A pod's status with its container in this state."""
    return {"phase": "Running", "containerStatuses": [{
        "name": "base", "image": "i", "imageID": "i", "ready": True, "restartCount": 0, "state": base}]}  # fmt: skip


def ended(code: int, message: str = "", reason: str = "Error", **status: Any) -> dict[str, Any]:
    terminated = {"exitCode": code, "message": message, "reason": "Completed" if code == 0 else reason}
    return {**state(terminated=terminated), "phase": "Failed" if code else "Succeeded", **status}


def waiting(reason: str, message: str = "why") -> dict[str, Any]:
    return {**state(waiting={"reason": reason, "message": message}), "phase": "Pending"}


RUNNING = state(running={})
PENDING: dict[str, Any] = {"phase": "Pending"}
NO_NODE = {"phase": "Pending", "conditions": [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]}  # fmt: skip
GONE = "gone"


def refused(status: int, message: str = "") -> ApiException:
    error = ApiException(status=status, reason="why")
    error.body = json.dumps({"message": message})
    return error


class Response:
    def __init__(self, chunks: list[bytes], then: Exception | None = None) -> None:
        self.chunks, self.then = chunks, then

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield from self.chunks
        if self.then is not None:
            raise self.then

    def close(self) -> None: ...
    def release_conn(self) -> None: ...


class Api:
    """A cluster with one namespace, where the pod that is watched goes through `states`."""

    def __init__(self, *states: Any, log: list[Response] | None = None) -> None:
        self.states = list(states)
        self.logs = log or [Response([])]
        self.pods: dict[str, k8s.V1Pod] = {}
        self.events: list[Any] = []
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.fails: list[Exception] = []

    def add(self, name: str, status: dict[str, Any], **labels: str) -> k8s.V1Pod:
        pod = copy.deepcopy(wanted())
        pod.metadata.name, pod.metadata.uid, pod.metadata.resource_version = name, f"uid-{name}", "1"
        pod.metadata.labels = {**LABELS, **labels}
        self.pods[name] = pod
        self._become(name, status)
        return pod

    def _become(self, name: str, status: dict[str, Any]) -> None:
        answer = type("Answer", (), {"data": json.dumps(status)})
        self.pods[name].status = CLIENT.deserialize(answer, "V1PodStatus")

    def list_namespaced_pod(self, namespace: str, **asked: Any) -> Any:
        """:rtype: V1PodList"""
        if self.fails:
            raise self.fails.pop(0)
        if not asked.get("watch"):
            return V1PodList(items=list(self.pods.values()))
        name = asked["field_selector"].partition("=")[2]
        return Response([self._change(name)] if self.states else [], None if self.states else ProtocolError("cut"))

    def _change(self, name: str) -> bytes:
        status = self.states.pop(0)
        kind = "MODIFIED"
        if status == GONE:
            kind = "DELETED"
        else:
            self._become(name, status)
        pod = CLIENT.sanitize_for_serialization(self.pods[name])
        if kind == "DELETED":
            del self.pods[name]
        return json.dumps({"type": kind, "object": pod}).encode() + b"\n"

    def create_namespaced_pod(self, namespace: str, pod: k8s.V1Pod, **_: Any) -> None:
        if pod.metadata.name in self.pods:
            raise refused(409)
        self.created.append(pod.metadata.name)
        self.add(pod.metadata.name, PENDING)

    def read_namespaced_pod(self, name: str, namespace: str, **_: Any) -> k8s.V1Pod:
        if self.fails:
            raise self.fails.pop(0)
        if name not in self.pods:
            raise refused(404)
        return self.pods[name]

    def patch_namespaced_pod(self, name: str, namespace: str, body: Any, **_: Any) -> None:
        self.pods[name].metadata.labels.update(body["metadata"]["labels"])

    def delete_namespaced_pod(self, name: str, namespace: str, **_: Any) -> None:
        self.deleted.append(name)

    def list_namespaced_event(self, namespace: str, **_: Any) -> Any:
        return type("Events", (), {"items": self.events})

    def read_namespaced_pod_log(self, name: str, namespace: str, **_: Any) -> Response:
        return self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]


def wanted() -> k8s.V1Pod:
    base = k8s.V1Container(
        name="base", image="i:1", args=["load"], resources=k8s.V1ResourceRequirements(limits={"memory": "1Gi"})
    )
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="d-load-abc", namespace="production", labels=dict(LABELS)),
        spec=k8s.V1PodSpec(containers=[base], active_deadline_seconds=900, node_name="n1"),
    )


def submit(api: Api, startup_seconds: float = 300) -> ClusterPod:
    return ClusterPod(
        wanted(), connect=lambda: api, startup_seconds=startup_seconds, secrets=["s3cr3t"],
        log=logging.getLogger("pod"),
    )  # fmt: skip


def run(*states: Any, **said: Any) -> Outcome:
    return submit(Api(*states, **said)).run()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cluster.tenacity, "wait_fixed", lambda _: cluster.tenacity.wait_none())
    caplog.set_level(logging.INFO)


def test_success() -> None:
    api = Api(PENDING, RUNNING, ended(0, '{"rows": 3}'))
    pod = submit(api)
    assert pod.run() == Outcome(0, {"rows": 3})
    assert api.created == ["d-load-abc-0"]
    assert not api.deleted, "what it handed over is kept nowhere else yet"
    pod.remove()
    assert api.deleted == ["d-load-abc-0"]


def test_a_success_that_handed_over_no_json_is_not_asked_again() -> None:
    api = Api(RUNNING, ended(0, '{"rows"'))
    with pytest.raises(AirflowException, match="JSON"):
        submit(api).run()
    assert api.deleted == ["d-load-abc-0"]


def test_a_result_and_a_reason_of_a_failure() -> None:
    said = Response([b"2026-01-01T00:00:01.000000000Z error: 7 % refused\n"])
    assert run(RUNNING, ended(65, '{"batch": "s3://b"}'), log=[said]) == Outcome(65, {"batch": "s3://b"}, "7 % refused")


def test_the_end_of_a_log_is_no_result() -> None:
    said = Response([b"2026-01-01T00:00:01.000000000Z 17\n"])
    assert run(RUNNING, ended(70, "17\n"), log=[said]) == Outcome(70, None, "17")
    assert run(RUNNING, ended(70, "error: all there is")) == Outcome(70, None, "all there is")
    assert run(RUNNING, ended(70, "x\nbroken {")).why == "broken {"


def test_a_failed_pod_is_kept_and_marked_with_its_events_told(caplog: pytest.LogCaptureFixture) -> None:
    api = Api(RUNNING, ended(69))
    event = {"reason": "Pulled", "message": "there", "type": "Normal", "metadata": k8s.V1ObjectMeta()}
    api.events = [type("Event", (), event)]
    submit(api).run()
    assert api.pods["d-load-abc-0"].metadata.labels[cluster.TOLD] == "True"
    assert not api.deleted
    assert "Event Pulled: there" in caplog.text


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (ended(137, reason="OOMKilled"), "out of memory: its limit is 1Gi (fix: profile medium has more)"),
        (ended(137), "most likely out of memory: its limit is 1Gi (fix: profile medium has more)"),
        (ended(137, phase="Failed") | {"reason": "DeadlineExceeded"}, "it ran longer than its deadline of 900 s"),
        (ended(137) | {"reason": "Evicted", "message": "low on disk"}, "Evicted: low on disk"),
        (ended(143) | {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Drain",
            "message": "node goes"}]}, "evicted from its node (Drain: node goes)"),
    ],
)  # fmt: skip
def test_what_was_not_the_commands_own_doing_is_named(status: dict[str, Any], why: str) -> None:
    assert why in run(RUNNING, status).why


def test_no_profile_has_more_than_the_largest() -> None:
    api = Api(RUNNING, ended(137, reason="OOMKilled"))
    pod = submit(api)
    pod._wanted.spec.containers[0].resources.limits["memory"] = "4Gi"
    api.add("d-load-abc-0", RUNNING).spec.containers[0].resources.limits["memory"] = "4Gi"
    assert "no profile has more" in pod.run().why


def test_a_pod_that_ended_before_its_command_began() -> None:
    with pytest.raises(AirflowException, match="ended before its command did: OutOfcpu: no room on the node"):
        run({"phase": "Failed", "reason": "OutOfcpu", "message": "no room on the node"})


@pytest.mark.parametrize("states", [(RUNNING, GONE), (PENDING, GONE)])
def test_a_pod_that_is_gone(states: Any) -> None:
    with pytest.raises(AirflowException, match="d-load-abc-0 is gone: it was deleted from outside"):
        run(*states)


@pytest.mark.parametrize("reason", ["InvalidImageName", "ErrImageNeverPull"])
def test_what_is_hopeless_is_given_up_at_once_and_deleted(reason: str) -> None:
    api = Api(waiting(reason))
    with pytest.raises(AirflowException, match=rf"cannot start: {reason}: why \(fix: set MARKETDATA_IMAGE"):
        submit(api).run()
    assert api.deleted == ["d-load-abc-0"]


def test_trouble_may_pass_and_is_given_up_when_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(waiting("CreateContainerConfigError"), waiting("ContainerCreating"), RUNNING, ended(0)).exit_code == 0
    monkeypatch.setattr(cluster, "TROUBLE_SECONDS", 0)
    with pytest.raises(AirflowException, match="CreateContainerConfigError: why"):
        run(waiting("CreateContainerConfigError"))


def test_a_pod_without_a_node_is_told_once_and_given_up_in_time(caplog: pytest.LogCaptureFixture) -> None:
    assert run(NO_NODE, NO_NODE, RUNNING, ended(0)).exit_code == 0
    assert caplog.text.count("no node yet: Unschedulable: 0/1 nodes") == 1
    api = Api()
    api.add("d-load-abc-0", NO_NODE)
    with pytest.raises(AirflowException, match="did not start within 0 s: Unschedulable: 0/1 nodes"):
        submit(api, startup_seconds=0).run()
    assert api.deleted == ["d-load-abc-0"], "it cannot start later"
    with pytest.raises(AirflowException, match="the cluster gives no reason"):
        submit(Api(PENDING, PENDING), startup_seconds=0).run()


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            refused(403, "exceeded quota: q"),
            AirflowException,
            "there is no room for pod .*: exceeded quota: q; nothing",
        ),
        (refused(403, "violates PodSecurity"), AirflowFailException, "refuses pod .*: violates PodSecurity; nothing"),
    ],
)
def test_a_pod_that_is_refused(error: Exception, kind: type[Exception], says: str) -> None:
    api = Api()
    api.fails = [error]
    with pytest.raises(AirflowException, match=says) as raised:
        submit(api).run()
    assert type(raised.value) is kind


class TestTakingOver:
    """Whatever an earlier try has left."""

    def test_what_runs(self) -> None:
        api = Api(ended(0, "1"))
        api.add("d-load-abc-0", RUNNING, try_number="1")
        assert submit(api).run() == Outcome(0, 1)
        assert not api.created

    def test_what_has_ended(self) -> None:
        api = Api()
        api.add("d-load-abc-0", ended(0, "1"), try_number="1")
        assert submit(api).run() == Outcome(0, 1)
        assert not api.created

    def test_not_what_has_ended_with_an_answer_to_another_question(self) -> None:
        api = Api(ended(0, "2"))
        api.add("d-load-abc-0", ended(0, "1")).spec.containers[0].args = ["load", "--other"]
        assert submit(api).run() == Outcome(0, 2)
        assert api.created == ["d-load-abc-1"]

    def test_not_what_has_been_told(self) -> None:
        api = Api(ended(0, "2"))
        api.add("d-load-abc-7", ended(70), **{cluster.TOLD: "True"})
        submit(api).run()
        assert api.created == ["d-load-abc-8"], "numbers go on"

    def test_what_is_ending_is_waited_for(self, caplog: pytest.LogCaptureFixture) -> None:
        api = Api(ended(0, "2"))
        dying = api.add("d-load-abc-0", RUNNING)
        dying.metadata.deletion_timestamp = "2026-01-01T00:00:00Z"
        connected = []

        def connect() -> Any:
            if connected:
                api._become("d-load-abc-0", ended(143))
            connected.append(api)
            return api

        pod = ClusterPod(wanted(), connect=connect, startup_seconds=9, secrets=(), log=logging.getLogger())
        assert pod.run() == Outcome(0, 2)
        assert "is still ending" in caplog.text
        assert api.created == ["d-load-abc-1"]

    def test_another_try_was_faster(self) -> None:
        api = Api(ended(0, "1"))
        listed = api.list_namespaced_pod

        def list_and_lose(namespace: str, **asked: Any) -> Any:
            """:rtype: V1PodList"""
            answer = listed(namespace, **asked)
            if not api.pods:
                api.add("d-load-abc-0", RUNNING, try_number="1")
            return answer

        api.list_namespaced_pod = list_and_lose  # type: ignore[method-assign]
        assert submit(api).run() == Outcome(0, 1)
        assert not api.created


def test_a_silent_api_server_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    api = Api(RUNNING, ended(0, "1"))
    api.fails = [ProtocolError("reset"), refused(503), refused(401)]
    assert submit(api).run() == Outcome(0, 1)
    assert caplog.text.count("Waiting up to 120 s for the cluster: reset") == 1
    assert "The cluster has answered." in caplog.text


def test_a_quota_that_is_not_counted_yet_is_waited_for() -> None:
    api = Api(RUNNING, ended(0, "1"))
    api.fails = [refused(403, "pods is forbidden: status unknown for quota: quota, resources: pods")]
    assert submit(api).run() == Outcome(0, 1)
    assert api.created


def test_an_api_server_that_stays_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "API_SECONDS", 0)
    api = Api()
    api.fails = [refused(503, "no leader")] * 2
    with pytest.raises(AirflowException, match="no usable answer for 0 s: no leader; if pod d-load-abc runs, the next"):
        submit(api).run()


def test_a_question_that_may_not_be_asked() -> None:
    api = Api()
    pod = submit(api)
    api.create_namespaced_pod = lambda *_, **__: api.fails.append(refused(403, "cannot get pods"))  # type: ignore[method-assign]
    with pytest.raises(AirflowException, match="cannot be followed: cannot get pods"):
        pod.run()


def test_the_log_is_carried_once_whatever_cuts_it(caplog: pytest.LogCaptureFixture) -> None:
    def line(number: int) -> bytes:
        return b"2026-01-01T00:00:%02d.000000000Z line %d\n" % (number, number)

    first = Response([line(1) + line(2)[:-5], line(2)[-5:]], ProtocolError("cut"))
    second = Response([line(1) + line(2) + line(3), b"2026-01-01T00:00:04.000000000Z it is s3cr3t"])
    assert run(RUNNING, RUNNING, ended(0), log=[first, second]).exit_code == 0
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith(("line", "it is"))]
    assert told == ["line 1", "line 2", "line 3", "it is ***"]


def test_a_line_without_end_is_cut() -> None:
    (only,) = cluster._lines([b"x" * cluster._LONGEST_LINE, b"x" * 10])
    assert len(only) == cluster._LONGEST_LINE


class TestKilling:
    def test_its_own_pod(self) -> None:
        api = Api()
        pod = submit(api)
        pod.name = "d-load-abc-0"
        api.add("d-load-abc-0", RUNNING)
        pod.kill()
        assert api.deleted == ["d-load-abc-0"]

    def test_all_that_a_process_follows(self) -> None:
        api = Api(RUNNING)
        changed = api._change

        def told_to_end(name: str) -> bytes:
            cluster.kill_all()
            return changed(name)

        api._change = told_to_end  # type: ignore[method-assign]
        with pytest.raises(AirflowException, match="was killed with its task"):
            submit(api).run()
        assert api.deleted == ["d-load-abc-0"]
        cluster.kill_all()
        assert api.deleted == ["d-load-abc-0"], "what has ended is followed no more"

    def test_before_there_is_one(self) -> None:
        api = Api(RUNNING)
        pod = submit(api)
        pod.kill()
        with pytest.raises(AirflowException, match="was killed with its task"):
            pod.run()
        assert api.deleted == ["d-load-abc-0"]

    def test_a_cluster_that_does_not_answer_is_no_reason_to_fail(self, caplog: pytest.LogCaptureFixture) -> None:
        for error, says in ((ProtocolError("away"), "runs on to its deadline"), (refused(500, "no"), "deleted: no")):
            api = Api()
            pod = submit(api)
            api.fails = [error]
            pod.kill()
            assert says in caplog.text
