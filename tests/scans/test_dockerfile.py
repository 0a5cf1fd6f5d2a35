"""The image's recipe, read by hadolint and checkov."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.scans.findings import Finding, objections, skips
from tests.scans.installation import ROOT
from tests.scans.scanners import checkov, hadolint

RECIPE = (ROOT / "Dockerfile").read_text()
LAST_USER = "USER 10001:0\n"

MUTANTS = {
    "root": (RECIPE.replace(LAST_USER, "USER root\n"), {"hadolint DL3002", "checkov dockerfile CKV_DOCKER_8"}),
    "latest": (
        RECIPE.replace("FROM ${PYTHON_BASE} AS tools", "FROM python:latest AS tools"),
        {"hadolint DL3007", "checkov dockerfile CKV_DOCKER_7"},
    ),
    "add": (RECIPE + "ADD https://example.com/tool.tar.gz /opt/\n", {"checkov dockerfile CKV_DOCKER_4"}),
    "sudo": (RECIPE + "RUN sudo true\n", {"hadolint DL3004", "checkov dockerfile CKV2_DOCKER_1"}),
    "apt": (RECIPE + "RUN apt-get install -y curl\n", {"hadolint DL3008"}),
    "shell": (RECIPE + "CMD marketdata --help\n", {"hadolint DL3025"}),
    "unpinned": (RECIPE + "RUN pip install requests\n", {"hadolint DL3013"}),
    "pipe": (RECIPE + "RUN curl -s https://example.com/install.sh | sh\n", {"hadolint DL4006"}),
    "unchecked": (RECIPE + "RUN curl --insecure https://example.com/tool\n", {"checkov dockerfile CKV2_DOCKER_2"}),
    "trusting": (RECIPE + "RUN pip install --trusted-host x y\n", {"checkov dockerfile CKV2_DOCKER_4"}),
    "hushed": (RECIPE + "# hadolint ignore=DL3004\nRUN sudo true\n", {"hadolint DL3004"}),
}
"""Our own recipe, spoilt in one place, and the rules that have to object."""


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Finding]]:
    """What is found in each recipe; the project's own is ``Dockerfile``, a mutant's is ``<name>/Dockerfile``."""
    folder = tmp_path_factory.mktemp("recipes")
    recipes = {"": RECIPE, **{mutant: recipe for mutant, (recipe, _) in MUTANTS.items()}}
    found: dict[str, list[Finding]] = {}
    for name, recipe in recipes.items():
        file = folder / name / "Dockerfile"
        file.parent.mkdir(exist_ok=True)
        file.write_text(recipe)
        found[name] = list(hadolint(file))
    for finding in checkov("dockerfile", folder):
        name, _, _ = finding.where.partition("Dockerfile: ")
        found[name.rstrip("/")].append(finding)
    return found


@pytest.mark.parametrize("scanner", ["hadolint", "checkov dockerfile"])
def test_the_recipe_is_sound(scans: dict[str, list[Finding]], scanner: str) -> None:
    found = [finding for finding in scans[""] if finding.scanner == scanner]
    assert not (wrong := objections(scanner, found, skips(), datetime.now(UTC).date())), "\n".join(wrong)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_objected_to_by_name(scans: dict[str, list[Finding]], mutant: str) -> None:
    assert MUTANTS[mutant][0] != RECIPE
    known = {(finding.rule, finding.where) for finding in scans[""]}
    new = {
        f"{finding.scanner} {finding.rule}"
        for finding in scans[mutant]
        if (finding.rule, finding.where.removeprefix(f"{mutant}/")) not in known
    }
    assert MUTANTS[mutant][1] <= new
