"""Whatever becomes of a pod, its task says it: the operator on a real API server and a real kubelet."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from marketdata.orchestration import environment, pod, policy, profiles
from marketdata.orchestration.pod import STARTUP_SECONDS
from tests.engines.kubernetes.cluster import Cluster
from tests.engines.kubernetes.objects import hardened
from tests.kubernetes.launching import Launch, Relay, Try, command_image, launch, launcher, relay
from tests.waiting import until

__all__ = ["command_image", "launch", "launcher", "relay"]

FOREVER = "print('AT WORK'.lower(), flush=True)\ntime.sleep(600)"
"""What a command says is not in its words, which are in the log too."""
CANARY = "c4n4ry-of-the-api-key"


def profile(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Change what profile `small` gives."""
    monkeypatch.setitem(profiles.PROFILES, "small", dataclasses.replace(profiles.PROFILES["small"], **changes))


def reasons(cluster: Cluster, ran: Try) -> set[str]:
    """Of the events of a try's pod."""
    return {event["reason"] for event in cluster.events(policy.NAMESPACE, ran.pod_name())}


def test_a_commands_result_and_every_line_come_home(launch: Launch) -> None:
    code = "for number in range(500): print('line', number)\nresult = {'batch': 's3://lake/ü', 'rows': 3}"
    ran = launch(code)
    assert ran.succeeded() == {"batch": "s3://lake/ü", "rows": 3}
    assert ran.xcom == {"return_value": ran.result}
    lines = [line for line in ran.log.splitlines() if " line " in line]
    assert lines == [f"INFO line {number}" for number in range(500)], "each once, in order"
    until("the pod is gone", lambda: not ran.pods())


def test_lines_are_there_while_the_command_runs(launch: Launch) -> None:
    ran = launch("print('FIRST'.lower(), flush=True); wait_for_the_test(); print('LAST'.lower())")
    ran.said("first")
    assert ran.is_running
    assert "last" not in ran.log
    ran.go()
    ran.succeeded()
    assert ran.log.count("first") == ran.log.count("last") == 1


def test_a_result_too_large_to_keep_is_told(launch: Launch) -> None:
    assert "not smaller than 4096 bytes" in str(launch("result = 'x' * 5000").failed())


def test_two_failures_and_then_a_success(launch: Launch) -> None:
    code = (
        "print('error: no broker answers', file=sys.stderr)\nresult = {'rows': attempt}\nsys.exit(75 * (attempt < 3))"
    )
    run_id = f"r{time.time_ns()}"
    for attempt in (1, 2):
        ran = launch(code, run_id=run_id, attempt=attempt)
        error = ran.failed()
        assert type(error) is AirflowException, "it is tried again"
        assert str(error) == "marketdata exec failed (exit 75: try later): no broker answers"
        assert ran.xcom == {"return_value": {"rows": attempt}}
        assert len(ran.pods()) == attempt, "failed pods are kept"
        assert f"kubectl --namespace production describe pod {ran.pod_name()}" in ran.log
    assert launch(code, run_id=run_id, attempt=3).succeeded() == {"rows": 3}


@pytest.mark.parametrize("code", [64, 65])
def test_what_would_fail_again_is_not_tried_again(launch: Launch, code: int) -> None:
    words = f"print('error: 7 % refused', file=sys.stderr); print('  fix: look', file=sys.stderr); sys.exit({code})"
    error = launch(words).failed()
    assert type(error) is AirflowFailException
    assert str(error).endswith("7 % refused (fix: look)")


def test_a_failures_events_and_last_words_are_in_the_log_and_no_spec_or_secret(
    launch: Launch, cluster: Cluster
) -> None:
    secret = {
        "apiVersion": "v1", "kind": "Secret", "stringData": {"api_key": CANARY},
        "metadata": {"name": "commodity-api-credentials", "namespace": policy.NAMESPACE},
    }  # fmt: skip
    cluster.kubectl("apply", "--filename=-", input=yaml.safe_dump(secret))
    try:
        ran = launch("wait_for_the_test(); assert os.environ['COMMODITY_API_KEY']; print('Traceback'); sys.exit(70)")
        until("its start is noted", lambda: "Started" in reasons(cluster, ran))
        ran.go()
        ran.failed()
    finally:
        cluster.kubectl("delete", "secret", "commodity-api-credentials", f"--namespace={policy.NAMESPACE}")
    assert "INFO Traceback" in ran.log
    assert "INFO Event Scheduled: Successfully assigned" in ran.log
    assert "Event Started" in ran.log
    for hidden in (CANARY, "secretKeyRef", "secret_key_ref", "securityContext", "readOnlyRootFilesystem"):
        assert hidden not in ran.log + str(ran.error)


def test_a_killed_task_takes_its_pod_with_it(launch: Launch) -> None:
    ran = launch(FOREVER)
    ran.said("at work")
    ran.task.on_kill()
    assert "was killed with its task" in str(ran.failed())
    until("the pod is gone", lambda: not ran.pods())


def test_a_task_killed_before_its_pod_is_there_leaves_none(launch: Launch) -> None:
    ran = launch(FOREVER)
    ran.task.on_kill()
    assert "was killed" in str(ran.failed())
    until("no pod is left", lambda: not ran.pods(), 120)


def test_a_pod_that_runs_too_long_says_so(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(monkeypatch, deadline_seconds=4)
    error = launch(FOREVER).failed()
    assert type(error) is AirflowException
    assert "it ran longer than its deadline of 4 s and was killed" in str(error)


def test_an_eviction_is_named(launch: Launch, cluster: Cluster) -> None:
    ran = launch(FOREVER)
    ran.said("at work")
    cluster.evict(policy.NAMESPACE, ran.pod_name())
    error = ran.failed()
    assert type(error) is AirflowException, "it is tried again"
    assert "evicted from its node (EvictionByEvictionAPI" in str(error)


def test_a_pod_deleted_by_hand_is_named(launch: Launch, cluster: Cluster) -> None:
    ran = launch(FOREVER)
    ran.said("at work")
    cluster.kubectl("delete", "pod", ran.pod_name(), f"--namespace={policy.NAMESPACE}", "--wait=false")
    error = ran.failed()
    assert type(error) is AirflowException
    assert "deleted from outside" in str(error)


def test_a_pod_torn_away_is_named(launch: Launch, cluster: Cluster) -> None:
    ran = launch(FOREVER)
    ran.said("at work")
    words = ("delete", "pod", ran.pod_name(), f"--namespace={policy.NAMESPACE}", "--force", "--grace-period=0")
    cluster.kubectl(*words)
    assert "deleted from outside" in str(ran.failed())


def test_out_of_memory_names_the_limit_and_the_profile_that_has_more(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(monkeypatch, memory=("64Mi", "64Mi"))
    error = launch("hoard = []\nwhile True: hoard.append(bytearray(1_000_000))").failed()
    assert type(error) is AirflowException
    assert str(error).endswith("out of memory: its limit is 64Mi (fix: profile medium has more)")


def test_an_image_that_is_not_there_is_told_long_before_the_time_is_up(launch: Launch) -> None:
    launch.image("registry.invalid/marketdata-task:0.0.0")
    ran = launch("")
    error = ran.failed(STARTUP_SECONDS / 2)
    assert "cannot start: " in str(error)
    assert "ImagePull" in str(error)
    assert "fix: set MARKETDATA_IMAGE to an image the node can get, not registry.invalid/" in str(error)
    assert "Event Failed: Failed to pull image" in ran.log
    until("the pod is gone and can't run later", lambda: not ran.pods())


def test_an_image_that_no_registry_could_have_is_told_at_once(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketdata.orchestration.cluster.TROUBLE_SECONDS", 600)
    launch.image("localhost/no such image:1")
    assert "cannot start: InvalidImageName" in str(launch("").failed())


def test_a_missing_secret_is_named(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketdata.orchestration.cluster.TROUBLE_SECONDS", 10)
    absent = environment.SecretKey("absent-credentials", "kafka_brokers", optional=False)
    monkeypatch.setitem(environment.SECRETS, "KAFKA_BROKERS", absent)  # type: ignore[arg-type]
    error = launch("").failed()
    assert 'secret "absent-credentials" not found (fix: create it in namespace production)' in str(error)


def test_a_pod_without_a_place_is_told_at_once_and_given_up_in_time(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(monkeypatch, cpu=("100", "100"))  # the quota has more, no node does
    monkeypatch.setattr(pod, "STARTUP_SECONDS", 20)
    ran = launch("")
    ran.said("WARNING The pod has no node yet: Unschedulable: 0/")
    assert "Insufficient cpu" in ran.log
    assert ran.is_running, "a node may come"
    error = ran.failed()
    assert "did not start within 20 s: Unschedulable: 0/" in str(error)
    assert "Event FailedScheduling" in ran.log
    until("the pod is gone and can't run later", lambda: not ran.pods())


def test_a_full_namespace_is_told_as_such(launch: Launch, cluster: Cluster) -> None:
    """The quota counts the pods of one tier, so that it is nobody else's business."""
    quota = {
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": "operator-test", "namespace": policy.NAMESPACE},
        "spec": {"hard": {"pods": "0"}, "scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["marketdata-standard"]}]}},
    }  # fmt: skip
    cluster.kubectl("apply", "--filename=-", input=yaml.safe_dump(quota))
    try:
        like_it = hardened("like-it", ["true"], priorityClassName="marketdata-standard")
        until("the quota counts", lambda: "exceeded quota" in cluster.refusal(policy.NAMESPACE, like_it))
        ran = launch("", tier="standard")
        error = ran.failed()
    finally:
        cluster.kubectl("delete", "resourcequota", "operator-test", f"--namespace={policy.NAMESPACE}")
    assert type(error) is AirflowException, "it is tried again"
    assert "there is no room for pod operator-test-exec-" in str(error)
    assert "exceeded quota: operator-test, requested: pods=1, used: pods=0, limited: pods=0" in str(error)
    assert "nothing was started (fix: wait until other pods have ended" in str(error)
    assert "readOnlyRootFilesystem" not in ran.log


def test_a_refusal_for_good_is_not_tried_again(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "violations", lambda _: [])
    monkeypatch.setattr(policy, "pod_security_context", lambda: None)
    error = launch("").failed()
    assert type(error) is AirflowFailException
    assert 'violates PodSecurity "restricted' in str(error)
    assert "runAsNonRoot" in str(error)
    assert "nothing was started" in str(error)


def test_the_next_try_takes_over_what_still_runs(launch: Launch) -> None:
    code = "print('BEGUN'.lower(), flush=True); wait_for_the_test(); result = attempt"
    first = launch(code)
    first.said("begun")
    second = launch(code, run_id=first.run_id, attempt=2)
    second.said("is there already: this try takes it over")
    first.state = "running"
    with pytest.raises(AirflowException, match="is left to the next one"):
        first.task.on_kill()
    first.go()
    assert second.succeeded() == 1, "what the pod of the first try says"
    assert second.log.count("begun") == 1, "the log from its beginning"
    assert launch.created(first) == 1


def test_two_tries_at_once_have_one_pod(launch: Launch) -> None:
    run_id = f"r{time.time_ns()}"
    code = "wait_for_the_test(); result = 'of the one pod'"
    tries = [launch(code, run_id=run_id, attempt=attempt) for attempt in (1, 2)]
    until("one has taken over", lambda: any("this try takes it over" in ran.log for ran in tries))
    tries[0].go()
    assert {ran.succeeded() for ran in tries} == {"of the one pod"}
    assert launch.created(tries[0]) == 1


def test_a_pod_that_ended_unseen_is_not_run_again(launch: Launch) -> None:
    """Its first try has lost Airflow; the answer is there all the same, if it is the answer to this question."""
    first = launch.unheard("result = attempt")
    assert launch("result = attempt", run_id=first.run_id, attempt=2).succeeded() == 1
    assert launch.created(first) == 1
    until("its pod is gone", lambda: not first.pods())

    first = launch.unheard("result = attempt")
    assert launch("result = 'asked anew'", run_id=first.run_id, attempt=2).succeeded() == "asked anew"


def test_a_pod_that_is_ending_is_waited_for(launch: Launch, cluster: Cluster) -> None:
    """Two pods of one task never run at the same time."""
    stubborn = "signal.signal(signal.SIGTERM, lambda *_: None)\nprint('AT WORK'.lower(), flush=True)\n"
    stubborn += "wait_for_the_test()"
    first = launch(stubborn)
    first.said("at work")
    first.task.on_kill()
    second = launch("result = 2", run_id=first.run_id, attempt=2)
    second.said("is still ending")
    first.go()
    assert second.succeeded() == 2
    starts = {each["metadata"]["name"] for each in second.pods()}
    assert len(starts) <= 1


def test_an_api_server_away_for_20_s_is_survived(launch: Launch, relay: Relay) -> None:
    launch.connect(relay.kubeconfig)
    code = "for number in range(26): print('line', number, flush=True); time.sleep(1)\nresult = 'whole'"
    ran = launch(code)
    ran.said("INFO line 1")
    for interruption in (relay.refusing, relay.silent):
        with interruption():
            begun = time.monotonic()
            until("10 s have passed", lambda begun=begun: time.monotonic() - begun > 10)
    assert ran.succeeded() == "whole"
    lines = [line for line in ran.log.splitlines() if " line " in line]
    assert lines == [f"INFO line {number}" for number in range(26)], "each once, in order"
    assert "Waiting up to 120 s for the cluster" in ran.log
    assert "The cluster has answered." in ran.log


def test_a_cluster_that_never_answers_is_told(launch: Launch, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marketdata.orchestration.cluster.API_SECONDS", 3)
    launch.connect(relay.kubeconfig)
    with relay.refusing():
        error = launch("").failed()
    assert type(error) is AirflowException
    assert "the cluster has given no usable answer for 3 s" in str(error)
