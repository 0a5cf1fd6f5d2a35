"""Load tests and chaos drills as commands: run, write the report into the lake, and let the verdict decide."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from marketdata.batches import Batch, Interval, Lake, Manifest, content_id, now
from marketdata.errors import BadDataError
from marketdata.operations import drill, ground, profiles, report
from marketdata.operations.disruptions import restore
from marketdata.operations.report import Report
from marketdata.operations.scenarios import SCENARIOS, disrupt, scenarios
from marketdata.settings import Settings

log = logging.getLogger(__name__)

STEP_VERSION = 1


def load_test(
    settings: Settings, profile_name: str, run_id: str, *, consumers: int, messages: int = 0
) -> dict[str, Any]:
    """Put a load on the platform; where its report is, and the verdict.

    Args:
        messages: a rehearsal with so many, the thresholds being the same; 0: the profile's.

    Raises:
        BadDataError: a threshold was missed; the report is written all the same.
        UsageError: there is no such profile, or an address is missing.
        UnavailableError: an engine does not answer.
    """
    profile = profiles.profile(profile_name)
    if messages:
        profile = drill.shortened(profile, messages)
    ground.check(settings)
    began = now()
    environment = report.environment(settings)
    outcome = drill.load(settings, profile, run_id, consumers)
    return _handed_over(settings, "load-test", Report("Load test", run_id, began, environment, (outcome,)))


def chaos(settings: Settings, names: str, run_id: str, *, consumers: int, dry_run: bool) -> dict[str, Any]:
    """Disrupt what can be disrupted, one after the other; where the report is, and the verdict.

    Args:
        names: scenarios, separated by commas, or ``all``.
        dry_run: leave alone what is not the drill's own.

    Raises:
        BadDataError: a threshold was missed, or nothing could be run; the report is written all the same.
        UsageError: there is no such scenario, or an address is missing.
        UnavailableError: an engine does not answer, or is not well before anything is disrupted.
    """
    wanted = scenarios(names)
    ground.check(settings)
    began = now()
    environment = report.environment(settings)
    outcomes = []
    for scenario in wanted:
        outcomes.append(disrupt(settings, scenario, run_id, consumers, dry_run=dry_run))
        log.info("scenario done", extra={"scenario": scenario.name, "state": outcomes[-1].state})
    return _handed_over(settings, "chaos", Report("Chaos drill", run_id, began, environment, tuple(outcomes)))


def check(settings: Settings) -> None:
    """Is everything well that a drill would load or disrupt?

    Raises:
        UnavailableError: it is not.
    """
    ground.check(settings)
    log.info("everything answers, and no partition lacks a replica")


def clear(settings: Settings, run_id: str) -> None:
    """Undo and remove whatever a run's drills have left, however they ended.

    Raises:
        UnavailableError: something is left; it is named.
    """
    settings = restore(settings)
    for name in (*profiles.PROFILES, *SCENARIOS):
        ground.clear(ground.own_settings(settings, run_id, name))
    log.info("nothing of the run's drills is left")


def _handed_over(settings: Settings, step: str, of: Report) -> dict[str, Any]:
    batch = _write(settings, step, of)
    told = {**batch.summary(), "report": batch.file_uri("report.html")}
    if of.failures:
        raise BadDataError(
            f"{of.title} failed: {'; '.join(of.failures)}",
            f"read {told['report']}; what the drill made for itself is removed",
            told,
        )
    return told


def _write(settings: Settings, step: str, of: Report) -> Batch:
    """The report as a batch: no rows, three files."""
    day = Interval(of.began.date(), of.began.date() + timedelta(days=1))
    dataset = step.replace("-", "_")
    batch_id = content_id(step, STEP_VERSION, of.run_id, of.began)
    writer = Lake(settings).writer(dataset, day, batch_id)
    for name, content in (
        ("report.html", of.to_html()), ("result.json", of.to_json()), ("summary.md", of.to_markdown()),
    ):  # fmt: skip
        writer.add_file(name, content)
    states = [outcome.state for outcome in of.outcomes]
    return writer.commit(
        Manifest(
            dataset=dataset,
            tenant=settings.tenant,
            batch_id=batch_id,
            step=step,
            step_version=STEP_VERSION,
            run_id=of.run_id,
            interval_start=day.start,
            interval_end=day.end,
            created_at=of.began,
            counts={
                "passed": states.count("passed"),
                "failed": states.count("failed"),
                "not_run": states.count("not run"),
            },
            details={"drills": {outcome.name: outcome.state for outcome in of.outcomes}, "failures": of.failures},
        )
    )
