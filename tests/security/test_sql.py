"""Texts that would be SQL if anybody let them: through the real steps into topic and table, and as queries."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from marketdata.batches import Batch, Interval
from marketdata.datasets import COMMODITY_PRICES, get
from marketdata.errors import UsageError
from marketdata.lakehouse import open_lakehouse
from marketdata.settings import Settings
from marketdata.tasks.extract import extract
from marketdata.tasks.load import load
from marketdata.tasks.publish import publish
from marketdata.tasks.query import query
from marketdata.tasks.reconcile import reconcile
from marketdata.tasks.transform import transform
from marketdata.tasks.validate import validate
from tests.contract.topic import held, own_topic

NAMES = [
    "WTI",
    "'; DROP TABLE commodity_prices; --",
    "' OR '1'='1",
    "WTI'); INSERT INTO commodity_prices SELECT * FROM commodity_prices; --",
    'WTI"; DROP SCHEMA commodities CASCADE; --',
    "$$; SELECT pg_sleep(60); $$",
    "%s %(series)s {0} {series} ? $1 :series",
    "\\'; DELETE FROM iceberg_tables; --",
    "WTI/*",
    "*/ UNION SELECT * FROM commodity_prices --",
    "{{ 7 * 7 }}{% raw %}",
    "$(touch owned) `touch owned`",
    "../../../etc/passwd",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[red]not red[/] [/nothing] [link=file:///etc/passwd]x[/link]",
    "\x1b]0;owned\x07\x1b[2J",
    "=cmd|' /C calc'!A0",
    "\u202e\u2066 \ufeff",
]
"""Series that a source could claim to have."""

DAY = Interval(date(2020, 4, 20), date(2020, 4, 21))


@dataclass(frozen=True)
class Carried:
    """What became of rows with such names."""

    settings: Settings
    batch: Batch
    verdict: Batch
    folder: Path


@pytest.fixture(scope="module")
def carried(embedded: Settings, tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """Rows whose series are hostile and, once more, rows whose commodity is, through every step."""
    folder = tmp_path_factory.mktemp("names")
    rows = [
        {"Date": "2020-04-20", "Price": 17 + number / 4, "commodity": "Oil", "series": name, "source": f"s{name}"}
        for number, name in enumerate(NAMES)
    ]
    # Few enough to be refused one by one.
    rows += [{**row, "series": f"{row['series']} again"} for row in rows for _ in range(1)]
    rows += [{**rows[1], "commodity": NAMES[1], "series": "refused"}]
    (folder / "prices.ndjson").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "mapping.yaml").write_text(
        "entries:\n  - {files: '*.ndjson', source: {column: source}, commodity: {column: commodity},"
        " series: {column: series}, frequency: daily, currency: USD, unit: bbl, date: {column: Date}, price: Price}\n"
    )

    def settings_for(**overrides: Any) -> Settings:
        return embedded.model_copy(update=overrides)

    settings = own_topic(
        embedded, settings_for, lake_uri=f"file://{folder}/lake", trino_schema=f"names_{uuid.uuid4().hex[:8]}",
        marketdata_sources="files", marketdata_files=folder,
    )  # fmt: skip
    raw = extract(settings, COMMODITY_PRICES, DAY, lookback_days=0, run_id="manual__1", attempt_of_run=0)
    verdict = validate(settings, COMMODITY_PRICES, raw)
    batch = transform(settings, COMMODITY_PRICES, verdict)
    publish(settings, COMMODITY_PRICES, batch)
    load(settings, COMMODITY_PRICES, batch)
    reconcile(settings, COMMODITY_PRICES, batch.uri)
    return Carried(settings, batch, verdict, folder)


EXPECTED = sorted([*NAMES, *(f"{name} again" for name in NAMES)])


def test_names_reach_the_table_and_the_topic_as_they_are(carried: Carried) -> None:
    """Leading and trailing white space apart, and nothing happened to any other row."""
    rows = open_lakehouse(carried.settings).query("SELECT series, source FROM commodity_prices").to_pylist()
    assert sorted(row["series"] for row in rows) == sorted(name.strip() for name in EXPECTED)
    assert {row["source"] for row in rows} == {f"s{name}".strip() for name in NAMES}
    assert sorted(message["series"] for message in held(carried.settings)) == sorted(row["series"] for row in rows)


def test_a_refused_name_reaches_the_quarantine_as_it_is(carried: Carried) -> None:
    answer = open_lakehouse(carried.settings).query("SELECT commodity FROM commodity_prices_quarantine")
    assert answer["commodity"].to_pylist() == [NAMES[1]]


def test_nothing_of_a_name_is_markup_in_the_report(carried: Carried) -> None:
    report = carried.verdict.read("report.html").decode()
    assert "DROP TABLE" in report
    assert "<script>alert" not in report
    assert "onerror=alert(1)>" not in report
    assert "49" not in report.partition("DROP TABLE")[0][-200:], "no template was filled"


def test_nothing_was_made_beside_the_lake(carried: Carried) -> None:
    assert {path.name for path in carried.folder.iterdir()} == {"prices.ndjson", "mapping.yaml", "lake"}


def test_a_terminal_shows_names_as_text(carried: Carried, capsys: pytest.CaptureFixture[str]) -> None:
    query(carried.settings, 'SELECT series, 1 AS "[/x]" FROM commodity_prices', "table")
    shown = capsys.readouterr().out
    assert "[red]not red[/]" in shown
    assert "[/x]" in shown
    assert "\\x1b]0;owned\\x07" in shown
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}


@pytest.mark.parametrize("form", ["csv", "json"])
def test_programs_get_names_as_they_are(carried: Carried, capsys: pytest.CaptureFixture[str], form: str) -> None:
    import csv
    import io

    query(carried.settings, "SELECT series FROM commodity_prices", form)
    out = capsys.readouterr().out
    rows = json.loads(out) if form == "json" else list(csv.DictReader(io.StringIO(out)))
    assert sorted(row["series"] for row in rows) == sorted(name.strip() for name in EXPECTED)


REFUSED = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('/etc/passwd', header = false, sep = ':')",
    "SELECT * FROM '/etc/passwd'",
    "FROM read_blob('/proc/self/environ')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM read_json('http://169.254.169.254/latest/meta-data/')",
    "SELECT * FROM read_parquet('s3://another-lake/part.parquet')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM postgres_scan('dbname=airflow', 'public', 'connection')",
    "SELECT getenv('POSTGRES_DSN')",
    "COPY (SELECT 1) TO '{folder}/owned.csv'",
    "COPY commodity_prices FROM '/etc/passwd'",
    "EXPORT DATABASE '{folder}/owned'",
    "ATTACH '{folder}/owned.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "PRAGMA database_list",
    "CREATE TABLE owned AS SELECT 1",
    "DELETE FROM commodity_prices",
    "DROP VIEW commodity_prices",
    "SELECT 1; DELETE FROM commodity_prices",
    "SELECT 1; SET enable_external_access = true; SELECT * FROM read_text('/etc/passwd')",
    "WITH gone AS (DELETE FROM commodity_prices RETURNING *) SELECT * FROM gone",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM query_table('/etc/passwd')",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/owned.csv'",
    "CALL pragma_version()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM self",
    "SELECT * FROM settings",
    "SELECT * FROM names",
    "SELECT * FROM batches",
    "SELECT",
    "",
    ";",
    "\x00",
    "SELECT " + "(" * 200,
]


@pytest.mark.parametrize("sql", REFUSED, ids=lambda sql: repr(sql)[:60])
def test_a_query_reads_tables_and_nothing_else(carried: Carried, sql: str) -> None:
    before = {path.name for path in carried.folder.iterdir()}
    with pytest.raises(UsageError) as caught:
        open_lakehouse(carried.settings).query(sql.replace("{folder}", str(carried.folder)))
    assert "root:" not in str(caught.value)
    assert {path.name for path in carried.folder.iterdir()} == before
    assert len(held(carried.settings)) == len(EXPECTED)


@pytest.mark.parametrize("what", ["duckdb_settings()", "duckdb_databases()", "duckdb_views()"])
def test_what_a_query_may_see_of_its_engine_holds_no_secret(
    carried: Carried, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    from urllib.parse import urlsplit

    query(carried.settings, f"SELECT * FROM {what}", "json")
    assert (urlsplit(carried.settings.require("postgres_dsn")).password or "") not in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES[1:], ids=lambda name: repr(name)[:30])
def test_a_name_of_a_setting_or_an_argument_is_of_its_form(name: str, settings_for: Callable[..., Settings]) -> None:
    from pydantic import ValidationError

    with pytest.raises(UsageError, match="no dataset is named"):
        get(name)
    for setting in ("tenant", "trino_schema", "lake_uri", "commodity_api_url"):
        with pytest.raises(ValidationError) as caught:
            settings_for(**{setting: name})
        assert name not in str(caught.value), "an error does not repeat what it refuses"
