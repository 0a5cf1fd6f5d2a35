"""README's commands, executed as they stand there, in a home of their own."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.laptop import Laptop

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
NOT_INSIDE_ITSELF = {"make test"}
SECONDS = 900


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_every_command_of_the_readme_works(tmp_path: Path) -> None:
    laptop = Laptop(tmp_path)
    said = {}
    try:
        for command in commands():
            if command in NOT_INSIDE_ITSELF:
                continue
            ended = subprocess.run(
                ["bash", "-c", command], cwd=ROOT, env=laptop.environment(), capture_output=True, text=True,
                check=False, timeout=SECONDS,
            )  # fmt: skip
            assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
            said[command.split(" ")[1]] = ended.stdout
    finally:
        laptop.marketdata("engines", "down")
    assert "8,321" in said["run"]
    assert "http://127.0.0.1:" in said["up"]
    assert said["backfill"].count("success") >= 3


def test_the_two_commands_and_the_way_on_are_there() -> None:
    assert [command for command in commands() if command.startswith("make")][:2] == ["make run", "make test"]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert link.startswith("http") or (ROOT / link).exists(), link


def test_the_figures_are_those_of_a_bench_that_was_run() -> None:
    table = re.search(r"\| figure \|.*?\n\n", README, flags=re.DOTALL)
    assert table, "README shows the table of `make bench`"
    folder = ROOT / "docs" / "reference" / "bench"
    names = {figure["name"] for file in folder.glob("*.json") for figure in json.loads(file.read_text())["figures"]}
    shown = {line.split("|")[1].strip() for line in table[0].splitlines()[2:] if line.strip()}
    assert shown <= names
