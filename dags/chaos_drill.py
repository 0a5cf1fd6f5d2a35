"""
# Chaos drill

Kills, cuts off and heals what the platform stands on, under a steady load, and judges how soon all is well again and
that nothing was lost. It works on topics, consumers, windows and a table of its own, and removes them afterwards.

| scenario | what is struck | well again within |
|---|---|---|
| `consumer-crash` | the drill's own consumer is killed | 30 s |
| `broker-failure` | a broker is killed and started again | 60 s |
| `network-partition` | a broker cannot be reached for 15 s | 60 s after healing |
| `trino-down` | the drill's own load is cut off from Trino for 10 s while it merges | 60 s after healing |
| `task-evicted` | the drill's own publish is told to end within its transaction, and tried again | 60 s |
| `gateway-down`, `scheduler-restart` | nothing: the report says what shows them instead | |

What cannot be struck on these engines is reported as *not run*, with the reason, and never as passed. A drill in which
nothing ran fails.

| step | what it does | what it leaves |
|---|---|---|
| `check` | reaches every engine; no partition may lack a replica | nothing |
| `drill` | the scenarios, one after the other | a report |
| `clear` | heals and removes whatever a drill has left, however it ended | nothing |

**About now.** A run has no interval. To repeat one, start a new run.

## Parameters

| parameter | meaning |
|---|---|
| `dry_run` | leave alone what others use too: only the drill's own is struck. **On** unless you say so |
| `scenarios` | names, separated by commas, or `all` |
| `consumers` | members of the drill's own consumer group |

Example configuration: `{"dry_run": false, "scenarios": "broker-failure"}`

The monthly run is a dry one: whether a broker of this installation is struck is decided by the person who starts a run.

## When it fails
- **bad data** (not retried): something took too long or was lost, or nothing could be run. The message names it with
  the figure; the task `drill` links to the report (tab *Details*).
- **a dependency is down**: an engine did not answer, or was not well before anything was struck; tried again.
- `clear` runs whatever happened, and fails with the run, so that a failed drill is never green. It fails too where
  something could not be healed or removed: it names what, and may be cleared and run again.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from marketdata.orchestration.defaults import Tag, Tier, default_args
from marketdata.orchestration.pod import MarketdataPodOperator

with DAG(
    dag_id="chaos-drill",
    description="Recovery and loss while consumers and brokers are struck, judged by thresholds",
    doc_md=__doc__,
    schedule="0 6 1 * *",
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=default_args(app="drills", tier=Tier.STANDARD, owner="market-data"),
    tags=[Tag.OPERATIONS, Tag.KAFKA, Tag.TIER_STANDARD],
    params={
        "dry_run": Param(True, type="boolean", title="Dry run", description="Leave alone what is not the drill's own."),
        "scenarios": Param(
            "all",
            type="string",
            pattern="^[a-z]+(-[a-z]+)?(,[a-z]+(-[a-z]+)?)*$",
            maxLength=200,
            title="Scenarios",
            description="Separated by commas, or all.",
        ),
        "consumers": Param(3, type="integer", minimum=1, maximum=10, title="Consumers"),
    },
) as dag:
    check = MarketdataPodOperator(
        task_id="check",
        command=["drill-check"],
        doc_md="Reaches every engine before anything is disrupted.",
    )
    drill = MarketdataPodOperator(
        task_id="drill",
        command=[
            "chaos",
            "--scenario",
            "{{ params.scenarios }}",
            "--consumers",
            "{{ params.consumers }}",
            "{{ '--dry-run' if params.dry_run else '--no-dry-run' }}",
        ],
        profile="medium",
        pool="drills",
        doc_md="Strikes, heals, and judges what came of it. See **Report**.",
    )
    clear = MarketdataPodOperator(
        task_id="clear",
        command=["drill-clear"],
        doc_md="Heals and removes whatever the drill has left, however it ended.",
    )
    check >> drill >> clear.as_teardown(setups=check, on_failure_fail_dagrun=True)
