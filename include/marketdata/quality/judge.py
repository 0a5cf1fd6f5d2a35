"""Great Expectations, asked once per chunk; and its answers over all chunks, as if there had been only one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from marketdata.errors import MarketdataError, UsageError
from marketdata.quality.suite import Rule, Suite

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from great_expectations.core import ExpectationSuite, ExpectationValidationResult
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from numpy.typing import NDArray

LISTED = 200
"""Entries of a list in the result; Great Expectations itself lists no more values."""

PARTIAL = 20
"""Entries of a ``partial_`` list, Great Expectations' own number."""

NOT_EXAMINED = "not examined"

RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "partial_unexpected_count": PARTIAL,
    # It would hold the whole list of failing rows once more, as text.
    "return_unexpected_index_query": False,
}


@dataclass
class Outcome:
    """What Great Expectations says of one rule, over the chunks seen so far."""

    rule: Rule
    config: Mapping[str, Any] = field(default_factory=dict)
    success: bool = True
    elements: int = 0
    missing: int = 0
    unexpected: int = 0
    values: list[Any] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)

    @property
    def checked(self) -> int:
        """Values looked at: NULLs are not."""
        return self.elements - self.missing

    def add(self, answer: ExpectationValidationResult, first_row: int) -> NDArray[np.intp]:
        """Count a chunk in; returns the chunk's rows that break the rule.

        Raises:
            MarketdataError: the expectation raised, or its answer contradicts itself.
        """
        import numpy as np

        _must_have_run(self.rule, answer)
        said = answer.result
        if "unexpected_index_list" not in said:
            raise UsageError(
                f"rule {self.rule.id} is a {_config(answer).type}, which names no rows; no row was accepted",
                "use an expectation on the values of a column or of two columns",
            )
        failing = np.asarray(said["unexpected_index_list"], dtype=np.intp)
        if len(failing) != said["unexpected_count"]:
            raise MarketdataError(
                f"rule {self.rule.id}: Great Expectations counts {said['unexpected_count']} failing rows and names "
                f"{len(failing)}; no row was accepted"
            )
        self.config = plain(_config(answer).to_json_dict())
        self.success = self.success and bool(answer.success)
        self.elements += said["element_count"]
        self.missing += said.get("missing_count", 0)  # a rule against NULLs has none
        self.unexpected += said["unexpected_count"]
        room = LISTED - len(self.values)
        self.values += plain(said["unexpected_list"][:room])
        self.rows += (failing[: LISTED - len(self.rows)] + first_row).tolist()
        return failing

    def summary(self) -> dict[str, Any]:
        return {
            "rule": self.rule.id,
            "level": self.rule.level,
            "says": self.rule.says,
            "checked": self.checked,
            "failed": self.unexpected,
            "percent": _percent(self.unexpected, self.checked),
            "observed": "",
        }

    def to_dict(self) -> dict[str, Any]:
        """As Great Expectations would have answered, lists cut at `LISTED` entries."""
        partial = self.values[:PARTIAL]
        counts = Counter(map(repr, partial))
        by_repr = {repr(value): value for value in partial}
        return {
            "success": self.success,
            "expectation_config": dict(self.config),
            "result": {
                "element_count": self.elements,
                "missing_count": self.missing,
                "missing_percent": _percent(self.missing, self.elements),
                "unexpected_count": self.unexpected,
                "unexpected_percent": _percent(self.unexpected, self.checked),
                "unexpected_percent_total": _percent(self.unexpected, self.elements),
                "unexpected_percent_nonmissing": _percent(self.unexpected, self.checked),
                "partial_unexpected_list": partial,
                "partial_unexpected_index_list": self.rows[:PARTIAL],
                "partial_unexpected_counts": [
                    {"value": by_repr[text], "count": count} for text, count in counts.most_common()
                ],
                "unexpected_list": self.values,
                "unexpected_index_list": self.rows,
            },
            "meta": {},
            "exception_info": {"raised_exception": False, "exception_message": None, "exception_traceback": None},
        }


@dataclass(frozen=True)
class DatasetOutcome:
    """What Great Expectations says of a rule about the whole batch."""

    rule: Rule
    success: bool
    observed: str
    answer: Mapping[str, Any]

    def failure(self) -> dict[str, str]:
        return {"rule": self.rule.id, "says": self.rule.says, "observed": self.observed}

    def summary(self) -> dict[str, Any]:
        return {
            "rule": self.rule.id,
            "level": self.rule.level,
            "says": self.rule.says,
            "checked": int(self.observed != NOT_EXAMINED),
            "failed": int(not self.success),
            "percent": None,
            "observed": self.observed,
        }

    def to_dict(self) -> dict[str, Any]:
        return dict(self.answer)


class Judge:
    """Great Expectations in memory: nothing on disk, no progress bar, no telemetry. Importing it takes seconds."""

    def __init__(self, suite: Suite, latest: datetime) -> None:
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        self.version: str = gx.__version__
        self._suites: dict[str, ExpectationSuite] = {level: suite.expectations(level) for level in ("row", "dataset")}
        self._rules = {rule.id: rule for rule in suite.rules}
        self._parameters = {"latest": latest.replace(tzinfo=None).isoformat()}
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("batch").add_dataframe_asset("rows")
        self._batch = asset.add_batch_definition_whole_dataframe("all")

    def ask(self, level: str, frame: pd.DataFrame) -> dict[str, ExpectationValidationResult]:
        """Rule → answer, for the rules of one level.

        Raises:
            MarketdataError: a rule was not answered.
        """
        wanted = [rule for rule in self._rules.values() if rule.level == level]
        batch = self._batch.get_batch({"dataframe": frame})
        try:
            validation = batch.validate(
                self._suites[level], result_format=RESULT_FORMAT, expectation_parameters=self._parameters
            )
        except Exception as error:  # a suite parameter nobody gives, for one: what it raises is not documented
            message = str(error).strip().splitlines() or [type(error).__name__]
            raise MarketdataError(
                f"Great Expectations could not judge the {level} rules: {message[0]}; no row was accepted",
                "the only suite parameter is latest",
            ) from error
        answers = {(_config(answer).meta or {})["rule"]: answer for answer in validation.results}
        if missing := [rule.id for rule in wanted if rule.id not in answers]:
            raise MarketdataError(f"Great Expectations did not answer rule {missing[0]}; no row was accepted")
        return {rule.id: answers[rule.id] for rule in wanted}

    def dataset_rules(
        self, suite: Suite, profile: Mapping[str, float | None], words: Mapping[str, str]
    ) -> list[DatasetOutcome]:
        """Judge the batch as a whole.

        Args:
            profile: the batch in numbers; None where nothing could be looked at, which no rule holds against it.
            words: what else the rules' `observed` templates name.
        """
        import pandas as pd

        answers = self.ask("dataset", pd.DataFrame([profile], dtype="float64"))
        said = {name: "" if value is None else f"{value:,}" for name, value in profile.items()} | dict(words)
        outcomes = []
        for rule in suite.of("dataset"):
            answer = answers[rule.id]
            _must_have_run(rule, answer)
            looked_at = profile.get((_config(answer).kwargs or {}).get("column", ""), 0) is not None
            try:
                observed = rule.observed.format_map(said) if looked_at else NOT_EXAMINED
            except KeyError as error:
                raise UsageError(f"rule {rule.id} observes {error}, which is not in {', '.join(said)}") from error
            outcomes.append(DatasetOutcome(rule, bool(answer.success), observed, plain(answer.to_json_dict())))
        return outcomes


def plain(value: Any) -> Any:
    """As JSON knows it: no NumPy scalar, no NaN, no timestamp."""
    import numpy as np
    import pandas as pd

    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item() if not isinstance(value, np.datetime64) else pd.Timestamp(value)
    if value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.isoformat() if isinstance(value, date | datetime) else value


def _config(answer: ExpectationValidationResult) -> ExpectationConfiguration:
    if answer.expectation_config is None:
        raise MarketdataError("Great Expectations does not say which expectation it answers; no row was accepted")
    return answer.expectation_config


def _must_have_run(rule: Rule, answer: ExpectationValidationResult) -> None:
    """Great Expectations catches what an expectation raises and answers success: false; here it is an error."""
    info = answer.exception_info or {}
    # Flat, or one entry per metric that raised.
    entries: Sequence[Any] = [info] if "raised_exception" in info else list(info.values())
    for entry in entries:
        if isinstance(entry, Mapping) and entry.get("raised_exception", True):
            message = (str(entry.get("exception_message") or "").strip().splitlines() or ["no message"])[0]
            raise MarketdataError(
                f"rule {rule.id} could not be checked: {message}; no row was accepted",
                "correct the rule in the suite, or the column it looks at",
            )


def _percent(part: int, whole: int) -> float | None:
    return part / whole * 100 if whole else None
