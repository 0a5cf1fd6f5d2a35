"""Extract: what the sources say of the interval, as text, into a raw batch."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import date

from marketdata.batches import Batch, Interval, Lake, Manifest, content_id, now
from marketdata.datasets import Dataset
from marketdata.settings import Settings
from marketdata.sources import open_sources

log = logging.getLogger(__name__)

STEP_VERSION = 1


def extract(
    settings: Settings, dataset: Dataset, interval: Interval, *, lookback_days: int, run_id: str, attempt_of_run: int
) -> Batch:
    """Read every configured source for the interval, widened backwards by `lookback_days` for revisions.

    The batch is addressed by run, interval and sources: another try of the same step returns the first one's output,
    with its time of extraction; a run that was cleared (`attempt_of_run`) asks the sources anew.
    """
    sources = open_sources(settings, dataset)
    batch_id = content_id(
        "extract",
        STEP_VERSION,
        settings.tenant,
        dataset.name,
        dataset.version,
        str(interval),
        lookback_days,
        run_id,
        attempt_of_run,
        [source.fingerprint() for source in sources],
    )
    lake = Lake(settings)
    if found := lake.find(dataset.name, interval, batch_id):
        log.info("found this step's own output", extra={"batch": found.uri, "records": found.manifest.rows})
        return found

    asked = Interval(date.fromordinal(max(1, interval.start.toordinal() - lookback_days)), interval.end)
    extracted_at = now()
    counts: Counter[tuple[str, ...]] = Counter()
    writer = lake.writer(dataset.name, interval, batch_id)
    for source in sources:
        for table in source.fetch(asked, extracted_at):
            grouped = table.group_by(["source", "commodity", "series", "frequency"]).aggregate([([], "count_all")])
            for row in grouped.to_pylist():
                counts[tuple(row[key] or "" for key in ("source", "commodity", "series", "frequency"))] += row[
                    "count_all"
                ]
            writer.add(table)
        log.info("source read", extra={"source": source.name, "records": sum(counts.values())})
    return writer.commit(
        Manifest(
            dataset=dataset.name,
            tenant=settings.tenant,
            batch_id=batch_id,
            step="extract",
            step_version=STEP_VERSION,
            run_id=run_id,
            interval_start=interval.start,
            interval_end=interval.end,
            created_at=extracted_at,
            schema_version=dataset.version,
            counts={
                "extracted": sum(counts.values()),
                "by_series": [
                    {
                        "source": source,
                        "commodity": commodity,
                        "series": series,
                        "frequency": frequency,
                        "extracted": rows,
                    }
                    for (source, commodity, series, frequency), rows in sorted(counts.items())
                ],
            },
            details={
                "sources": [source.name for source in sources],
                "fingerprints": sorted(source.fingerprint() for source in sources),
                "lookback_days": lookback_days,
                "asked": str(asked),
            },
        )
    )
