"""Validate: the gate's verdict on a raw batch, with the refused rows, the full result and a report for people."""

from __future__ import annotations

import json
import logging

from marketdata import quality
from marketdata.batches import Batch, Lake, Manifest, content_id
from marketdata.datasets import Dataset
from marketdata.errors import BadDataError
from marketdata.settings import Settings

log = logging.getLogger(__name__)

STEP_VERSION = 1


def validate(settings: Settings, dataset: Dataset, raw: Batch) -> Batch:
    """Judge a raw batch. The verdict is a batch of its own: its rows are the quarantined ones.

    Raises:
        BadDataError: a dataset rule says stop. The verdict and its report are written all the same; nothing that comes
            after this step has been touched.
    """
    lake = Lake(settings)
    batch_id = content_id("validate", STEP_VERSION, raw.manifest.batch_id, quality.suite_hash(dataset))
    verdict = lake.find(dataset.name, raw.manifest.interval, batch_id) or _judge(lake, dataset, raw, batch_id)
    if failures := verdict.manifest.details["failures"]:
        says = "; ".join(f"{failure['says']} (observed: {failure['observed']})" for failure in failures)
        raise BadDataError(
            f"{dataset.name} {raw.manifest.interval} is refused: {says}; nothing was published or loaded",
            f"read {verdict.file_uri('report.html')}, correct the source or the suite, then clear the run",
            verdict.summary(),
        )
    return verdict


def _judge(lake: Lake, dataset: Dataset, raw: Batch, batch_id: str) -> Batch:
    manifest = raw.manifest
    context = {"tenant": manifest.tenant, "batch_id": manifest.batch_id, "run_id": manifest.run_id}
    verdict = quality.gate(dataset, raw.tables(), ingested_at=manifest.created_at, context=context)
    statistics = verdict.result.get("statistics", {})
    writer = lake.writer(dataset.name, manifest.interval, batch_id)
    writer.add(verdict.quarantined)
    writer.add_file("result.json", json.dumps(verdict.result, default=str).encode())
    writer.add_file(
        "report.html",
        quality.report(
            dataset, verdict, interval=manifest.interval, batch_id=manifest.batch_id, run_id=manifest.run_id,
            extracted_at=manifest.created_at, sources=manifest.details["sources"],
        ),
    )  # fmt: skip
    log.info(
        "judged", extra={"records": verdict.rows, "quarantined": len(verdict.quarantined), "passed": verdict.passed}
    )
    return writer.commit(
        Manifest(
            dataset=dataset.name,
            tenant=manifest.tenant,
            batch_id=batch_id,
            step="validate",
            step_version=STEP_VERSION,
            run_id=manifest.run_id,
            interval_start=manifest.interval_start,
            interval_end=manifest.interval_end,
            created_at=manifest.created_at,
            parent=raw.uri,
            schema_version=dataset.version,
            counts={
                "rows": verdict.rows,
                "accepted": verdict.accepted,
                "quarantined": len(verdict.quarantined),
                "expectations_met": statistics.get("successful_expectations", 0),
                "expectations_broken": statistics.get("unsuccessful_expectations", 0),
                "by_series": verdict.by_series,
                "reasons": verdict.reasons,
            },
            details={"passed": verdict.passed, "failures": verdict.failures},
        )
    )
