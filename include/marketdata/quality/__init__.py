"""The quality gate: a suite of Great Expectations judges a raw batch; what it refuses is quarantined or stops a run."""

from __future__ import annotations

from marketdata.quality.html import report
from marketdata.quality.suite import Rule, Suite, load_suite, suite_hash, suite_path
from marketdata.quality.verdict import Verdict, gate

__all__ = ["Rule", "Suite", "Verdict", "gate", "load_suite", "report", "suite_hash", "suite_path"]
