"""Messages: what stands in them, that Slack takes them, and that nothing of the data gets out of its place."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.observability import slack
from marketdata.observability.slack import FailedTask, Message, Quarantine, Run
from tests.engines.slack import problems

GOLDEN = Path(__file__).parent / "golden"

TASK = FailedTask(
    name="quality.validate",
    try_number=1,
    tries=3,
    seconds=12.34,
    error=(
        "AirflowFailException: marketdata validate failed (exit 65: bad data, not retried): commodity_prices "
        "[2026-11-20, 2026-11-21) is refused: at most 5 % of rows quarantined (observed: 17.3 %); nothing was published"
    ),
    log_url="https://airflow.example.com/dags/commodity-price-pipeline/runs/scheduled__1/tasks/quality.validate?try_number=1",
)
RUN = Run(
    environment="production",
    dag_id="commodity-price-pipeline",
    run_id="scheduled__2026-11-21T02:00:00+00:00",
    url="https://airflow.example.com/dags/commodity-price-pipeline/runs/scheduled__1",
    runbook="https://git.example.com/docs/runbooks/CommodityPipelineFailure.md",
    interval="2026-11-20 02:00 to 2026-11-21 02:00 UTC",
    started=datetime(2026, 11, 21, 2, 0, 1, tzinfo=UTC),
    ended=datetime(2026, 11, 21, 2, 3, 6, tzinfo=UTC),
    report_url="https://airflow.example.com/marketdata/report?manifest=file%3A%2F%2Flake%2Fmanifest.json",
    failed=(TASK,),
    not_run=("quality.transform", "deliver.publish", "deliver.load"),
)
KILLED = replace(TASK, name="extract", error="", seconds=None)
MESSAGES = {
    "failure": slack.failure(RUN),
    "failure_by_hand": slack.failure(replace(RUN, reason="marked as failed by ada", failed=(), report_url="")),
    "failure_of_many": slack.failure(replace(RUN, failed=(KILLED, *(replace(TASK, name=f"t[{n}]") for n in range(9))))),
    "recovery": slack.recovery(replace(RUN, failed=(), not_run=()), [RUN.run_id, "scheduled__2026-11-20"]),
    "quarantine": slack.quarantine(
        replace(RUN, failed=(), not_run=()),
        Quarantine(1000, 23, {"price ≤ 0 (WTI, 2020-04-20)": 1, "price is not a number": 22}),
    ),
    "missed_deadline": slack.missed_deadline(
        replace(RUN, ended=None, failed=(), not_run=()), datetime(2026, 11, 21, 2, 30, tzinfo=UTC)
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_as_reviewed(name: str) -> None:
    """A changed message is seen in review: delete the golden file to write it anew."""
    file = GOLDEN / f"{name}.json"
    written = json.dumps(asdict(MESSAGES[name]), indent=1, ensure_ascii=False) + "\n"
    if not file.exists():
        file.write_text(written)
        pytest.fail(f"{file.name} was written anew; look at it and run again")
    assert written == file.read_text()


@pytest.mark.parametrize("name", MESSAGES)
def test_slack_takes_them(name: str) -> None:
    assert problems(asdict(MESSAGES[name]) | {"blocks": list(MESSAGES[name].blocks)}) == []


nasty = st.text(st.sampled_from("ab &<>`*_~|@#!\n\t:/.€😀é'\"\\"), max_size=4000) | st.sampled_from(
    ["<!channel>", "<!here|x>", "<@U123>", "&amp;" * 900, "```" * 2000, "<" * 5000, "https://a|b>c", ""]
)


@settings(max_examples=60)
@given(nasty, nasty, nasty, st.integers(0, 80), nasty)
def test_whatever_the_data_says_slack_takes_it(dag: str, run: str, error: str, tasks: int, reason: str) -> None:
    failed = tuple(FailedTask(dag, 1, 1, 0.0, error, f"https://a.example/{run}") for _ in range(tasks))
    facts = Run(
        run, dag, run, f"https://a.example/{dag}", reason or "x", 0, run, None, None, reason, "", failed, (dag,) * tasks
    )
    for message in (
        slack.failure(facts),
        slack.recovery(facts, [run, dag]),
        slack.quarantine(facts, Quarantine(100, 7, {reason: 7, error: 2})),
        slack.missed_deadline(facts, datetime(2026, 1, 1, tzinfo=UTC)),
    ):
        assert problems({"text": message.text, "blocks": list(message.blocks)}) == []


@pytest.mark.parametrize(
    "text",
    [
        "could not reach postgresql://etl:S3CRET@db:5432/prices",
        "postgresql://etl:p/S3CRET@x@db/prices",
        "https://S3CRET@github.example/x",
        "POST https://hooks.slack.com/services/T0/B0/S3CRET said 404",
        "Authorization: Bearer S3CRETS3CRET",
        "Basic S3CRETS3CRET==",
        'sasl.password="S3CRET and more S3CRET"',
        "{'api_key': 'S3CRET'}",
        "AWS_SECRET_ACCESS_KEY=S3CRET",
        "token: S3CRET, user: a",
        "xoxb-123-S3CRET",
        "eyJhbGciOi.eyJS3CRET.S3CRET",
        "-----BEGIN RSA PRIVATE KEY-----\nS3CRET\n-----END RSA PRIVATE KEY-----",
        "something S3CRET said plainly",
    ],
)
def test_secrets_are_struck_out(text: str) -> None:
    assert "S3CRET" not in slack.redacted(text, ["S3CRET"] if "plainly" in text else [])
    told = slack.failure(replace(RUN, failed=(replace(TASK, error=text),)))
    if "plainly" not in text:
        assert "S3CRET" not in json.dumps(asdict(told))


@pytest.mark.parametrize(
    "text",
    [
        "commodity_prices [2026-11-20, 2026-11-21) is refused: 17.3 % (observed)",
        "read file:///data/lake/batches/x/manifest.json, line 3",
        "http://127.0.0.1:9092 refused the connection",
        "scheduled__2026-11-21T02:00:00+00:00",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert slack.redacted(text) == text


def test_a_secret_is_struck_out_before_a_text_is_cut() -> None:
    error = f"{'x' * 260} postgresql://etl:{'S3CRET' * 20}@db/prices"
    assert "S3CRET" not in json.dumps(asdict(slack.failure(replace(RUN, failed=(replace(TASK, error=error),)))))


def test_a_long_error_is_cut_and_says_so() -> None:
    message = slack.failure(replace(RUN, failed=(replace(TASK, error="<" * 10_000),)))
    section = message.blocks[2]["text"]["text"]
    assert section.endswith("…```")
    assert "&l…" not in section, "no escape is cut in two"


def test_a_task_without_error_says_what_that_means() -> None:
    assert "killed or lost" in json.dumps(asdict(slack.failure(replace(RUN, failed=(KILLED,)))))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3725, "1 h 2 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert slack.duration(seconds) == text


def test_the_stand_in_refuses_what_slack_refuses() -> None:
    def of(**block: object) -> list[str]:
        return problems({"text": "x", "blocks": [block]})

    assert of(type="header", text={"type": "plain_text", "text": "x" * 151})
    assert of(type="header", text={"type": "mrkdwn", "text": "x"})
    assert of(type="section", text={"type": "mrkdwn", "text": "x" * 3001})
    assert of(type="section", fields=[{"type": "mrkdwn", "text": "x"}] * 11)
    assert of(type="section", text={"type": "mrkdwn", "text": "a < b"})
    assert of(type="section", text={"type": "mrkdwn", "text": "<!channel>"})
    assert of(type="section", colour="red", text={"type": "mrkdwn", "text": "x"})
    assert problems({"text": "x", "blocks": [{"type": "divider"}] * 51})
    assert problems({"blocks": []}) == ["no_text"]
    assert problems({"text": "x", "blocks": list(Message("", ({"type": "divider"},)).blocks)}) == []
