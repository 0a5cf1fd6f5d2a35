"""The scheduler that may be running beside us on the same metadata: whether it is, and what it made of a run."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def works_on(dag_id: str) -> bool:
    """Whether a living scheduler would take up a run of this DAG."""
    from airflow.jobs.job import most_recent_job
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    with create_session() as session:
        job = most_recent_job("SchedulerJob", session=session)
        if job is None or not job.is_alive():
            return False
        dag = session.get(DagModel, dag_id)
        return dag is not None and not dag.is_paused and not dag.is_stale


def trigger(dag_id: str, run_id: str, at: datetime, conf: dict[str, Any]) -> None:
    """Queue a run; the scheduler starts it when no other run of the DAG is active."""
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.utils.types import DagRunTriggeredByType

    trigger_dag(
        dag_id,
        triggered_by=DagRunTriggeredByType.CLI,
        run_id=run_id,
        run_after=at,
        logical_date=at,
        replace_microseconds=False,
        conf=conf,
    )


def state_of(dag_id: str, run_id: str) -> str:
    """A run's state: queued, running, success or failed; empty where there is no such run."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = select(DagRun.state).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
    with create_session() as session:
        return str(session.scalar(query) or "")


def mark_failed(dag_id: str, run_id: str) -> None:
    """End a run and what of it has not ended."""
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState, State, TaskInstanceState
    from sqlalchemy import or_, select, update

    unfinished = [state for state in State.unfinished if state is not None]
    with create_session() as session:
        ended = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
        if ended is None or str(ended.state) in ("success", "failed"):
            return
        session.execute(
            update(TaskInstance)
            .where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
            .where(or_(TaskInstance.state.is_(None), TaskInstance.state.in_(unfinished)))
            .values(state=TaskInstanceState.FAILED)
        )
        ended.set_state(DagRunState.FAILED)
