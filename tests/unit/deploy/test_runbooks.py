"""Commands in runbooks are commands of this repository, with arguments that they take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RUNBOOKS = ROOT / "docs" / "runbooks"
TOOLS = {"promtool", "amtool", "curl"}


def commands() -> list[tuple[str, str]]:
    """(runbook, command) of every line after a dollar sign in a console block."""
    return [
        (path.name, line.removeprefix("$ "))
        for path in sorted(RUNBOOKS.glob("*.md"))
        for block in re.findall(r"```console\n(.*?)```", path.read_text(), re.DOTALL)
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def test_there_are_commands() -> None:
    assert len(commands()) > 60


@pytest.mark.parametrize("command", sorted({command for _, command in commands()}))
def test_command_exists_and_takes_its_arguments(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "marketdata":
        import typer.main

        from marketdata.tasks.cli import app

        node = typer.main.get_command(app)
        while children := getattr(node, "commands", None):
            node = children[arguments.pop(0)]
        node.make_context(program, arguments)
    elif program == "airflow":
        from airflow.cli.cli_parser import get_parser

        get_parser().parse_args(arguments)
    else:
        assert program in TOOLS


def test_links_between_runbooks_lead_somewhere() -> None:
    for path in RUNBOOKS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
