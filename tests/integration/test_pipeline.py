"""The main job, as a stranger runs it: real prices, real Kafka, real PostgreSQL, real tables."""

from __future__ import annotations

from decimal import Decimal

import jsonschema
import pytest

from marketdata.datasets import COMMODITY_PRICES

WTI_DAYS = 8321
"""Observations in the archive: business days of 1986 to 2018 and the first two of 2019, without the closed ones."""


@pytest.fixture(scope="module", autouse=True)
def first_run(laptop):
    return laptop.marketdata("run")


def test_the_whole_history_is_in_topic_and_table_exactly_once(laptop):
    summary = laptop.last_run()["summary"]
    assert (summary["extracted"], summary["quarantined"]) == (WTI_DAYS, 0)
    assert (summary["published"], summary["loaded"]) == (WTI_DAYS, WTI_DAYS)
    messages = laptop.messages()
    rows = laptop.query("SELECT record_id, content_hash, price FROM commodity_prices")
    in_topic = {(message["record_id"], message["content_hash"]) for message in messages}
    assert len(messages) == len(in_topic) == WTI_DAYS
    assert in_topic == {(row["record_id"], row["content_hash"]) for row in rows}
    assert sum(Decimal(str(m["price"])) for m in messages) == sum(Decimal(row["price"]) for row in rows)


def test_messages_keep_the_contract(laptop):
    schema = COMMODITY_PRICES.message_schema()
    first = laptop.messages()[:10]
    assert len(first) == 10
    for message in first:
        jsonschema.validate(message, schema)
    assert {message["commodity"] for message in first} == {"Oil"}


def test_a_second_run_finds_nothing_new_and_changes_nothing(laptop):
    before = laptop.query("SELECT count(*) AS n, max(ingested_at) AS newest FROM commodity_prices")
    shown = laptop.marketdata("run")
    assert "nothing new" in shown
    assert laptop.last_run()["state"] == "success"
    assert laptop.query("SELECT count(*) AS n, max(ingested_at) AS newest FROM commodity_prices") == before
    assert len(laptop.messages()) == WTI_DAYS


def test_the_same_days_again_are_published_already(laptop):
    laptop.marketdata("run", "--start", "2018-12-03", "--end", "2018-12-08")
    (series,) = laptop.last_run()["summary"]["by_series"]
    assert (series["extracted"], series["published"], series["already_published"]) == (5, 0, 5)
    assert (series["loaded"], series["already_loaded"]) == (0, 5)


def test_people_see_the_table_and_where_to_look_further(first_run):
    for words in (
        "reconcile",
        "WTI",
        f"{WTI_DAYS:,}",
        "marketdata topics read",
        "marketdata query",
        "report",
        "make up",
    ):
        assert words in first_run


def test_runs_are_on_record(laptop):
    run_id = laptop.last_run()["run_id"]
    assert run_id in laptop.marketdata("runs", "list")
    shown = laptop.marketdata("runs", "show", run_id)
    assert all(step in shown for step in ("extract", "validate", "transform", "publish", "load", "reconcile"))
    laptop.marketdata("runs", "show", "no-such-run", code=64)


def test_query_answers_in_three_forms_and_refuses_to_write(laptop):
    sql = "SELECT commodity, count(*) AS n FROM commodity_prices GROUP BY 1"
    assert laptop.marketdata("query", sql, "--format", "csv") == f"commodity,n\nOil,{WTI_DAYS}\n"
    assert "Oil" in laptop.marketdata("query", sql)
    laptop.marketdata("query", "DELETE FROM commodity_prices", code=64)
    laptop.marketdata("query", "SELECT * FROM nowhere", code=64)


def test_the_tables_are_told_as_a_run_left_them_before_and_after_maintenance(laptop):
    count = ["query", "SELECT count(*) AS n FROM commodity_prices", "--format", "csv", "--as-of-run"]
    run_id = laptop.last_run()["run_id"]
    assert laptop.marketdata(*count, run_id) == f"n\n{WTI_DAYS}\n"
    for dataset in ("commodity_prices", "commodity_aggregates"):
        laptop.marketdata("maintain", "--dataset", dataset)
    assert laptop.marketdata(*count, run_id) == f"n\n{WTI_DAYS}\n"
    laptop.marketdata(*count, "no-such-run", code=64)
    laptop.marketdata("maintain", "--dataset", "no-such-dataset", code=64)


def test_a_source_that_is_not_there_is_said_and_nothing_is_touched(laptop):
    laptop.marketdata("run", MARKETDATA_SOURCES="api", COMMODITY_API_URL="http://127.0.0.1:9/prices", code=69)
    run = laptop.last_run()
    failed = {step["step"]: step["error"] for step in run["steps"] if step["state"] == "failed"}
    assert "127.0.0.1:9" in failed["extract"]
    assert len(laptop.messages()) == WTI_DAYS
