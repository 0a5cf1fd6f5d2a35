"""Slack alerts: who is on call learns once that a run failed, why, and what to do.

The truth is what Airflow's metadata says of a run that has ended, not the events: an event may be heard twice, too
early (a try that was declared dead runs on), or by a process that dies with it. Listeners only wake a thread, which
looks at what is committed, writes a notice into an outbox and posts what waits there. The scheduler's thread also looks
every ten seconds, so a failure nobody heard of is told too. A listener itself does nothing that could wait: the
scheduler's loop is not held up.

Connection `slack_default` says where: of type `slackwebhook` (an incoming webhook), or of type `slack` (a bot token,
the channel in its extra: `{"channel": "C0123456789"}`), whose recoveries are posted in the thread of the failure.
Without the connection alerts are off, and the scheduler's log says so.

Airflow executes this file in every process of its own, each task among them: nothing heavy is imported at its top.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy.orm import Session

    from marketdata.observability.notices import (
        Failure,
        MemoryOutbox,
        Notice,
        NotPostedError,
        Outbox,
        PostgresOutbox,
        Receipt,
    )
    from marketdata.observability.slack import FailedTask, Message, Quarantine, Run
    from marketdata.settings import Settings

CONNECTION = "slack_default"
ERROR_KEY = "failure"
"""XCom in which a task's process leaves the exception it died of; Airflow itself keeps it in the log alone."""

LOOK_EVERY_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 0.5
"""After an event: it is heard before it is committed."""

HEARD_FOR_SECONDS = 60.0
"""An event whose run has not ended by then was not true."""

LOOK_BACK = timedelta(hours=24)
POST_TIMEOUT_SECONDS = 5
FORK_WAITS_SECONDS = 1.0
FLUSH_SECONDS = 5.0
QUARANTINE_SHARE = 0.01
"""More than this share of a run's rows is told; the gate itself stops the run at 5 %."""

QUARANTINE_ROWS = 20
"""Of fewer rows a share says nothing."""

RUNBOOKS = {
    "failure": "CommodityPipelineFailure.md",
    "recovery": "CommodityPipelineFailure.md",
    "quarantine": "QuarantineRatioHigh.md",
    "deadline": "CommodityPipelineSlow.md",
}

log = logging.getLogger("marketdata.slack_alerts")


@hookimpl
def on_starting(component: Any) -> None:
    """A scheduler watches from its first second, so that what its predecessor did not tell is told."""
    if hasattr(component, "heartrate") and hasattr(component, "latest_heartbeat"):
        _teller.watch(component)


@hookimpl
def on_dag_run_failed(dag_run: DagRun, msg: str) -> None:
    """Heard in the scheduler, or in the API server where somebody marks the run."""
    _teller.hear(dag_run.dag_id, dag_run.run_id, msg)


@hookimpl
def on_dag_run_success(dag_run: DagRun, msg: str) -> None:
    _teller.hear(dag_run.dag_id, dag_run.run_id, msg)


@hookimpl
def on_task_instance_failed(previous_state: Any, task_instance: Any, error: Any) -> None:  # noqa: ARG001
    """In the task's own process: keep its last words where the teller finds them."""
    if error is None or not type(task_instance).__module__.startswith("airflow.sdk."):
        return
    try:
        task_instance.xcom_push(key=ERROR_KEY, value={"error": _last_words(error), "try": task_instance.try_number})
    except Exception as problem:
        log.warning("the task's error was not kept for Slack: %s", problem)


def deadline_missed(context: Mapping[str, Any]) -> None:
    """Callback of a DAG's `DeadlineAlert`; it runs in an executor's process, once for each missed deadline.

    It leaves a notice in the outbox, which the scheduler posts; without PostgreSQL it posts by itself.
    """
    from marketdata.errors import MarketdataError
    from marketdata.observability import notices, slack

    run, deadline = context["dag_run"], context["deadline"]
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    moment = _moment(deadline["deadline_time"])
    assert moment is not None  # noqa: S101 - a missed deadline has a time
    facts = replace(
        _known(dag_id, run_id, notices.DEADLINE),
        started=_moment(run.get("start_date")),
        interval=_interval(_moment(run.get("data_interval_start")), _moment(run.get("data_interval_end"))),
    )
    message = slack.missed_deadline(facts, moment)
    notice = notices.Notice(notices.DEADLINE, dag_id, run_id, str(deadline["id"]), message)
    if table := _table():
        try:
            table.add(notice)
            return
        except MarketdataError as error:
            log.warning("the missed deadline is told from here: %s", error)
    memory = notices.MemoryOutbox()
    memory.add(notice)
    memory.deliver(_post)


class ForkGuard:
    """Lets a process fork only while the teller rests, or waits for Slack.

    An executor forks its workers from the scheduler. A lock that another thread holds at that moment, be it of an
    import, a log or a connection pool, stays locked in the child for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held = False
        os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._child)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let forks pass during a wait of the thread that holds the guard."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    def _before(self) -> None:
        self._held = self._lock.acquire(timeout=FORK_WAITS_SECONDS)

    def _after(self) -> None:
        if self._held:
            self._lock.release()

    def _child(self) -> None:
        self._lock = threading.RLock()


class Teller:
    """The thread that looks, writes and posts. One for each process that hears of runs or schedules them."""

    def __init__(self) -> None:
        self._guard = ForkGuard()
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """The state of a new process: a forked child has none of its parent's threads."""
        self._heard: dict[tuple[str, str], tuple[str, float]] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._job: weakref.ref[Any] | None = None
        self._looked_at: datetime | None = None
        self._examined: set[tuple[Any, ...]] = set()
        self._memory: MemoryOutbox | None = None
        self._complaint = ""

    def hear(self, dag_id: str, run_id: str, message: str) -> None:
        """Remember that a run is about to end, and wake the thread. Never waits, never raises."""
        try:
            self._heard[(dag_id, run_id)] = (message, time.monotonic())
            self._start()
            self._wake.set()
        except Exception:
            log.exception("a run's end was not passed on")

    def watch(self, job: Any) -> None:
        """Look regularly, if `job` turns out to be a scheduler's: Airflow says so only after this call."""
        try:
            self._job = weakref.ref(job)
            # Before the executor forks: a child forked amid an import in another thread would wait for it for ever.
            _import_everything()
            self._start()
        except ModuleNotFoundError as error:
            log.warning("Slack alerts are off: %s", error)
        except Exception:
            log.exception("Slack alerts do not start")

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="slack-alerts", daemon=True)
                self._thread.start()
                atexit.unregister(self._flush)
                atexit.register(self._flush)

    def _run(self) -> None:
        while True:
            self._wake.wait(LOOK_AGAIN_SECONDS if self._heard else LOOK_EVERY_SECONDS if self._looked_at else 1.0)
            self._wake.clear()
            if not self._heard and not self._schedules() and not (self._memory and self._memory.waiting):
                return
            try:
                with self._guard:
                    self.look()
                self._complain("")
            except Exception as error:
                first = (_clean(str(error)).strip().splitlines() or [""])[0]
                self._complain(f"Slack alerts: {type(error).__name__}: {first}")

    def _schedules(self) -> bool:
        job = self._job() if self._job else None
        return job is not None and job.job_type == "SchedulerJob"

    def _flush(self) -> None:
        """Give the last words of a process that ends a moment to be told."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._heard and time.monotonic() < deadline and self._thread and self._thread.is_alive():
            self._wake.set()
            time.sleep(0.05)

    def look(self) -> None:
        """Compare what has ended with what was told; tell the difference. Called under the guard."""
        from marketdata.errors import MarketdataError

        started = datetime.now(UTC)
        if _connection() is None:
            self._heard.clear()
            self._looked_at = started
            self._complain(f"Slack alerts are off: connection {CONNECTION} is not set")
            return
        table = _table()
        try:
            if table is not None:
                if self._memory:
                    self._memory.hand_over(table)
                since = max(table.since(), (self._looked_at or started) - LOOK_BACK)
                if self._looked_at:
                    since = max(since, self._looked_at - timedelta(minutes=5))
                self._tell(table, since)
                self._looked_at = started
                return
        except MarketdataError as error:
            self._complain(f"Slack alerts are told from memory: {error}")
        if self._memory is None:
            from marketdata.observability.notices import MemoryOutbox

            self._memory = MemoryOutbox()
        self._tell(self._memory, None)

    def _tell(self, outbox: Outbox, since: datetime | None) -> None:
        from airflow.utils.session import create_session

        examined = set()
        with create_session(scoped=False) as session:
            for run in _ended(session, since, list(self._heard)):
                end = (run.dag_id, run.run_id, run.clear_number, run.state, run.end_date)
                if end not in self._examined:
                    for notice in _notices(session, run, self._heard.get((run.dag_id, run.run_id), ("", 0.0))[0]):
                        outbox.add(notice)
                examined.add(end)
                self._heard.pop((run.dag_id, run.run_id), None)
            self._examined = examined
            for notice in _recoveries(session, outbox.open_failures()):
                outbox.add(notice)
        outbox.deliver(self._post)
        now = time.monotonic()
        for key, (_, heard) in list(self._heard.items()):
            if now - heard > HEARD_FOR_SECONDS:
                self._heard.pop(key, None)

    def _post(self, message: Message, thread: Receipt | None, key: str) -> Receipt:
        with self._guard.open():
            return _post(message, thread, key)

    def _complain(self, text: str) -> None:
        """Say it once, not every ten seconds."""
        if text and text != self._complaint:
            log.warning("%s", text)
        if text or not self._complaint.startswith("Slack alerts are"):
            self._complaint = text


_teller = Teller()


class SlackAlertsPlugin(AirflowPlugin):
    name = "marketdata_slack_alerts"
    listeners = [sys.modules[__name__]]  # noqa: RUF012


# What Airflow knows of a run


def _ended(session: Session, since: datetime | None, heard: Iterable[tuple[str, str]]) -> list[DagRun]:
    """Runs whose end is committed: those that ended since then, and those heard of."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.state import DagRunState
    from sqlalchemy import and_, or_, select

    wanted: list[Any] = [and_(DagRun.dag_id == dag_id, DagRun.run_id == run_id) for dag_id, run_id in heard]
    if since is not None:
        wanted.append(DagRun.end_date >= since)
    if not wanted:
        return []
    final = DagRun.state.in_([DagRunState.FAILED, DagRunState.SUCCESS])
    return list(session.scalars(select(DagRun).where(final, or_(*wanted)).order_by(DagRun.end_date)))


def _notices(session: Session, dag_run: DagRun, said: str) -> list[Notice]:
    """What is to be told of a run that has ended: its failure, and rows that were refused in it."""
    from airflow.utils.state import DagRunState

    from marketdata.observability import notices, slack

    told = []
    if dag_run.state == DagRunState.FAILED:
        run = _facts(session, dag_run, notices.FAILURE, said)
        told.append(_notice(notices.FAILURE, dag_run, slack.failure(run)))
    refused = _quarantine(session, dag_run)
    if refused.rows >= QUARANTINE_ROWS and refused.share > QUARANTINE_SHARE:
        run = _facts(session, dag_run, notices.QUARANTINE, "")
        told.append(_notice(notices.QUARANTINE, dag_run, slack.quarantine(run, refused)))
    return told


def _recoveries(session: Session, failures: list[Failure]) -> list[Notice]:
    """For each DAG: the first success, after its newest failure, of the same run or of a later one."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.state import DagRunState
    from sqlalchemy import or_, select

    from marketdata.observability import notices, slack

    by_dag: dict[str, list[Failure]] = {}
    for failure in failures:
        by_dag.setdefault(failure.dag_id, []).append(failure)
    told = []
    for dag_id, open_failures in by_dag.items():
        newest = open_failures[0]
        recovered = session.scalars(
            select(DagRun)
            .where(DagRun.dag_id == dag_id, DagRun.state == DagRunState.SUCCESS, DagRun.end_date > newest.ended_at)
            .where(or_(DagRun.run_id == newest.run_id, DagRun.run_after > newest.run_after))
            .order_by(DagRun.end_date)
            .limit(1)
        ).first()
        if recovered is None:
            continue
        run = _facts(session, recovered, notices.RECOVERY, "")
        failed_runs = list(dict.fromkeys(failure.run_id for failure in open_failures))
        told.append(
            notices.Notice(
                notices.RECOVERY, dag_id, newest.run_id, newest.episode, slack.recovery(run, failed_runs),
                answers=tuple(failure.id for failure in open_failures),
            )
        )  # fmt: skip
    return told


def _notice(kind: str, dag_run: DagRun, message: Message) -> Notice:
    from marketdata.observability.notices import Notice

    return Notice(
        kind, dag_run.dag_id, dag_run.run_id, str(dag_run.clear_number), message, dag_run.run_after, dag_run.end_date
    )


def _facts(session: Session, dag_run: DagRun, kind: str, said: str) -> Run:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import DagRunState, TaskInstanceState
    from sqlalchemy import select

    instances = list(
        session.scalars(
            select(TaskInstance)
            .where(TaskInstance.dag_id == dag_run.dag_id, TaskInstance.run_id == dag_run.run_id)
            .order_by(TaskInstance.end_date, TaskInstance.task_id)
        )
    )
    xcoms = _xcoms(session, dag_run, (ERROR_KEY, "_link_ReportLink"))
    failed = dag_run.state == DagRunState.FAILED
    by_hand = _by_hand(session, dag_run) if failed else {}
    reason = by_hand.get(None, "")
    if not reason and failed and "timed_out" in said:
        reason = "ended because it had taken longer than its dagrun_timeout"
    return replace(
        _known(dag_run.dag_id, dag_run.run_id, kind),
        episode=dag_run.clear_number,
        interval=_interval(dag_run.data_interval_start, dag_run.data_interval_end),
        started=dag_run.start_date,
        ended=dag_run.end_date,
        reason=reason,
        report_url=_absolute(
            next((link for (_, _, key), link in xcoms.items() if key == "_link_ReportLink" and link), "")
        ),
        failed=tuple(
            _failed_task(instance, xcoms.get((instance.task_id, instance.map_index, ERROR_KEY)), by_hand)
            for instance in instances
            if instance.state == TaskInstanceState.FAILED
        ),
        not_run=tuple(i.task_id for i in instances if i.state == TaskInstanceState.UPSTREAM_FAILED),
    )


def _failed_task(instance: TaskInstance, error: Any, by_hand: Mapping[str | None, str]) -> FailedTask:
    from marketdata.observability.slack import FailedTask

    words = str(error.get("error", "")) if isinstance(error, dict) and error.get("try") == instance.try_number else ""
    # What a process says that is killed because its task was marked is no reason.
    words = by_hand.get(instance.task_id) or words or by_hand.get(None, "")
    return FailedTask(
        name=instance.task_id if instance.map_index < 0 else f"{instance.task_id}[{instance.map_index}]",
        try_number=instance.try_number,
        tries=(instance.max_tries or 0) + 1,
        seconds=instance.duration,
        error=_clean(words),
        log_url=instance.log_url,
    )


def _by_hand(session: Session, dag_run: DagRun) -> dict[str | None, str]:
    """Who marked what as failed, by task, None for the run itself: from Airflow's audit log."""
    from airflow.models.log import Log
    from sqlalchemy import select

    marks: dict[str | None, str] = {}
    since = dag_run.queued_at or dag_run.run_after  # a run without a scheduler was never queued
    entries = session.execute(
        select(Log.task_id, Log.event, Log.owner_display_name, Log.owner)
        .where(Log.dag_id == dag_run.dag_id, Log.run_id == dag_run.run_id, Log.dttm >= since)
        .where(Log.event.in_(["patch_dag_run", "patch_task_instance"]), Log.extra.like('%"failed"%'))
        .order_by(Log.dttm)
    )
    for task_id, event, display_name, owner in entries:
        marks[None if event == "patch_dag_run" else task_id] = (
            f"marked as failed by {display_name or owner or 'somebody'}"
        )
    return marks


def _quarantine(session: Session, dag_run: DagRun) -> Quarantine:
    """What the gate handed over as its result, and the reasons the run's summary gives, if it got so far."""
    from marketdata.observability.slack import Quarantine

    results = [value for value in _xcoms(session, dag_run, ("return_value",)).values() if isinstance(value, dict)]
    gates = [value for value in results if {"rows", "accepted", "quarantined"} <= value.keys()]
    reasons: Mapping[str, int] = next(
        (value["reasons"] for value in results if isinstance(value.get("reasons"), dict)), {}
    )
    return Quarantine(
        rows=sum(int(value["rows"]) for value in gates),
        quarantined=sum(int(value["quarantined"]) for value in gates),
        reasons={_clean(str(reason)): int(rows) for reason, rows in reasons.items()},
    )


def _xcoms(session: Session, dag_run: DagRun, keys: tuple[str, ...]) -> dict[tuple[str, int, str], Any]:
    from airflow.models.xcom import XComModel
    from sqlalchemy import select

    rows = session.execute(
        select(XComModel.task_id, XComModel.map_index, XComModel.key, XComModel.value).where(
            XComModel.dag_id == dag_run.dag_id, XComModel.run_id == dag_run.run_id, XComModel.key.in_(keys)
        )
    )
    return {(task_id, index, key): value for task_id, index, key, value in rows}


def _known(dag_id: str, run_id: str, kind: str) -> Run:
    from urllib.parse import quote

    from marketdata.observability.slack import Run

    settings = _settings()
    runbook = RUNBOOKS[kind]
    return Run(
        environment=settings.environment,
        dag_id=dag_id,
        run_id=run_id,
        url=_absolute(f"/dags/{dag_id}/runs/{quote(run_id, safe='')}"),
        runbook=f"{settings.runbooks_url.rstrip('/')}/{runbook}"
        if settings.runbooks_url
        else f"docs/runbooks/{runbook}",
    )


def _absolute(path: str) -> str:
    """Address of a page of the UI; operators' links begin with the path of its base URL."""
    from urllib.parse import urlsplit

    from airflow.configuration import conf

    if not path:
        return ""
    base = urlsplit(conf.get("api", "base_url", fallback="http://localhost:8080"))
    prefix = base.path.rstrip("/")
    return f"{base.scheme}://{base.netloc}{prefix}{path.removeprefix(prefix) if prefix else path}"


def _interval(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None or start == end:
        return ""
    return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"


def _moment(value: Any) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    return datetime.fromisoformat(str(value).replace("Z", "+00:00"))


# What must not be told


def _last_words(error: BaseException | str) -> str:
    """A task's exception for people: type, text, and the line of its own code it came from."""
    import traceback

    from airflow.sdk._shared.secrets_masker import redact

    from marketdata.observability.slack import cut, redacted

    words = str(error)
    if isinstance(error, BaseException):
        words = f"{type(error).__name__}: {error}"
        own = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
        if own:
            words += f"\nat {Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}"
    return cut(redacted(str(redact(words)), _credentials()), 4000)


def _clean(text: str) -> str:
    from airflow._shared.secrets_masker import redact

    from marketdata.observability.slack import redacted

    return redacted(str(redact(text)), _credentials())


def _credentials() -> set[str]:
    """The secret values this process knows."""
    from urllib.parse import urlsplit

    from pydantic import SecretStr

    known = {value.get_secret_value() for _, value in _settings() if isinstance(value, SecretStr)}
    return known | {password for text in known if "://" in text and (password := urlsplit(text).password)}


# Where to


def _settings() -> Settings:
    from marketdata.settings import Settings

    return Settings()  # type: ignore[call-arg]  # read anew: embedded engines may start after Airflow


_tables: dict[str, PostgresOutbox] = {}


def _table() -> PostgresOutbox | None:
    from marketdata.observability.notices import PostgresOutbox

    dsn = _settings().postgres_dsn
    if dsn is None:
        return None
    return _tables.setdefault(dsn.get_secret_value(), PostgresOutbox(dsn.get_secret_value()))


def _connection() -> Any | None:
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return BaseHook.get_connection(CONNECTION)
    except AirflowNotFoundException:
        return None


def _post(message: Message, thread: Receipt | None, key: str) -> Receipt:
    """Post through Airflow's Slack provider. Tries once: the outbox decides when to try again."""
    from marketdata.observability.notices import NotPostedError

    connection = _connection()
    if connection is None:
        raise NotPostedError(f"connection {CONNECTION} is not set")
    try:
        if connection.conn_type == "slack":
            return _post_with_token(connection, message, thread, key)
        return _post_to_webhook(message)
    except NotPostedError:
        raise
    except Exception as error:
        raise NotPostedError(f"{type(error).__name__}: {_clean(str(error))[:300]}") from None


def _post_to_webhook(message: Message) -> Receipt:
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

    from marketdata.observability.notices import Receipt

    hook = SlackWebhookHook(
        slack_webhook_conn_id=CONNECTION, timeout=POST_TIMEOUT_SECONDS, retry_handlers=[], logger=_silent()
    )
    # Not the hook's own `send`: its exception has lost the header Retry-After.
    answer = hook.client.send(text=message.text, blocks=list(message.blocks))
    if answer.status_code != 200:
        raise _refusal(answer.status_code, answer.body[:200], answer.headers)
    return Receipt()


def _post_with_token(connection: Any, message: Message, thread: Receipt | None, key: str) -> Receipt:
    import uuid

    from airflow.providers.slack.hooks.slack import SlackHook
    from slack_sdk.errors import SlackApiError

    from marketdata.observability.notices import NotPostedError, Receipt

    channel = thread.channel if thread else connection.extra_dejson.get("channel")
    if not channel:
        raise NotPostedError(f'connection {CONNECTION} names no channel: its extra needs {{"channel": "C0123456789"}}')
    hook = SlackHook(slack_conn_id=CONNECTION, timeout=POST_TIMEOUT_SECONDS, retry_handlers=[], logger=_silent())
    try:
        answer = hook.client.chat_postMessage(
            channel=channel,
            text=message.text,
            blocks=list(message.blocks),
            unfurl_links=False,
            # Slack promises nothing of it, but a client that knows it shows a message posted twice once.
            client_msg_id=str(uuid.uuid5(uuid.NAMESPACE_URL, key)),
            thread_ts=thread.thread if thread else None,
            reply_broadcast=True if thread else None,
        )
    except SlackApiError as error:
        raise _refusal(error.response.status_code, error.response.get("error"), error.response.headers) from None
    return Receipt(str(answer["channel"]), str(answer["ts"]))


def _refusal(status: int, reason: Any, headers: Mapping[str, Any]) -> NotPostedError:
    from marketdata.observability.notices import NotPostedError

    if status != 429:
        return NotPostedError(f"HTTP {status}: {reason}")
    told = {name.lower(): value for name, value in headers.items()}.get("retry-after")
    seconds = str(told[0] if isinstance(told, list) else told)
    return NotPostedError("HTTP 429: too many messages", float(seconds) if seconds.isdigit() else 30.0)


def _silent() -> logging.Logger:
    """The SDK logs addresses, which hold the webhook's secret."""
    logger = logging.getLogger("marketdata.slack_alerts.client")
    logger.setLevel(logging.CRITICAL)
    return logger


def _import_everything() -> None:
    from importlib import import_module

    for name in _NEEDED:
        import_module(name)


_NEEDED = (
    "airflow.models.dagrun",
    "airflow.models.log",
    "airflow.models.taskinstance",
    "airflow.models.xcom",
    "airflow.utils.session",
    "airflow.providers.slack.hooks.slack",
    "airflow.providers.slack.hooks.slack_webhook",
    "marketdata.observability.notices",
    "encodings.idna",
    "marketdata.settings",
    "psycopg",
    "ssl",
)
