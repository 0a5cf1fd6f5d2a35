from __future__ import annotations

import pytest

from marketdata.errors import UsageError
from marketdata.lakehouse.statements import identifier, reading_only, text


@pytest.mark.parametrize(
    ("sql", "runs"),
    [
        ("SELECT 1", "SELECT 1"),
        ("  select 1 ; ", "  select 1 "),
        ("-- first\n/* then; */ WITH a AS (SELECT ';') SELECT * FROM a", None),
        ('SHOW TABLES FROM "odd;name"', None),
        ("Describe prices", None),
        ("SELECT 'it''s; fine' -- really;", None),
    ],
)
def test_one_reading_statement_passes(sql: str, runs: str | None) -> None:
    assert reading_only(sql) == (sql if runs is None else runs)


@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "-- SELECT 1",
        "/* SELECT */ DELETE FROM t",
        "SELECT 1; DELETE FROM t",
        "SELECT 1;;",
        "SELECT '--'; DELETE FROM t",
        'SELECT "/*"; DELETE FROM t --*/',
        "SELECT '\\'; DELETE FROM t; --'",
        "selection",
        "EXPLAIN ANALYZE INSERT INTO t SELECT 1",
    ],
)
def test_anything_else_is_refused(sql: str) -> None:
    with pytest.raises(UsageError):
        reading_only(sql)


def test_names_and_constants_cannot_end_their_quotes() -> None:
    assert identifier("a", 'b"; DROP TABLE c; --') == '"a"."b""; DROP TABLE c; --"'
    assert text("it's") == "'it''s'"
