"""Five commodities, sixty years, several sources at once, from real files."""

from __future__ import annotations

import json


def test_all_five_commodities_from_several_sources(laptop_at, shared_data, tmp_path):
    laptop = laptop_at(tmp_path, MARKETDATA_SOURCES="files", MARKETDATA_FILES=str(shared_data / "commodities"))
    laptop.marketdata("run")
    summary = laptop.last_run()["summary"]
    rows = laptop.query(
        "SELECT commodity, count(DISTINCT source) AS sources, min(price_date) AS first, max(price_date) AS last "
        "FROM commodity_prices GROUP BY 1 ORDER BY 1"
    )
    assert [row["commodity"] for row in rows] == ["Copper", "Gold", "Natural Gas", "Oil", "Silver"]
    assert all(row["sources"] >= 2 for row in rows)
    assert min(row["first"] for row in rows) <= "1960-01-01"
    assert max(row["last"] for row in rows) >= "2026-08-01"
    assert summary["records"] == summary["published"] == summary["loaded"]

    day = laptop.query(
        "SELECT source, value, reason FROM commodity_prices_quarantine "
        "WHERE event_time LIKE '2020-04-20%' AND commodity = 'Oil' ORDER BY source"
    )
    assert ("eia", "-36.98") in [(row["source"], row["value"]) for row in day]
    assert all("known event" in row["reason"] for row in day)
    assert laptop.query("SELECT count(*) AS n FROM commodity_prices WHERE price <= 0") == [{"n": 0}]

    revised = laptop.query(
        "SELECT max(as_of) AS as_of FROM commodity_prices WHERE source = 'worldbank' AND price_date = DATE '2000-01-01'"
    )
    assert revised[0]["as_of"].startswith("2026-06-02")
    assert json.loads((tmp_path / "run.json").read_text())["state"] == "success"
