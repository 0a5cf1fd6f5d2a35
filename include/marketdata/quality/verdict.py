"""The gate: one suite decides which rows are quarantined and whether the run goes on.

The failing rows are those that Great Expectations names (`unexpected_index_list`); there is no second implementation of
a rule. An expectation that raised is a failure of the gate, never a pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

from marketdata.datasets import Dataset
from marketdata.quality.conflicts import Evidence, conflicts, evidence
from marketdata.quality.frames import Chunk, chunks
from marketdata.quality.refusals import Refusals, refuse, schema
from marketdata.quality.suite import Suite, load_suite, suite_hash

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray


CLOCK_SKEW = timedelta(minutes=5)
"""How far a source's clock may be ahead of ours."""

SERIES = ("source", "commodity", "series", "frequency")


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a batch.

    Args:
        rows: rows of the batch.
        accepted: rows that broke no row rule.
        quarantined: rows that broke one, with `row_index`, the row's number in the batch, from 0.
        failures: dataset rules that stop the run: rule, says, observed.
        rules: per rule, in the order of the suite: rule, level, says, checked, failed, percent, observed.
        by_series: per source, commodity, series and frequency: extracted, accepted, quarantined.
        reasons: why rows are quarantined → how many; each row counts once, for the first rule it breaks.
        result: Great Expectations' result over the whole batch; its lists are cut.
    """

    rows: int
    accepted: int
    quarantined: pa.Table
    failures: list[dict[str, str]] = field(default_factory=list)
    rules: list[dict[str, Any]] = field(default_factory=list)
    by_series: list[dict[str, Any]] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failures


def gate(dataset: Dataset, tables: Iterable[pa.Table], *, ingested_at: datetime, context: Mapping[str, str]) -> Verdict:
    """Judge a raw batch.

    Args:
        tables: the batch's parts, in order, as `Dataset.raw_schema`.
        ingested_at: when the batch was extracted; with its time zone.
        context: tenant, batch_id and run_id of the batch.

    Raises:
        UsageError: the suite is missing or wrong.
        MarketdataError: an expectation raised, so that its rows are neither good nor bad.
    """
    suite = load_suite(dataset)
    extracted = ingested_at.astimezone(UTC)
    parts = _Parts(dataset, iter(tables))
    stream = iter(parts)
    first = next(stream, None)
    if not parts.rows:
        return _nothing_to_judge(dataset, suite)

    findings = _Findings()
    with ThreadPoolExecutor(1, "gate") as beside:
        typed = chunks(dataset, stream if first is None else chain([first], stream))
        # The next chunk is read and typed beside Great Expectations' work; the first one beside its import.
        ahead = beside.submit(next, typed, None)
        from marketdata.quality.judge import DatasetOutcome, Judge, Outcome

        judge = Judge(suite, latest=extracted + CLOCK_SKEW)
        outcomes = [Outcome(rule) for rule in suite.of("row")]
        while (chunk := ahead.result()) is not None:
            facts = beside.submit(_facts, dataset, chunk)
            ahead = beside.submit(next, typed, None)
            answers = judge.ask("row", chunk.frame)
            broken = {outcome.rule: outcome.add(answers[outcome.rule.id], chunk.first) for outcome in outcomes}
            refusals = refuse(dataset, chunk, broken, quarantined_at=extracted, context=context)
            findings.add(chunk, refusals, *facts.result())

    profile, words = _profile(parts, findings)
    verdicts = judge.dataset_rules(suite, profile, words)
    judged: list[Outcome | DatasetOutcome] = [*outcomes, *verdicts]
    meta = {
        "great_expectations_version": judge.version,
        "dataset": dataset.name,
        "suite_hash": suite_hash(dataset),
        "ingested_at": extracted.isoformat(),
        **context,
    }
    return Verdict(
        rows=parts.rows,
        accepted=findings.judged - findings.refused,
        quarantined=findings.quarantined(dataset),
        failures=[verdict.failure() for verdict in verdicts if not verdict.success],
        rules=[outcome.summary() for outcome in judged],
        by_series=findings.by_series(),
        reasons=findings.reasons(),
        result=_result(suite, [outcome.to_dict() for outcome in judged], meta),
    )


@dataclass
class _Parts:
    """The parts of a batch whose columns are the contract's; the others are counted, and not looked at."""

    dataset: Dataset
    tables: Iterator[pa.Table]
    rows: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[pa.Table]:
        contract = self.dataset.raw_schema()
        for table in self.tables:
            if not len(table):
                continue
            self.rows += len(table)
            missing = [name for name in contract.names if name not in table.column_names]
            unexpected = [
                f"{name} ({table.schema.field(name).type})"
                for name in table.column_names
                if name not in contract.names or not _same(table.schema.field(name).type, contract.field(name).type)
            ]
            self.missing.update(missing)
            self.unexpected.update(unexpected)
            if not missing and not unexpected:
                yield table.select(contract.names).cast(contract)


def _same(found: pa.DataType, wanted: pa.DataType) -> bool:
    """The wanted type, or the same text laid out in another way."""
    import pyarrow as pa

    if pa.types.is_dictionary(found):
        found = found.value_type
    return bool(found == wanted or (pa.types.is_string(wanted) and pa.types.is_large_string(found)))


@dataclass
class _Findings:
    """What is known of the chunks judged so far."""

    judged: int = 0
    refused: int = 0
    _refusals: list[Refusals] = field(default_factory=list)
    _extracted: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _quarantined: Counter[tuple[str, ...]] = field(default_factory=Counter)
    evidence: list[tuple[Evidence, NDArray[np.bool_]]] = field(default_factory=list)

    def add(self, chunk: Chunk, refusals: Refusals, kept: Evidence, series: Counter[tuple[str, ...]]) -> None:
        import numpy as np

        self.judged += len(chunk.frame)
        self.refused += len(refusals.rows)
        self._refusals.append(refusals)
        self._extracted += series
        self._quarantined += _by_series(chunk.frame.iloc[refusals.rows])
        accepted = np.ones(len(chunk.frame), dtype=np.bool_)
        accepted[refusals.rows] = False
        self.evidence.append((kept, accepted))

    def quarantined(self, dataset: Dataset) -> pa.Table:
        import pyarrow as pa

        return pa.concat_tables([schema(dataset).empty_table(), *(refusals.table for refusals in self._refusals)])

    def by_series(self) -> list[dict[str, Any]]:
        return [
            {
                **dict(zip(SERIES, key, strict=True)),
                "extracted": rows,
                "accepted": rows - self._quarantined[key],
                "quarantined": self._quarantined[key],
            }
            for key, rows in sorted(self._extracted.items())
        ]

    def reasons(self) -> dict[str, int]:
        """A reason that stands alone is given in full, with its value."""
        counts: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for refusals in self._refusals:
            for reason, (count, example) in refusals.reasons.items():
                counts[reason] += count
                examples[reason] = example
        return {examples[reason] if count == 1 else reason: count for reason, count in counts.most_common()}


def _facts(dataset: Dataset, chunk: Chunk) -> tuple[Evidence, Counter[tuple[str, ...]]]:
    return evidence(dataset, chunk), _by_series(chunk.frame)


def _by_series(frame: pd.DataFrame) -> Counter[tuple[str, ...]]:
    """(source, commodity, series, frequency) → rows; "" where the source said nothing."""
    sizes = frame.groupby(list(SERIES), observed=True, dropna=False, sort=False).size()
    return Counter(
        {
            tuple(text if isinstance(text, str) else "" for text in key): int(rows)
            for key, rows in zip(sizes.index.tolist(), sizes.tolist(), strict=True)
        }
    )


def _profile(parts: _Parts, findings: _Findings) -> tuple[dict[str, int | float | None], dict[str, str]]:
    """The batch as one row of numbers, for the dataset rules, and what belongs to them in words."""
    conflicting, named = conflicts(findings.evidence)
    judged, refused = findings.judged, findings.refused
    profile = {
        "rows": parts.rows,
        "missing_columns": len(parts.missing),
        "unexpected_columns": len(parts.unexpected),
        "accepted": judged - refused if judged else None,
        "quarantined": refused if judged else None,
        "quarantined_ratio": refused / judged if judged else None,
        "conflicting_keys": conflicting if judged else None,
    }
    words = {
        "missing": ", ".join(parts.missing) or "none",
        "unexpected": ", ".join(parts.unexpected) or "none",
        "conflicts": named or "none",
        "percent": f"{refused / judged:.1%}" if judged else "",
    }
    return profile, words


def _result(suite: Suite, results: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> dict[str, Any]:
    """In the shape of Great Expectations' own suite result."""
    good = sum(bool(result["success"]) for result in results)
    return {
        "success": good == len(results),
        "suite_name": suite.name,
        "results": list(results),
        "statistics": {
            "evaluated_expectations": len(results),
            "successful_expectations": good,
            "unsuccessful_expectations": len(results) - good,
            "success_percent": good / len(results) * 100 if results else None,
        },
        "meta": dict(meta),
    }


def _nothing_to_judge(dataset: Dataset, suite: Suite) -> Verdict:
    """No data is no fault: the suite is not even asked."""
    rules = [
        {
            "rule": r.id,
            "level": r.level,
            "says": r.says,
            "checked": 0,
            "failed": 0,
            "percent": None,
            "observed": "no data",
        }
        for r in suite.rules
    ]
    result = _result(suite, [], {"dataset": dataset.name, "suite_hash": suite_hash(dataset), "no_data": True})
    return Verdict(rows=0, accepted=0, quarantined=schema(dataset).empty_table(), rules=rules, result=result)
