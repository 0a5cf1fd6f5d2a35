"""What is made of a command's words and exit code."""

from __future__ import annotations

import logging

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from marketdata.errors import NO_RETRY, MarketdataError
from marketdata.orchestration import output


@pytest.mark.parametrize("kind", MarketdataError.__subclasses__())
def test_an_exit_code_decides_whether_there_is_another_try(kind: type[MarketdataError]) -> None:
    failed = output.failure("load", kind.exit_code, "why")
    assert isinstance(failed, AirflowFailException) == (kind.exit_code in NO_RETRY)
    assert f"marketdata load failed (exit {kind.exit_code}: " in str(failed)
    assert str(failed).endswith(": why")


@pytest.mark.parametrize("code", [1, 99, 137])
def test_an_exit_code_of_nobody_is_tried_again(code: int) -> None:
    failed = output.failure("load", code, "why")
    assert type(failed) is AirflowException


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "it said nothing"),
        (["error: a", "  fix: b"], "a (fix: b)"),
        (["error: first", "error: last", '{"level": "INFO", "message": "after"}'], "last"),
        (["Traceback", "ValueError: x", ""], "ValueError: x"),
        (['{"level": "ERROR", "message": "only logs", "run_id": "r"}'], "only logs"),
    ],
)
def test_last_words(lines: list[str], expected: str) -> None:
    assert output.last_words(lines) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plain", (logging.INFO, "plain")),
        ("error: bad", (logging.ERROR, "error: bad")),
        ("  fix: look", (logging.ERROR, "  fix: look")),
        ("[1, 2]", (logging.INFO, "[1, 2]")),
        ("17", (logging.INFO, "17")),
        ('{"level": "LOUD", "message": "x"}', (logging.INFO, '{"level": "LOUD", "message": "x"}')),
        ('{"level": "DEBUG", "message": "m", "pod_name": "p", "rows": 0}', (logging.DEBUG, "m (rows=0)")),
    ],
)
def test_readable(line: str, expected: tuple[int, str]) -> None:
    assert output.readable(line) == expected
