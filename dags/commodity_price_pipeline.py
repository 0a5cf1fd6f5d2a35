"""
# Commodity prices, daily

Carries the prices of gold, silver, copper, oil and natural gas from their sources into the topic `commodity-prices` and
the table `commodities.commodity_prices`, every record exactly once, and proves it.

| step | what it does | what it leaves |
|---|---|---|
| `preflight` | reaches every engine, checks the topic | nothing |
| `extract` | reads the sources for the run's days | a batch of raw text |
| `quality.validate` | judges it with Great Expectations | a verdict: refused rows, full result, report |
| `quality.transform` | types, normalises, identifies the accepted rows | a batch of records |
| `deliver.publish` | one Kafka transaction with the changed records and a ledger marker | messages |
| `deliver.load` | one MERGE with the changed records | a snapshot of the table |
| `reconcile` | compares what was extracted with what topic and table hold | the run's proof |

**About its interval.** A run takes `price_date` in [first day, day after the last). Scheduled runs ask again for the 30
days before, because sources revise. To repeat a run, *clear* it: `extract` asks the source anew, every other step finds
its own output where its input is the same, and nothing is written that is there already.

## Parameters
All optional; they win over the run's interval.

| parameter | meaning |
|---|---|
| `start`, `end` | first day, and the day after the last one |
| `lookback_days` | days before `start` to ask for revisions |
| `sources` | sources, in order, separated by commas |

Example configuration: `{"start": "2019-01-01", "end": "2019-02-01", "sources": "archive"}`

## When it fails
- **bad data** (not retried): a rule of the whole dataset said stop, before anything was published or loaded. The task
  `quality.validate` links to the report (tab *Details*). Correct the source or the suite, then clear `extract` and
  what follows it.
- **wrong use** (not retried): a setting or parameter is missing or wrong; the message names it.
- **anything else** is tried again after 60 s and 120 s. A try may run beside the one before it: the older is fenced.
- `reconcile` runs whatever happened. It fails with the run, so that a failed run is never green.

Single rows that break a rule do not fail a run: they are in the table `commodity_prices_quarantine`, with the reason.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import (
    DAG,
    CronDataIntervalTimetable,
    DeadlineAlert,
    DeadlineReference,
    Param,
    SyncCallback,
    TaskGroup,
    TriggerRule,
)

from marketdata.orchestration.defaults import Tag, Tier, default_args
from marketdata.orchestration.interval import run_interval
from marketdata.orchestration.pod import MarketdataPodOperator

DATASET = ["--dataset", "commodity_prices"]
SOURCES = ["--sources", "{{ params.sources or '' }}"]


def batch_of(task_id: str) -> list[str]:
    """The words that hand over the batch a task before wrote; empty where it wrote none."""
    return ["--batch", f"{{{{ (ti.xcom_pull(task_ids='{task_id}') or {{}}).get('batch', '') }}}}"]


with DAG(
    dag_id="commodity-price-pipeline",
    description="Commodity prices from their sources into Kafka and Iceberg, exactly once",
    doc_md=__doc__,
    # Not the cron string alone: its interval would be of zero length.
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),
    # The first day anybody has prices of: a backfill cannot begin before it.
    start_date=datetime(1960, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    # Told while the run can still be helped.
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(minutes=30),
        callback=SyncCallback("slack_alerts.deadline_missed"),
    ),
    default_args=default_args(app="commodity-pipeline", tier=Tier.CRITICAL, owner="market-data"),
    tags=[Tag.BATCH, Tag.COMMODITIES, Tag.KAFKA, Tag.ICEBERG, Tag.TIER_CRITICAL],
    user_defined_macros={"run_interval": run_interval},
    params={
        "start": Param(
            None, type=["null", "string"], format="date", title="First day", description="Default: the run's interval."
        ),
        "end": Param(
            None,
            type=["null", "string"],
            format="date",
            title="Day after the last one",
            description="Default: the run's interval.",
        ),
        "lookback_days": Param(
            None,
            type=["null", "integer"],
            minimum=0,
            maximum=366,
            title="Look-back, days",
            description="Days before the first one to ask for revisions. Default: 30 for scheduled runs, else none.",
        ),
        "sources": Param(
            None,
            type=["null", "string"],
            pattern="^[a-z]+(,[a-z]+)*$",
            maxLength=100,
            title="Sources",
            description="In order, separated by commas: archive, files, api. Default: those of the installation.",
        ),
    },
) as dag:
    preflight = MarketdataPodOperator(
        task_id="preflight",
        command=["preflight", *DATASET, *SOURCES],
        doc_md="Reaches every engine and checks the topic before anything is read.",
    )
    extract = MarketdataPodOperator(
        task_id="extract",
        command=[
            "extract",
            *DATASET,
            "--start",
            "{{ run_interval(dag_run, params).start }}",
            "--end",
            "{{ run_interval(dag_run, params).end }}",
            "--lookback-days",
            "{{ run_interval(dag_run, params).lookback_days }}",
            # A retry finds its own output; a run that was cleared asks the source anew.
            "--attempt-of-run",
            "{{ dag_run.clear_number or 0 }}",
            *SOURCES,
        ],
        doc_md="Reads the sources for the run's days. Raw means raw: text, with file and row.",
    )
    with TaskGroup("quality", tooltip="Judge, then type and identify", prefix_group_id=True) as quality:
        validate = MarketdataPodOperator(
            task_id="validate",
            command=["validate", *DATASET, *batch_of("extract")],
            profile="medium",
            doc_md="Quarantines single rows; stops the run where the whole dataset is wrong. See **Report**.",
        )
        transform = MarketdataPodOperator(
            task_id="transform",
            command=["transform", *DATASET, *batch_of("quality.validate")],
            profile="medium",
            doc_md="Types and normalises the accepted rows, drops exact duplicates, gives each its identity.",
        )
        validate >> transform
    with TaskGroup("deliver", tooltip="Topic and table, each exactly once", prefix_group_id=True) as deliver:
        publish = MarketdataPodOperator(
            task_id="publish",
            command=["publish", *DATASET, *batch_of("quality.transform")],
            profile="medium",
            pool="commodity_prices_publish",
            doc_md="The changed records and their ledger marker, in one Kafka transaction.",
        )
        load = MarketdataPodOperator(
            task_id="load",
            command=["load", *DATASET, *batch_of("quality.transform")],
            profile="medium",
            pool="commodity_prices_load",
            doc_md="The changed records into the table, in one commit; the refused rows into its quarantine table.",
        )
    reconcile = MarketdataPodOperator(
        task_id="reconcile",
        command=["reconcile", *DATASET, *batch_of("quality.transform")],
        profile="medium",
        trigger_rule=TriggerRule.ALL_DONE,
        doc_md="Compares what was extracted with what topic and table hold, and names the keys that differ.",
    )
    preflight >> extract >> quality >> deliver >> reconcile
