"""
# Platform maintenance, daily

Keeps the tables quick and the stores bounded: merges small files, expires old snapshots, removes what nothing names any
more, and forgets in PostgreSQL what nobody can ask for again. Rows of the tables stay as they are at every moment.

| step | tables | what it forgets |
|---|---|---|
| `commodity_prices` | prices, quarantine | after 30 days snapshots and dead letters, after 400 the record of runs |
| `commodity_aggregates` | aggregates | after 7 days snapshots, after 35 windows of one price in PostgreSQL |

A run of the last 30 days can be travelled to: `marketdata query --as-of-run RUN_ID "SELECT …"`.

**About its moment.** A run acts on what there is when it runs. One that was missed need not be made up for: the next
one does its work as well.

## Parameters
None.

## When it fails
- **try later**: loads kept winning the race for the table's next commit. Nothing is lost; the task is tried again.
- **anything else** is tried again after 60 s and 120 s. A step may be killed at any moment and repeated; what it left
  behind half done is removed by a run a week later.

Merging waits for loads of the same table in the pool `commodity_prices_load`; the consumer, which knows no pool, and
maintenance bear one another: whoever commits second decides anew.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronTriggerTimetable

from marketdata.orchestration.defaults import Tag, Tier, default_args
from marketdata.orchestration.pod import MarketdataPodOperator

with DAG(
    dag_id="platform-maintenance",
    description="Small files merged, old snapshots expired, stores kept bounded",
    doc_md=__doc__,
    # Two hours after the daily load.
    schedule=CronTriggerTimetable("0 4 * * *", timezone="UTC"),
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=default_args(app="platform", tier=Tier.STANDARD, owner="market-data"),
    tags=[Tag.PLATFORM, Tag.ICEBERG, Tag.TIER_STANDARD],
) as dag:
    MarketdataPodOperator(
        task_id="commodity_prices",
        command=["maintain", "--dataset", "commodity_prices"],
        profile="medium",
        pool="commodity_prices_load",
        doc_md="Prices and their quarantine table; then dead letters and the record of runs.",
    )
    MarketdataPodOperator(
        task_id="commodity_aggregates",
        command=["maintain", "--dataset", "commodity_aggregates"],
        profile="medium",
        doc_md="The consumer's aggregates; then the windows it no longer needs.",
    )
