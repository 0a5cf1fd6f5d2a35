from __future__ import annotations

import pytest

from marketdata.errors import UsageError
from marketdata.lakehouse.statements import identifier, reading_only, refuse_now, text, with_tables


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


@pytest.mark.parametrize(
    ("sql", "becomes"),
    [
        ("SELECT * FROM t", 'WITH "t" AS (OLD) SELECT * FROM t'),
        ("/* with */ SELECT 1", 'WITH "t" AS (OLD) /* with */ SELECT 1'),
        ("-- a\nwith a AS (SELECT 1) SELECT 2", 'with "t" AS (OLD),  a AS (SELECT 1) SELECT 2'),
        ("WITH\nRECURSIVE a (n) AS (SELECT 1) SELECT 2", 'WITH\nRECURSIVE "t" AS (OLD),  a (n) AS (SELECT 1) SELECT 2'),
        ("SELECT 'with' AS without", "WITH \"t\" AS (OLD) SELECT 'with' AS without"),
    ],
)
def test_a_table_s_name_comes_to_mean_a_query(sql: str, becomes: str) -> None:
    assert with_tables(sql, {"t": "OLD"}) == becomes
    assert with_tables(sql, {}) == sql


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT prices.price, p.n FROM prices JOIN other_prices p ON true",
        "SELECT 'x.prices' AS name -- from elsewhere.prices\n FROM prices /* news */",
        'SELECT price AS newsworthy FROM "prices"',
    ],
)
def test_what_is_known_of_then_may_be_asked(sql: str) -> None:
    refuse_now(sql, ["prices", "other_prices"], ["prices", "other_prices", "news"])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM prices, news",
        "SELECT * FROM prices JOIN (SELECT * FROM NEWS) ON true",
        "SELECT * FROM lake.prices",
        'SELECT * FROM "lake"/**/. "prices"',
        'SELECT * FROM "prices$files"',
        "/* SELECT */ DESCRIBE prices",
    ],
)
def test_what_would_show_the_state_of_now_is_refused(sql: str) -> None:
    with pytest.raises(UsageError, match="nothing was read"):
        refuse_now(sql, ["prices"], ["prices", "news"])
