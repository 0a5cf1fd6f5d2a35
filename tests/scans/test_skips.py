"""The list of what is let pass, itself under test."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from tests.scans.findings import Finding, Skip, objections, skips

TODAY = date(2026, 11, 21)
FOUND = Finding("checkov", "CKV_K8S_43", "Pod production/extract", "Image should use digest")
REASON = "pinned where it is deployed"


def skip(**said: object) -> Skip:
    known = {"scanner": "checkov", "rule": "CKV_K8S_43", "where": "Pod *", "reason": REASON, "expires": TODAY}
    return Skip(**{**known, **said})  # type: ignore[arg-type]


def test_a_finding_nobody_lets_pass_fails() -> None:
    (said,) = objections("checkov", [FOUND], [], TODAY)
    assert said == "checkov CKV_K8S_43 at Pod production/extract: Image should use digest"


def test_a_skip_lets_pass_what_it_names() -> None:
    assert objections("checkov", [FOUND], [skip()], TODAY) == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"expires": date(2026, 11, 20)}, "has expired on 2026-11-20"),
        ({"expires": date(2028, 1, 1)}, "is for more than a year"),
        ({"where": "Pod kafka/*"}, "covers nothing any more"),
        ({"rule": "CKV_K8S_4"}, "covers nothing any more"),
        ({"reason": "noise"}, "gives no reason"),
    ],
)
def test_a_skip_that_fails_the_scan(said: dict[str, object], why: str) -> None:
    assert any(why in line for line in objections("checkov", [FOUND], [skip(**said)], TODAY))


def test_a_skip_of_another_scanner_is_not_asked() -> None:
    assert objections("kube-score", [], [skip()], TODAY) == []


@pytest.mark.parametrize("entry", ["- {scanner: checkov, rule: X, where: y, reason: z}", "- {scaner: checkov}"])
def test_an_entry_says_all_and_nothing_else(tmp_path: Path, entry: str) -> None:
    file = tmp_path / "skips.yaml"
    file.write_text(entry)
    with pytest.raises(TypeError):
        skips(file)


def test_every_entry_is_of_a_scanner_there_is() -> None:
    there = {
        "semgrep",
        "checkov kubernetes",
        "checkov dockerfile",
        "kube-score",
        "kubernetes-validate",
        "hadolint",
        "gitleaks",
    }
    assert {skip.scanner for skip in skips()} <= there
