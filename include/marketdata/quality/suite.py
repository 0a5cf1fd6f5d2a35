"""Suites: ``expectations/<dataset>.json``, in Great Expectations' own format, with rules for people in `meta`.

Each expectation's `meta` has `rule` (its name), `level` (``row``: the row is quarantined; ``dataset``: the run stops)
and `says` (plain words). A row rule also names `column`, the raw column a reason quotes, and may name `limit`, the
column of the bound it compares with; a dataset rule has `observed`, a template of what a reader wants to see.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marketdata.datasets import Dataset
from marketdata.errors import UsageError
from marketdata.settings import CHECKOUT

if TYPE_CHECKING:
    import great_expectations as gx

IMAGE = Path("/opt/marketdata/expectations")
"""Where the task image has the suites."""

LEVELS = ("row", "dataset")


@dataclass(frozen=True)
class Rule:
    """One expectation, as people know it.

    Args:
        id: lower_snake_case; what quarantine tables and failures name.
        level: ``row`` or ``dataset``.
        says: plain words.
        column: raw column a row rule's reason quotes.
        limit: column of the frame that holds the bound a row rule compares with.
        observed: template over the dataset's profile, of a dataset rule.
        expectation: the expectation in Great Expectations' own format.
    """

    id: str
    level: str
    says: str
    column: str = ""
    limit: str = ""
    observed: str = ""
    expectation: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)


@dataclass(frozen=True)
class Suite:
    """The rules of a dataset, in the order of the file: the first rule a row breaks is the reason it is quarantined."""

    name: str
    rules: tuple[Rule, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def of(self, level: str) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.level == level)

    def expectations(self, level: str) -> gx.ExpectationSuite:
        """Great Expectations' suite of one level.

        Raises:
            UsageError: Great Expectations refuses it.
        """
        import great_expectations as gx

        rules = self.of(level)
        try:
            suite = gx.ExpectationSuite(
                name=f"{self.name}_{level}", expectations=[dict(rule.expectation) for rule in rules]
            )
        except Exception as error:  # pydantic's, jsonschema's and its own, by expectation type
            raise self._refused(_first_lines(error)) from error
        # An expectation it cannot build is left out, with no more than a log record.
        taken = [(expectation.meta or {}).get("rule") for expectation in suite.expectations]
        if lost := [rule for rule in rules if rule.id not in taken]:
            raise self._refused(f"rule {lost[0].id} is not an expectation ({lost[0].expectation.get('type')})")
        return suite

    def _refused(self, why: str) -> UsageError:
        return UsageError(
            f"Great Expectations refuses suite {self.name}: {why}; no row was examined",
            f"correct expectations/{self.name}.json",
        )


def suite_path(dataset: Dataset) -> Path:
    """The suite's file: the checkout's, else the image's.

    Raises:
        UsageError: there is none.
    """
    places = [folder / f"{dataset.name}.json" for folder in (CHECKOUT / "expectations", IMAGE)]
    for place in places:
        if place.is_file():
            return place
    raise UsageError(
        f"dataset {dataset.name} has no expectation suite: neither {places[0]} nor {places[1]} is there",
        f"write expectations/{dataset.name}.json",
    )


def suite_hash(dataset: Dataset) -> str:
    """Hash of the suite's content, for the address of a step's output; layout does not count. 16 hexadecimal digits."""
    content = json.dumps(_read(suite_path(dataset)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def load_suite(dataset: Dataset) -> Suite:
    """Read a dataset's suite, without importing Great Expectations.

    Raises:
        UsageError: there is none, the file is no suite, or an expectation does not say which rule it is.
    """
    path = suite_path(dataset)
    document = _read(path)
    expectations = document.get("expectations")
    if not document.get("name") or not isinstance(expectations, list) or not expectations:
        raise UsageError(f"{path} is not an expectation suite: it needs a name and a list of expectations")
    rules = [_rule(path, number, expectation) for number, expectation in enumerate(expectations, start=1)]
    names = [rule.id for rule in rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{path} names rule {twice[0]} twice", "give each expectation a rule of its own")
    said = [column.name for column in dataset.raw_columns]
    for rule in rules:
        if rule.level == "row" and rule.column not in said:
            raise UsageError(
                f"{path}: rule {rule.id} quotes {rule.column}, which no source says", f"one of: {', '.join(said)}"
            )
    return Suite(document["name"], tuple(rules), document.get("meta") or {})


def _rule(path: Path, number: int, expectation: Any) -> Rule:
    meta = expectation.get("meta") if isinstance(expectation, dict) else None
    if not isinstance(meta, dict):
        raise UsageError(f"{path}: expectation {number} has no meta", "its meta must have rule, level and says")
    needed = ["rule", "level", "says", "column" if meta.get("level") == "row" else "observed"]
    if missing := [name for name in needed if not isinstance(meta.get(name), str) or not meta[name]]:
        raise UsageError(f"{path}: the meta of expectation {number} lacks {', '.join(missing)}")
    if meta["level"] not in LEVELS:
        raise UsageError(
            f"{path}: level {meta['level']!r} of rule {meta['rule']} is unknown", f"levels: {', '.join(LEVELS)}"
        )
    return Rule(
        id=meta["rule"],
        level=meta["level"],
        says=meta["says"],
        column=meta.get("column", ""),
        limit=meta.get("limit", ""),
        observed=meta.get("observed", ""),
        expectation=expectation,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; no row was examined") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}; no row was examined", "correct the suite") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not an expectation suite: it must be a JSON object")
    return document


def _first_lines(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return " ".join(line.strip() for line in lines[:3]) or type(error).__name__
