"""No secret in the repository, now or ever; every kind is planted first and has to be found."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import string
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.scans.findings import objections, skips
from tests.scans.installation import ROOT
from tests.scans.scanners import BASELINE, detect_secrets, gitleaks

TODAY = datetime.now(UTC).date()
LETTERS = string.ascii_letters + string.digits
CAPITALS = string.ascii_uppercase + string.digits
WORDLESS = "jkqvwxzJKQVWXZ" + string.digits
"""The scanner takes a key for a name if it holds a word: one in a hundred of `LETTERS` does."""


def made_up(length: int, alphabet: str = LETTERS) -> str:
    """Text as random as a secret: written down here, it would be found here.

    No character comes twice where there are enough: one in some thousands would not look random to the scanners.
    """
    chance = secrets.SystemRandom()
    return "".join(chance.sample(alphabet, length) if length <= len(alphabet) else chance.choices(alphabet, k=length))


def git(folder: Path, *arguments: str) -> str:
    identity = {
        f"GIT_{who}_{what}": "planted@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    trust = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", **identity, **trust}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is in the working tree and is, or would be, committed."""
    folder = tmp_path_factory.mktemp("tree")
    for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[str], Path]:
    """A repository in which somebody committed a line, and took it out again."""

    def make(line: str) -> Path:
        folder = tmp_path / "repository"
        folder.mkdir()
        git(folder, "init", "--quiet")
        for text in (line, "nothing"):
            (folder / "settings.py").write_text(f"{text}\n")
            git(folder, "add", ".")
            git(folder, "commit", "--quiet", "--message", "settings")
        return folder

    return make


def test_no_secret_in_the_whole_history_or_in_the_working_tree(tree: Path, tmp_path: Path) -> None:
    assert git(ROOT, "rev-parse", "--is-shallow-repository").strip() == "false", "the history has been cut off"
    found = [*gitleaks("git", ROOT, tmp_path / "history.json"), *gitleaks("dir", tree, tmp_path / "tree.json")]
    assert not (wrong := objections("gitleaks", found, skips(), TODAY)), "\n".join(wrong)


PLANTED: dict[str, Callable[[], tuple[str, str]]] = {
    "aws-access-token": lambda: ("AWS_ACCESS_KEY_ID = 'AKIA{}'", made_up(16, string.ascii_uppercase + "234567")),
    "slack-bot-token": lambda: (
        "TOKEN = 'xoxb-{}'", f"{made_up(12, string.digits)}-{made_up(13, string.digits)}-{made_up(24)}",
    ),
    "slack-webhook-url": lambda: (
        "URL = 'https://hooks.slack.com/services/{}'",
        f"T{made_up(8, CAPITALS)}/B{made_up(8, CAPITALS)}/{made_up(24)}",
    ),
    "generic-api-key": lambda: ("commodity_api_key = '{}'", made_up(40, WORDLESS)),
    "github-pat": lambda: ("token = 'ghp_{}'", made_up(36)),
    "private-key": lambda: (
        "KEY = '''-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----'''", made_up(800),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", PLANTED)
def test_a_secret_that_was_committed_and_taken_out_is_found(
    repository: Callable[[str], Path], tmp_path: Path, rule: str
) -> None:
    line, secret = PLANTED[rule]()
    folder = repository(line.format(secret))
    report = tmp_path / "report.json"
    assert (rule, "settings.py") in {(found.rule, found.where) for found in gitleaks("git", folder, report)}
    assert list(gitleaks("dir", folder, report)) == [], "it is in the history alone"
    assert secret not in report.read_text()


def test_a_secret_in_base_64_or_marked_as_none_is_found(tmp_path: Path) -> None:
    line, secret = PLANTED["aws-access-token"]()
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "values.yaml").write_text(f"data: {base64.b64encode(line.format(secret).encode()).decode()}\n")
    (planted / "settings.py").write_text(f"{line.format(secret)}  # gitleaks:allow\n")
    found = {(each.rule, each.where) for each in gitleaks("dir", planted, tmp_path / "report.json")}
    assert found == {("aws-access-token", "values.yaml"), ("aws-access-token", "settings.py")}


def test_what_looks_like_a_secret_has_been_looked_at(tree: Path) -> None:
    """Every entry of the baseline was judged by a person to be none, and still stands where it stood."""
    names = [file.relative_to(tree).as_posix() for file in tree.rglob("*") if file.is_file()]
    found = detect_secrets(tree, names)
    audited = {
        (file, entry["type"], entry["hashed_secret"]): entry.get("is_secret")
        for file, entries in json.loads(BASELINE.read_text())["results"].items()
        for entry in entries
    }
    new = sorted(f"{file}:{found[file, kind, digest]} {kind}" for file, kind, digest in found.keys() - audited.keys())
    assert new == [], "look at them; if they are none: tests/scans/README.md says how they are audited"
    assert audited.keys() - found.keys() == set(), "entries for what is not there any more"
    assert set(audited.values()) <= {False}, "entries nobody has judged, or that are secrets"


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("Basic Auth Credentials", "dsn: postgresql://app:{}@database:5432/prices"),
        ("Secret Keyword", "password: '{}'"),
        ("Base64 High Entropy String", "value: '{}'"),
    ],
)
def test_detect_secrets_finds_what_is_planted(tmp_path: Path, kind: str, line: str) -> None:
    (tmp_path / "values.yaml").write_text(line.format(made_up(48)) + "\n")
    assert kind in {found for _, found, _ in detect_secrets(tmp_path, ["values.yaml"])}
