"""Python code under our own rules and ruff's; each rule is shown the defect it is there for."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from tests.scans.findings import objections, skips
from tests.scans.installation import ROOT
from tests.scans.scanners import RULES, ruff_security, semgrep

CODE = ("dags", "include", "plugins", "deploy")
PLANTED = RULES / "planted.py"

SECURITY = {
    "S102": "exec(input())",
    "S105": "password = 'hunter2hunter2'",
    "S108": "open('/tmp/prices.csv')",
    "S113": "import requests\nrequests.get('https://example.com')",
    "S301": "import pickle\npickle.loads(input().encode())",
    "S306": "import tempfile\ntempfile.mktemp()",
    "S307": "eval(input())",
    "S310": "import urllib.request\nurllib.request.urlopen(input())",
    "S314": "import xml.etree.ElementTree as ET\nET.parse('prices.xml')",
    "S324": "import hashlib\nhashlib.md5(b'a')",
    "S501": "import requests\nrequests.get('https://example.com', verify=False, timeout=1)",
    "S506": "import yaml\nyaml.load('a', Loader=yaml.Loader)",
    "S602": "import subprocess\nsubprocess.run(input(), shell=True)",
    "S605": "import os\nos.system(input())",
    "S608": "def f(c, x):\n    c.execute(f\"SELECT * FROM t WHERE a = '{x}'\")",
    "S701": "import jinja2\njinja2.Environment()",
}


def test_the_code_breaks_no_rule_of_ours() -> None:
    found = list(semgrep([folder for folder in CODE if (ROOT / folder).exists()]))
    assert not (wrong := objections("semgrep", found, skips(), datetime.now(UTC).date())), "\n".join(wrong)


def test_each_rule_finds_what_is_planted_and_nothing_else() -> None:
    expected = Counter()
    for line in PLANTED.read_text().splitlines():
        code, marked, rule = line.strip().rpartition("  # ")
        if marked and code and rule != "fine":
            expected[rule, line.strip()] += 1
    found = Counter(
        (finding.rule, finding.where.partition(": ")[2]) for finding in semgrep([PLANTED.name], folder=PLANTED.parent)
    )
    assert found.keys() - expected.keys() == set()
    assert expected.keys() - found.keys() == set()
    rules = {rule["id"] for rule in yaml.safe_load((RULES / "rules.yaml").read_text())["rules"]}
    assert {rule for rule, _ in expected} == rules, "a rule without a planted defect proves nothing"


@pytest.mark.parametrize("rule", SECURITY)
@pytest.mark.parametrize("file", ["include/marketdata/planted.py", "dags/planted.py", "plugins/planted.py"])
def test_ruff_finds_it_in_the_product(rule: str, file: str) -> None:
    assert rule in {finding.rule for finding in ruff_security(SECURITY[rule] + "\n", file)}


def test_ruff_is_run_by_make_check() -> None:
    assert "ruff check\n" in (ROOT / "Makefile").read_text()
    assert Path(ROOT / ".ci" / "run").read_text().count("make check") == 1
