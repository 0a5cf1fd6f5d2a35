"""What a scanner found, and the one list of what is let pass, with a reason and until when."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import yaml

SKIPS = Path(__file__).with_name("skips.yaml")
LONGEST = timedelta(days=366)
"""A skip is looked at again at least once a year."""


@dataclass(frozen=True, order=True)
class Finding:
    """One objection.

    Args:
        scanner: its name.
        rule: the rule's id.
        where: what it is about, in words that a moved line does not change.
        says: the rule in words.
    """

    scanner: str
    rule: str
    where: str
    says: str

    def __str__(self) -> str:
        return f"{self.scanner} {self.rule} at {self.where}: {self.says}"


@dataclass(frozen=True)
class Skip:
    """Findings that are let pass; `where` is a finding's, with ``*`` for anything."""

    scanner: str
    rule: str
    where: str
    reason: str
    expires: date

    def __str__(self) -> str:
        return f"skip of {self.scanner} {self.rule} at {self.where}"

    def covers(self, finding: Finding) -> bool:
        pattern = ".*".join(re.escape(part) for part in self.where.split("*"))
        same = (self.scanner, self.rule) == (finding.scanner, finding.rule)
        return same and re.fullmatch(pattern, finding.where, re.DOTALL) is not None


def skips(file: Path = SKIPS) -> list[Skip]:
    """The list.

    Raises:
        TypeError: an entry has an unknown key, or lacks one.
    """
    return [Skip(**entry) for entry in yaml.safe_load(file.read_text()) or []]


def objections(scanner: str, findings: Iterable[Finding], known: Iterable[Skip], today: date) -> list[str]:
    """What is wrong about a scan: findings nobody lets pass, and skips that have expired or cover nothing."""
    of_scanner = [skip for skip in known if skip.scanner == scanner]
    found = sorted(set(findings))
    wrong = [str(finding) for finding in found if not any(skip.covers(finding) for skip in of_scanner)]
    for skip in of_scanner:
        if skip.expires < today:
            wrong.append(f"{skip} has expired on {skip.expires}; it was let pass because: {skip.reason}")
        elif skip.expires > today + LONGEST:
            wrong.append(f"{skip} is for more than a year: {skip.expires}")
        if not any(skip.covers(finding) for finding in found):
            wrong.append(f"{skip} covers nothing any more: take it out")
        if len(skip.reason.split()) < 4:
            wrong.append(f"{skip} gives no reason")
    return wrong
