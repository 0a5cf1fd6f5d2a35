"""Run metrics: tells `marketdata.observability.push` how runs end.

Run listeners are called by the scheduler before it commits a run's state, so that a scheduler killed in between calls
them again; for a run marked by hand the API server calls them. Airflow executes this file in every task process too:
nothing is imported before it is needed, and task processes never need it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from airflow.models import DagRun

    from marketdata.observability.outcomes import Outcome, State
    from marketdata.observability.push import Courier

log = logging.getLogger(__name__)


class _Records:
    """The runs and DAGs of Airflow's metadata, read in a session of their own."""

    def finished(self, since: datetime) -> Iterable[Outcome]:
        from airflow.models import DagRun
        from airflow.utils.session import create_session
        from sqlalchemy import select

        columns = (DagRun.dag_id, DagRun.run_id, DagRun.clear_number, DagRun._state, DagRun.start_date, DagRun.end_date)
        ended = select(*columns).where(DagRun._state.in_(("success", "failed")), DagRun.end_date >= since)
        with create_session(scoped=False) as session:
            return [_outcome(*row) for row in session.execute(ended).tuples()]

    def dags(self) -> Iterable[str]:
        from airflow.models import DagModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session(scoped=False) as session:
            return list(session.scalars(select(DagModel.dag_id).where(DagModel.is_stale.is_(False))))


def _outcome(
    dag_id: str,
    run_id: str,
    cleared: int | None,
    state: str | None,
    started_at: datetime | None,
    ended_at: datetime | None,
) -> Outcome:
    from marketdata.observability.outcomes import Outcome

    return Outcome(dag_id, run_id, cleared or 0, cast("State", str(state)), started_at, ended_at or datetime.now(UTC))


class RunMetricsListener:
    """Nothing it does can fail a run, or hold up the scheduler for more than 2 s."""

    def __init__(self) -> None:
        self._process = -1
        self._courier: Courier | None = None

    @hookimpl
    def on_starting(self, component: Any) -> None:
        # A job is a scheduler, triggerer or dag-processor; a task process has another kind of component.
        if type(component).__name__ == "Job" and (courier := self._ready()):
            self._safely(courier.started)

    @hookimpl
    def on_dag_run_running(self, dag_run: DagRun) -> None:
        if courier := self._ready():
            self._safely(courier.running, dag_run.dag_id)

    @hookimpl
    def on_dag_run_success(self, dag_run: DagRun) -> None:
        self._ended(dag_run, "success")

    @hookimpl
    def on_dag_run_failed(self, dag_run: DagRun) -> None:
        self._ended(dag_run, "failed")

    def _ended(self, dag_run: DagRun, state: str) -> None:
        def tell(courier: Courier) -> None:
            courier.ended(
                _outcome(
                    dag_run.dag_id, dag_run.run_id, dag_run.clear_number, state, dag_run.start_date, dag_run.end_date
                )
            )

        if courier := self._ready():
            self._safely(tell, courier)

    def _ready(self) -> Courier | None:
        """The courier of this process: threads, locks and connections do not survive a fork."""
        if self._process != os.getpid():
            self._process, self._courier = os.getpid(), None
            self._safely(self._prepare)
        return self._courier

    def _prepare(self) -> None:
        from marketdata import settings

        loaded = settings.load()
        if loaded.pushgateway_url is None:
            log.info("run metrics are off: PUSHGATEWAY_URL is not set")
            return
        from marketdata.observability.push import Courier

        self._courier = Courier(loaded, _Records())

    def _safely(self, work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:
            log.warning("run metrics: %s", error, exc_info=True)


class RunMetrics(AirflowPlugin):
    """Registers the listener."""

    name = "run_metrics"
    listeners = [RunMetricsListener()]  # noqa: RUF012 - Airflow's own attribute
