"""Each scanner, asked for its findings; marks in the scanned files that would hush it are not obeyed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.engines.go import tool
from tests.kubernetes.charts import KUBERNETES
from tests.scans.findings import Finding
from tests.scans.installation import ROOT, run
from tests.scans.manifests import name

RULES = Path(__file__).with_name("semgrep")
BASELINE = Path(__file__).with_name("secrets.baseline")


def kubernetes_validate(files: Sequence[Path]) -> Iterator[Finding]:
    """Objects against the schemas of Kubernetes, strictly: an unknown field is an error, and so is an unknown kind."""
    said = run("kubernetes-validate", "-k", KUBERNETES, "--strict", *files, exits=(0, 1))
    by_file = {str(file): name(yaml.safe_load(file.read_text())) for file in files}
    for line in said.splitlines():
        level, file, says = line.split(" ", 2)
        if level != "INFO":
            rule = "schema" if level == "ERROR" else "no-schema"
            yield Finding("kubernetes-validate", rule, by_file[file], says)


def checkov(framework: str, folder: Path) -> Iterator[Finding]:
    """Files of a folder, seen together: a pod's network policy is looked for.

    Args:
        framework: ``kubernetes`` or ``dockerfile``.
    """
    said = json.loads(
        run(
            "checkov", "--directory", folder, "--framework", framework, "--output", "json", "--skip-download",
            exits=(0, 1), LOG_LEVEL="ERROR",
        )
    )  # fmt: skip
    # Without a finding, and without anything to look at, it says nothing but the counts.
    results = said.get("results", {})
    for found in results.get("failed_checks", []) + results.get("skipped_checks", []):
        where = _object(found) if framework == "kubernetes" else _instruction(found)
        yield Finding(f"checkov {framework}", found["check_id"], where, found["check_name"])


def _object(found: dict[str, Any]) -> str:
    kind, namespace, resource = found["resource"].split(".", 2)
    return f"{kind} {namespace}/{resource}"


def _instruction(found: dict[str, Any]) -> str:
    line = found["code_block"][0][1].strip() if found["resource"].rpartition(".")[2] else "the whole"
    return f"{found['file_path'].lstrip('/')}: {line}"


def kube_score(files: Sequence[Path]) -> Iterator[Finding]:
    """Kubernetes objects, seen together."""
    said = run(
        tool("kube-score"), "score", "--kubernetes-version", f"v{KUBERNETES}", "--output-format", "json",
        "--disable-ignore-checks-annotations", "--disable-optional-checks-annotations",
        "--enable-optional-test", "container-seccomp-profile", *files, exits=(0, 1),
    )  # fmt: skip
    for object_ in json.loads(said) or []:
        metadata = object_["object_meta"]
        where = f"{object_['type_meta']['kind']} {metadata.get('namespace', '')}/{metadata['name']}"
        for check in object_["checks"] or []:
            if check["skipped"] or check["grade"] >= 7:  # 10: all is well, 7: almost
                continue
            for comment in check["comments"] or [{"path": "", "summary": check["check"]["name"]}]:
                at = f"{where} {comment['path']}".strip()
                yield Finding("kube-score", check["check"]["id"], at, comment["summary"])


def hadolint(file: Path) -> Iterator[Finding]:
    said = run("hadolint", "--format", "json", "--no-fail", "--disable-ignore-pragma", file, exits=(0,))
    lines = file.read_text().splitlines()
    for found in json.loads(said):
        line = lines[found["line"] - 1].strip() if found["line"] <= len(lines) else ""
        yield Finding("hadolint", found["code"], f"{file.name}: {line}", found["message"])


def ruff_security(code: str, as_file: str) -> Iterator[Finding]:
    """Rules S of the project's own configuration, on code that pretends to be that file."""
    import subprocess

    ruff = str(Path(sys.executable).with_name("ruff"))
    done = subprocess.run(
        [ruff, "check", "--output-format", "json", "--stdin-filename", as_file, "-"],
        input=code, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    for found in json.loads(done.stdout):
        if found["code"].startswith("S"):
            yield Finding("ruff", found["code"], as_file, found["message"])


def semgrep(paths: Sequence[Path | str], folder: Path = ROOT) -> Iterator[Finding]:
    """Our own rules on Python code."""
    said = run(
        "semgrep", "scan", "--config", RULES / "rules.yaml", "--metrics=off", "--disable-version-check",
        "--disable-nosem", "--no-git-ignore", "--no-rewrite-rule-ids", "--jobs", "2", "--json", "--quiet", *paths,
        exits=(0,), cwd=folder, SEMGREP_SETTINGS_FILE=str(ROOT / "build" / "scanners" / "semgrep.yml"),
    )  # fmt: skip
    answer = json.loads(said)
    assert not answer["errors"], answer["errors"]
    for found in answer["results"]:
        file = folder / found["path"]
        line = file.read_text().splitlines()[found["start"]["line"] - 1].strip()
        yield Finding("semgrep", found["check_id"], f"{found['path']}: {line}", found["extra"]["message"])


def gitleaks(kind: str, folder: Path, report: Path) -> Iterator[Finding]:
    """Secrets in a repository's whole history (`git`) or in the files of a folder (`dir`)."""
    run(
        tool("gitleaks"), kind, "--no-banner", "--redact", "--ignore-gitleaks-allow", "--exit-code", "0",
        "--max-decode-depth", "3", "--report-format", "json", "--report-path", report, folder,
        exits=(0,), **_trusting(folder),
    )  # fmt: skip
    for found in json.loads(report.read_text()):
        file = Path(found["File"])
        place = file.relative_to(folder).as_posix() if file.is_absolute() else file.as_posix()
        since = f" of {found['Commit'][:12]}" if found["Commit"] else ""
        yield Finding("gitleaks", found["RuleID"], place, f"line {found['StartLine']}{since}")


def _trusting(folder: Path) -> dict[str, str]:
    """Git refuses a checkout of another account, which a CI container's is, unless told otherwise."""
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": str(folder)}


def detect_secrets(folder: Path, files: Iterable[str]) -> dict[tuple[str, str, str], int]:
    """File, kind and hash of what looks like a secret, with its line; the baseline says what is not looked at."""
    options = {"should_exclude_file": "--exclude-files", "should_exclude_secret": "--exclude-secrets"}
    words = []
    for used in json.loads(BASELINE.read_text())["filters_used"]:
        option = options.get(used["path"].rpartition(".")[2], "")
        words += [word for pattern in used.get("pattern", []) for word in (option, pattern)]
    said = json.loads(run("detect-secrets", "scan", "--all-files", *words, *sorted(files), exits=(0,), cwd=folder))
    return {
        (file, found["type"], found["hashed_secret"]): found["line_number"]
        for file, all_found in said["results"].items()
        for found in all_found
    }
