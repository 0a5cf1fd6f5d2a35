"""
# Load test of the platform

Puts a load on Kafka and the streaming consumers, and judges rate, lag and loss by thresholds. It works on topics,
consumers, windows and a table of its own, on the engines of this installation, and removes them afterwards: nothing of
production is read or written, but its engines carry the load.

| step | what it does | what it leaves |
|---|---|---|
| `check` | reaches every engine; no partition may lack a replica | nothing |
| `load` | sends the load, watches lag, compares what was sent with topic and windows | a report |
| `clear` | removes what the drill has made, however it ended | nothing |

**About now.** A run has no interval. To repeat one, start a new run.

## Parameters

| parameter | meaning |
|---|---|
| `profile` | `burst`: 100,000 messages at 10,000/s. `day`: 1,000,000 at 10,000/s. `ceiling`: 10,500/s for 1 min. \
`headroom`: 37,500/s for 30 s |
| `consumers` | members of the drill's own consumer group |
| `messages` | a rehearsal with so many messages; the thresholds stay |

Example configuration: `{"profile": "ceiling"}`

## When it fails
- **bad data** (not retried): a threshold was missed. The message names it with the figure; the task `load` links to the
  report (tab *Details*), which shows rate and lag over time.
- **a dependency is down**: an engine did not answer, or was not well before the test began; tried again.
- `clear` runs whatever happened, and fails with the run, so that a failed drill is never green. It fails too where
  something could not be removed: it names what, and may be cleared and run again.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from marketdata.orchestration.defaults import Tag, Tier, default_args
from marketdata.orchestration.pod import MarketdataPodOperator

with DAG(
    dag_id="platform-load-test",
    description="Rate, lag and loss under load, judged by thresholds",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=default_args(app="drills", tier=Tier.STANDARD, owner="market-data"),
    tags=[Tag.OPERATIONS, Tag.KAFKA, Tag.TIER_STANDARD],
    params={
        "profile": Param(
            "burst", enum=["burst", "day", "ceiling", "headroom"], title="Profile", description="How much, how fast."
        ),
        "consumers": Param(3, type="integer", minimum=1, maximum=10, title="Consumers"),
        "messages": Param(
            None,
            type=["null", "integer"],
            minimum=1000,
            title="Messages",
            description="A rehearsal with so many. Default: the profile's.",
        ),
    },
) as dag:
    check = MarketdataPodOperator(
        task_id="check",
        command=["drill-check"],
        doc_md="Reaches every engine before anything is loaded.",
    )
    load = MarketdataPodOperator(
        task_id="load",
        command=[
            "load-test",
            "--profile",
            "{{ params.profile }}",
            "--consumers",
            "{{ params.consumers }}",
            "--messages",
            "{{ params.messages or 0 }}",
        ],
        profile="medium",
        pool="drills",
        doc_md="Sends the load and judges what came of it. See **Report**.",
    )
    clear = MarketdataPodOperator(
        task_id="clear",
        command=["drill-clear"],
        doc_md="Removes what the drill has made, however it ended.",
    )
    check >> load >> clear.as_teardown(setups=check, on_failure_fail_dagrun=True)
