"""How runs ended: one row per outcome in PostgreSQL, from which every pushed counter is computed.

An outcome is (tenant, DAG, run, how often the run was cleared, state). It is written once however often it is reported,
and never changed or removed: a counter computed from the table can only grow. A run that failed, was cleared and
succeeded is two outcomes, and so is one that was marked successful by hand after it had failed: what people were woken
by stays counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from marketdata import datasets
from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.observability.metrics import DATASETS_OF_DAGS, NAMESPACE, PHASES, Sample
from marketdata.observability.runs import Step, steps_of
from marketdata.settings import Settings

if TYPE_CHECKING:
    import psycopg

State = Literal["success", "failed"]
STATES: tuple[str, ...] = get_args(State)

OTHER = "other"
"""Label `commodity` of rows whose commodity the dataset does not know: a bad source must not make up label values."""

_STAGES = (("extract",), ("validate",), ("transform",), ("publish", "load"), ("reconcile",))

_TABLE = """
CREATE SCHEMA IF NOT EXISTS marketdata;
CREATE TABLE IF NOT EXISTS marketdata.run_outcomes (
    tenant text NOT NULL,
    dag_id text NOT NULL,
    run_id text NOT NULL,
    cleared integer NOT NULL,
    state text NOT NULL CHECK (state IN ('success', 'failed')),
    started_at timestamptz,
    ended_at timestamptz NOT NULL,
    batch_id text,
    published bigint NOT NULL DEFAULT 0,
    verdict_id text,
    expectations jsonb NOT NULL DEFAULT '{}',
    records jsonb NOT NULL DEFAULT '{}',
    pushed boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant, dag_id, run_id, cleared, state)
);
CREATE INDEX IF NOT EXISTS run_outcomes_ended ON marketdata.run_outcomes (tenant, dag_id, ended_at);
CREATE INDEX IF NOT EXISTS run_outcomes_unpushed ON marketdata.run_outcomes (tenant, dag_id) WHERE NOT pushed;
"""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. Times are those of the scheduler; `cleared` is how often the run was cleared before."""

    dag_id: str
    run_id: str
    cleared: int
    state: State
    started_at: datetime | None
    ended_at: datetime


@dataclass(frozen=True)
class Yield:
    """What a run brought, as far as its run record says."""

    batch_id: str | None = None
    published: int = 0
    verdict_id: str | None = None
    expectations: Mapping[str, int] = field(default_factory=dict)
    records: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def create_table(connection: psycopg.Connection[Any]) -> None:
    """Create the table where it is missing; two processes may do so at once."""
    import psycopg

    for _ in range(2):
        try:
            with connection.transaction():
                connection.execute(_TABLE)
            return
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable):  # the other one was first
            continue


def record(connection: psycopg.Connection[Any], settings: Settings, outcomes: Iterable[Outcome]) -> None:
    """Write outcomes that are not on record yet, each with what its run brought."""
    for outcome in outcomes:
        with connection.transaction():
            brought = _yield(connection, settings, outcome)
            connection.execute(
                "INSERT INTO marketdata.run_outcomes (tenant, dag_id, run_id, cleared, state, started_at, ended_at, "
                "batch_id, published, verdict_id, expectations, records) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (
                    settings.tenant, outcome.dag_id, outcome.run_id, outcome.cleared, outcome.state,
                    outcome.started_at, outcome.ended_at, brought.batch_id, brought.published, brought.verdict_id,
                    json.dumps(brought.expectations), json.dumps(brought.records),
                ),
            )  # fmt: skip


def unknown(connection: psycopg.Connection[Any], tenant: str, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those of `outcomes` that are not on record."""
    keys = {(outcome.dag_id, outcome.run_id, outcome.cleared, str(outcome.state)): outcome for outcome in outcomes}
    if not keys:
        return []
    known = connection.execute(
        "SELECT dag_id, run_id, cleared, state FROM marketdata.run_outcomes WHERE tenant = %s AND run_id = ANY(%s)",
        (tenant, [key[1] for key in keys]),
    ).fetchall()
    return [outcome for key, outcome in keys.items() if key not in set(known)]


def unpushed(connection: psycopg.Connection[Any], tenant: str) -> set[str]:
    """DAGs with an outcome that no push has carried yet."""
    rows = connection.execute(
        "SELECT DISTINCT dag_id FROM marketdata.run_outcomes WHERE tenant = %s AND NOT pushed", (tenant,)
    ).fetchall()
    return {dag_id for (dag_id,) in rows}


def mark_pushed(connection: psycopg.Connection[Any], tenant: str, dag_id: str) -> None:
    connection.execute(
        "UPDATE marketdata.run_outcomes SET pushed = true WHERE tenant = %s AND dag_id = %s AND NOT pushed",
        (tenant, dag_id),
    )


def samples(connection: psycopg.Connection[Any], settings: Settings, dag_id: str) -> list[Sample]:
    """All metrics of a DAG as its outcomes say; counters of a DAG that has never run are 0."""
    key = (settings.tenant, dag_id)
    place = {"namespace": NAMESPACE}
    counts: dict[str, int] = dict(
        connection.execute(
            "SELECT state, count(*) FROM marketdata.run_outcomes WHERE tenant = %s AND dag_id = %s GROUP BY state", key
        ).fetchall()
    )
    found = [
        Sample("batch_jobs_total", sum(counts.values()), place),
        *(Sample(f"batch_jobs_{state}_total", counts.get(state, 0), place) for state in STATES),
    ]
    last = connection.execute(
        "SELECT state, started_at, ended_at FROM marketdata.run_outcomes WHERE tenant = %s AND dag_id = %s "
        "ORDER BY ended_at DESC, cleared DESC LIMIT 1",
        key,
    ).fetchone()
    if last:
        state, started_at, ended_at = last
        found.append(Sample("batch_job_last_run_success", int(state == "success"), place))
        if started_at:
            seconds = max(0.0, (ended_at - started_at).total_seconds())
            found.append(Sample("batch_job_duration_seconds", seconds, place))
    succeeded = connection.execute(
        "SELECT max(ended_at) FROM marketdata.run_outcomes WHERE tenant = %s AND dag_id = %s AND state = 'success'", key
    ).fetchone()
    if succeeded and succeeded[0]:
        found.append(Sample("batch_job_last_success_timestamp_seconds", succeeded[0].timestamp(), place))
    found += _of_notices(connection, dag_id)
    if dataset := DATASETS_OF_DAGS.get(dag_id):
        found += _of_data(connection, settings, key, dataset, place)
    return found


def _of_notices(connection: psycopg.Connection[Any], dag_id: str) -> list[Sample]:
    counts: tuple[int, ...] = (0, 0, 0)
    if _exists(connection, "marketdata.notices"):
        counts = connection.execute(
            "SELECT count(sent_at), count(abandoned_at), coalesce(sum(tries), 0)::bigint "
            "FROM marketdata.notices WHERE dag_id = %s",
            (dag_id,),
        ).fetchall()[0]
    outcomes = zip(("sent", "abandoned", "failed"), counts, strict=True)
    return [Sample("slack_notifications_total", number, {"outcome": outcome}) for outcome, number in outcomes]


def _exists(connection: psycopg.Connection[Any], table: str) -> bool:
    """Whether a table is there that its owner makes with its first row."""
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone()
    return bool(row and row[0])


def _of_data(
    connection: psycopg.Connection[Any], settings: Settings, key: tuple[str, str], dataset: str, place: dict[str, str]
) -> list[Sample]:
    # A batch whose publishing was repeated by a clear is in the topic once.
    row = connection.execute(
        "SELECT coalesce(sum(published), 0) FROM (SELECT max(published) AS published FROM marketdata.run_outcomes "
        "WHERE tenant = %s AND dag_id = %s AND batch_id IS NOT NULL GROUP BY batch_id) AS batches",
        key,
    ).fetchone()
    published = float(row[0]) if row else 0.0
    topic = settings.kafka_topic if dataset == COMMODITY_PRICES.name else datasets.get(dataset).topic
    found = [Sample("kafka_producer_records_total", published, {"topic": topic})]
    judged: dict[str, int] = dict(
        connection.execute(
            "SELECT result, sum(number::bigint)::bigint FROM (SELECT DISTINCT ON (verdict_id) expectations "
            "FROM marketdata.run_outcomes WHERE tenant = %s AND dag_id = %s AND verdict_id IS NOT NULL) AS verdicts, "
            "jsonb_each_text(expectations) AS each_result (result, number) GROUP BY result",
            key,
        ).fetchall()
    )
    for result in ("success", "failure"):
        labels = {"suite": dataset, "result": result}
        found.append(Sample("gx_expectations_total", judged.get(result, 0), labels))
    last = connection.execute(
        "SELECT records FROM marketdata.run_outcomes WHERE tenant = %s AND dag_id = %s AND records <> '{}' "
        "ORDER BY ended_at DESC, cleared DESC LIMIT 1",
        key,
    ).fetchone()
    for commodity, phases in sorted((last[0] if last else {}).items()):
        for phase, rows in phases.items():
            found.append(Sample("batch_job_records", rows, {**place, "commodity": commodity, "phase": phase}))
    return found


def _yield(connection: psycopg.Connection[Any], settings: Settings, outcome: Outcome) -> Yield:
    dataset = DATASETS_OF_DAGS.get(outcome.dag_id)
    if dataset is None or not _exists(connection, "marketdata.run_steps"):
        return Yield()
    return yield_of(dataset, steps_of(connection, settings.tenant, dataset, outcome.run_id))


def yield_of(dataset: str, steps: Iterable[Step]) -> Yield:
    """What a run brought, from the latest try of each of its steps.

    A step older than one before it in the pipeline belongs to an earlier attempt of the run and does not count.
    """
    done = _of_last_attempt({step.step: step for step in steps})
    verdict = done.get("validate", {})
    proof = done.get("reconcile", {})
    met, broken = verdict.get("expectations_met"), verdict.get("expectations_broken")
    return Yield(
        batch_id=done.get("transform", {}).get("batch_id"),
        published=proof.get("published", done.get("publish", {}).get("published", 0)),
        verdict_id=verdict.get("batch_id"),
        expectations={"success": met, "failure": broken} if met is not None and broken is not None else {},
        records=_by_commodity(dataset, proof.get("by_series", verdict.get("by_series"))),
    )


def _of_last_attempt(steps: Mapping[str, Step]) -> dict[str, dict[str, Any]]:
    kept: dict[str, dict[str, Any]] = {}
    before: datetime | None = None
    for stage in _STAGES:
        found = [
            steps[name] for name in stage if name in steps and (before is None or steps[name].started_at >= before)
        ]
        kept |= {step.step: step.result for step in found if step.result}
        before = max([step.started_at for step in found] + ([before] if before else []), default=None)
    return kept


def _by_commodity(dataset: str, series: Iterable[Mapping[str, Any]] | None) -> dict[str, dict[str, int]]:
    """Rows by commodity and phase; 0 where a run brought nothing, so that a source that falls silent is seen."""
    if series is None:
        return {}
    names = datasets.get(dataset).aliases["commodity"]
    rows = list(series)
    phases = [phase for phase in PHASES if not rows or phase in rows[0]]
    totals = {commodity: dict.fromkeys(phases, 0) for commodity in names.values()}
    for row in rows:
        commodity = names.get(str(row["commodity"]).strip().lower(), OTHER)
        of_commodity = totals.setdefault(commodity, dict.fromkeys(phases, 0))
        for phase in phases:
            of_commodity[phase] += row[phase]
    return totals
