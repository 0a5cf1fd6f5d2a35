from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def marketdata(tmp_path):
    """The command as a pod runs it: a bare environment, and no embedded engine."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "marketdata.tasks.cli", *arguments],
            env={"PATH": os.environ["PATH"], "MARKETDATA_HOME": str(tmp_path), **environment},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return call


EXTRACT = ("extract", "--dataset", "commodity_prices", "--run-id", "r1", "--start", "2018-12-03", "--end", "2018-12-06")


def test_help_lists_the_commands_with_examples(marketdata):
    shown = marketdata("--help")
    assert shown.returncode == 0
    for word in ("run", "query", "topics", "runs", "engines", "backfill", "extract", "reconcile", "Examples:"):
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense",), "No such command"),
        (("extract",), "Missing option"),
        (("extract", "--dataset", "gold", *EXTRACT[3:]), "no dataset is named 'gold'"),
        (EXTRACT, "LAKE_URI is not set"),
    ],
)
def test_wrong_use_is_exit_64_and_says_what(marketdata, arguments, says):
    ended = marketdata(*arguments)
    assert ended.returncode == 64
    assert says in ended.stderr
    assert "Traceback" not in "".join(line for line in ended.stderr.splitlines() if not line.startswith("{"))


@pytest.mark.parametrize(
    "address",
    ["http://someone:hunter2@registry:8081", "https://hunter2@registry/apis/ccompat/v7", "registry:8081", "ftp://registry"],
)  # fmt: skip
def test_an_address_with_a_password_is_refused_and_never_repeated(marketdata, address):
    ended = marketdata("topics", "diff", SCHEMA_REGISTRY_URL=address)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 64
    assert "SCHEMA_REGISTRY_URL" in said
    assert "hunter2" not in said


def test_an_error_is_one_line_and_its_remedy_and_the_traceback_is_in_the_log(marketdata):
    ended = marketdata(*EXTRACT)
    people = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    logged = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    assert people[0].startswith("error: LAKE_URI is not set")
    assert people[1].startswith("  fix: ")
    assert len(people) == 2
    assert any("Traceback" in line.get("exc_info", "") for line in logged)


def test_a_step_hands_its_result_over_in_the_file_it_is_given(marketdata, tmp_path):
    result = tmp_path / "xcom" / "return.json"
    ended = marketdata(*EXTRACT, LAKE_URI=f"file://{tmp_path}/lake", MARKETDATA_RESULT=str(result))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    handed = json.loads(result.read_text())
    assert handed["rows"] == 3
    assert handed["batch"].startswith(f"file://{tmp_path}/lake/batches/commodity_prices/2018-12-03/")


def test_where_no_engine_is_installed_starting_them_is_exit_64(marketdata, tmp_path):
    (tmp_path / "image" / "psutil").mkdir(parents=True)
    (tmp_path / "image" / "psutil" / "__init__.py").write_text("raise ModuleNotFoundError('no psutil', name='psutil')")
    ended = marketdata("engines", "up", PYTHONPATH=str(tmp_path / "image"))
    assert ended.returncode == 64
    assert "error: this installation has no embedded engines (psutil is missing); nothing was started" in ended.stderr


def test_an_unforeseen_error_is_exit_70(marketdata, tmp_path):
    (tmp_path / "lake").mkdir()
    ended = marketdata(*EXTRACT, LAKE_URI=f"file://{tmp_path}/lake", MARKETDATA_RESULT="/proc/nowhere/return.json")
    assert ended.returncode == 70
    assert "error: unforeseen" in ended.stderr


@pytest.mark.parametrize(("raised", "code"), [("SystemExit(0)", 0), ("UnavailableError('the broker is away')", 69)])
def test_a_thread_left_in_native_code_changes_no_exit_code(raised, code):
    program = f"""
import atexit, sys, threading, time
import duckdb
from marketdata.errors import UnavailableError
from marketdata.tasks import analytics, cli

def work():
    while True:
        duckdb.connect().sql("SELECT sum(a.range) FROM range(3000) a, range(3000) b").fetchall()

def leave_it_behind(settings):
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    raise {raised}

atexit.register(print, "tidied up")
analytics.analytics = leave_it_behind
sys.argv[1:] = ["analytics"]
cli.main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout) == (code, "tidied up\n"), ended.stderr


def test_no_command_compiles_a_grammar_when_it_starts():
    """Who adds a package that brings this one makes each command start 0.8 s later (docs/adr/0001)."""
    seen = "import sys, jsonschema; print('rfc3987_syntax' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "False\n"
