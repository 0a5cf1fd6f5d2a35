"""What every lakehouse does. The same suite runs against pyiceberg here and against Trino and S3 in tests/engines."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from marketdata.datasets import COMMODITY_PRICES, Column, quarantine
from marketdata.errors import BadDataError, UnavailableError, UsageError
from marketdata.lakehouse import Lakehouse, Loaded, open_lakehouse
from marketdata.settings import Settings
from tests.contract.prices import EARLY, LATE, batch_of, price, refused, table


@pytest.fixture
def lakehouse_settings(embedded: Settings, settings_for: Callable[..., Settings]) -> Settings:
    """A schema of its own on the embedded lakehouse."""
    return settings_for(postgres_dsn=embedded.require("postgres_dsn"), trino_schema=new_schema())


def new_schema() -> str:
    return f"test_{uuid.uuid4().hex[:12]}"


class TestLakehouse:
    @pytest.fixture
    def settings(self, lakehouse_settings: Settings) -> Settings:
        return lakehouse_settings

    @pytest.fixture
    def lakehouse(self, settings: Settings) -> Lakehouse:
        return open_lakehouse(settings)

    def test_a_table_is_created_once(self, lakehouse: Lakehouse) -> None:
        lakehouse.ensure(COMMODITY_PRICES)
        first = lakehouse.history(COMMODITY_PRICES)
        lakehouse.ensure(COMMODITY_PRICES)

        assert lakehouse.history(COMMODITY_PRICES) == first
        answer = lakehouse.query("SELECT * FROM commodity_prices")
        assert answer.schema.names == [column.name for column in COMMODITY_PRICES.columns]
        assert len(answer) == 0

    def test_what_goes_in_comes_out(self, settings: Settings, lakehouse: Lakehouse) -> None:
        rows = [
            price("1833-01-31", "0.000001", series="Ancient"),
            price(
                "1969-12-31", "999999999999.999999", series="Before the epoch", volume=Decimal("12345678901234.5678")
            ),
            price("1970-01-01", "20.05"),
            price(
                datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
                "-36.98",
                series="Öl — 原油 \U0001f6e2",
                source="o'\"; --",
            ),
            price("2024-03-01", "70.10", volume=Decimal("0.0000"), source="line\nbreak\ttab\\"),
        ]
        loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, rows))

        assert counts(loaded) == (5, 0, 0, 0, 0)
        assert loaded.snapshot_after != loaded.snapshot_before
        assert contents(lakehouse) == by_record(table(rows))

    def test_a_repeated_load_changes_nothing(self, settings: Settings, lakehouse: Lakehouse) -> None:
        batch = batch_of(settings, [price("2024-01-02"), price("2024-01-03"), price("2024-02-01")])
        first = lakehouse.load(COMMODITY_PRICES, batch)
        before = lakehouse.history(COMMODITY_PRICES)
        again = lakehouse.load(COMMODITY_PRICES, batch)

        assert counts(again) == (0, 0, 3, 0, 0)
        assert again.from_this_batch == first.from_this_batch == 3
        assert again.snapshot_before == again.snapshot_after == first.snapshot_after
        assert again.query_id is None
        assert lakehouse.history(COMMODITY_PRICES) == before

    def test_a_newer_revision_replaces_and_leaves_the_rest(self, settings: Settings, lakehouse: Lakehouse) -> None:
        old = [price("2024-01-02"), price("2024-01-03"), price("2024-02-01"), price("1833-01-31")]
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, old))
        new = [price("2024-01-03", "71", as_of=LATE, batch="b2"), price("1833-01-31", "2", as_of=LATE, batch="b2")]
        loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, new))

        assert counts(loaded) == (0, 2, 0, 0, 0)
        assert contents(lakehouse) == by_record(table([old[0], new[0], old[2], new[1]]))

    def test_an_older_revision_never_wins(self, settings: Settings, lakehouse: Lakehouse) -> None:
        newer = price(value="71", as_of=LATE)
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [newer]))
        loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price(value="70", as_of=EARLY, batch="b2")]))

        assert counts(loaded) == (0, 0, 0, 0, 1)
        assert loaded.snapshot_before == loaded.snapshot_after
        assert contents(lakehouse) == by_record(table([newer]))

    @pytest.mark.parametrize("first_hash", ["aa", "bb"])
    def test_of_one_moment_the_greater_content_hash_wins(
        self, settings: Settings, lakehouse: Lakehouse, first_hash: str
    ) -> None:
        second_hash = {"aa": "bb", "bb": "aa"}[first_hash]
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price(value="1", content_hash=first_hash)]))
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price(value="2", content_hash=second_hash, batch="b2")]))

        (row,) = contents(lakehouse).values()
        assert row["content_hash"] == "bb"

    def test_the_same_content_read_later_is_no_change(self, settings: Settings, lakehouse: Lakehouse) -> None:
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price()]))
        loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price(as_of=LATE, batch="b2")]))

        assert counts(loaded) == (0, 0, 0, 1, 0)
        assert loaded.snapshot_before == loaded.snapshot_after
        assert contents(lakehouse) == by_record(table([price()]))

    def test_every_row_of_a_mixed_batch_is_counted_once(self, settings: Settings, lakehouse: Lakehouse) -> None:
        days = ["2024-01-02", "2024-01-03", "2024-01-04", "2024-02-01"]
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price(day, as_of=LATE) for day in days]))
        mixed = [
            price("2024-01-02", "1", as_of=LATE + timedelta(days=1), batch="b2"),
            price("2024-01-03", "1", as_of=EARLY, batch="b2"),
            price("2024-01-04", as_of=EARLY, batch="b2"),
            price("2024-01-05", batch="b2"),
            price("2024-03-01", batch="b2"),
        ]
        batch = batch_of(settings, mixed)
        first = lakehouse.load(COMMODITY_PRICES, batch)
        again = lakehouse.load(COMMODITY_PRICES, batch)

        assert counts(first) == (2, 1, 0, 1, 1)
        assert counts(again) == (0, 0, 3, 1, 1)
        assert {row["batch_id"] for row in contents(lakehouse).values()} == {"b1", "b2"}
        assert len(contents(lakehouse)) == 6

    def test_a_batch_of_many_parts_is_one_commit(self, settings: Settings, lakehouse: Lakehouse) -> None:
        rows = [price(datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=day)) for day in range(400)]
        lakehouse.ensure(COMMODITY_PRICES)
        before = len(lakehouse.history(COMMODITY_PRICES))
        loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, rows, parts=3))

        assert counts(loaded) == (400, 0, 0, 0, 0)
        assert len(lakehouse.history(COMMODITY_PRICES)) == before + 1
        assert contents(lakehouse) == by_record(table(rows))

    def test_an_empty_batch_commits_nothing(self, settings: Settings, lakehouse: Lakehouse) -> None:
        loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, []))

        assert counts(loaded) == (0, 0, 0, 0, 0)
        assert loaded.snapshot_before == loaded.snapshot_after

    def test_a_batch_with_a_record_twice_is_refused(self, settings: Settings, lakehouse: Lakehouse) -> None:
        twins = [price(), price(value="71"), price("2024-01-03")]
        with pytest.raises(BadDataError, match="more than once") as refusal:
            lakehouse.load(COMMODITY_PRICES, batch_of(settings, twins))

        assert price()["record_id"] in str(refusal.value)
        assert contents(lakehouse) == {}

    def test_rows_of_another_schema_are_refused(self, settings: Settings, lakehouse: Lakehouse) -> None:
        strange = table([price()]).drop_columns(["unit"])
        with pytest.raises(BadDataError, match="unit"):
            lakehouse.load(COMMODITY_PRICES, batch_of(settings, strange))

    def test_a_missing_required_value_is_refused(self, settings: Settings, lakehouse: Lakehouse) -> None:
        rows = table([price(), price("2024-01-03")])
        nullable = pa.schema([field.with_nullable(True) for field in rows.schema])
        unit = pa.array(["bbl", None])
        strange = rows.cast(nullable).set_column(rows.schema.get_field_index("unit"), "unit", unit)
        with pytest.raises(BadDataError, match="unit"):
            lakehouse.load(COMMODITY_PRICES, batch_of(settings, strange))

    def test_concurrent_overlapping_loads_lose_nothing_and_repeat_nothing(
        self, settings: Settings, lakehouse: Lakehouse
    ) -> None:
        lakehouse.ensure(COMMODITY_PRICES)
        first_day = datetime(2024, 1, 1, tzinfo=UTC)
        batches = [
            [
                price(first_day + timedelta(days=10 * number + day), str(50 + number), batch=f"b{number}",
                      as_of=EARLY + timedelta(hours=number))
                for day in range(20)
            ]
            for number in range(3)
        ]  # fmt: skip
        written = [batch_of(settings, rows) for rows in batches]
        start = threading.Barrier(len(written))

        def load(number: int) -> Loaded:
            own = open_lakehouse(settings)
            start.wait(timeout=30)
            return own.load(COMMODITY_PRICES, written[number])

        with ThreadPoolExecutor(len(written)) as pool:
            outcomes = list(pool.map(load, range(len(written))))

        newest = {row["record_id"]: row for rows in batches for row in rows}
        assert contents(lakehouse) == by_record(table(list(newest.values())))
        assert sum(loaded.inserted for loaded in outcomes) == len(newest) == 40
        assert all(sum(counts(loaded)) == 20 for loaded in outcomes)

    def test_a_reader_sees_whole_batches_only(self, settings: Settings, lakehouse: Lakehouse) -> None:
        days = [datetime(2024, month, day, tzinfo=UTC) for month in (1, 2) for day in range(1, 15)]
        versions = [
            batch_of(
                settings, [price(day, str(10 + n), as_of=EARLY + timedelta(hours=n), batch=f"b{n}") for day in days]
            )
            for n in range(5)
        ]
        lakehouse.load(COMMODITY_PRICES, versions[0])
        done = threading.Event()
        seen: set[tuple[int, int, int]] = set()

        def watch() -> None:
            reader = open_lakehouse(settings)
            while not done.is_set():
                (row,) = reader.query(
                    "SELECT count(*) AS n, count(DISTINCT record_id) AS r, count(DISTINCT batch_id) AS b"
                    " FROM commodity_prices"
                ).to_pylist()
                seen.add((row["n"], row["r"], row["b"]))

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            try:
                for version in versions[1:]:
                    assert lakehouse.load(COMMODITY_PRICES, version).updated == len(days)
            finally:
                done.set()
            watching.result(timeout=60)

        assert seen == {(28, 28, 1)}

    def test_a_new_optional_column_is_added(self, settings: Settings, lakehouse: Lakehouse) -> None:
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price()]))
        grown = replace(
            COMMODITY_PRICES,
            columns=(*COMMODITY_PRICES.columns, Column("grade", "string", "Grade of the goods.", required=False)),
        )
        lakehouse.ensure(grown)
        rows = pa.Table.from_pylist(
            [
                {**price("2024-01-03", batch="b2"), "grade": "A"},
                {**price(value="9", as_of=LATE, batch="b2"), "grade": "B"},
            ],
            grown.arrow_schema(),
        )
        loaded = lakehouse.load(grown, batch_of(settings, rows))

        assert counts(loaded) == (1, 1, 0, 0, 0)
        assert lakehouse.query("SELECT grade FROM commodity_prices ORDER BY event_time")["grade"].to_pylist() == [
            "B",
            "A",
        ]

    def test_a_table_that_differs_is_refused_by_column(self, settings: Settings, lakehouse: Lakehouse) -> None:
        lakehouse.ensure(COMMODITY_PRICES)
        columns = [column for column in COMMODITY_PRICES.columns if column.name not in ("price", "unit")]
        changed = replace(
            COMMODITY_PRICES,
            columns=(*columns, Column("price", "decimal(12,2)", "Price."), Column("venue", "string", "Where.")),
        )
        with pytest.raises(UsageError) as refusal:
            lakehouse.ensure(changed)

        assert all(name in str(refusal.value) for name in ("unit", "price", "venue"))
        assert "currency" not in str(refusal.value)

    def test_quarantined_rows_are_kept_once(self, lakehouse: Lakehouse) -> None:
        schema = quarantine(COMMODITY_PRICES).arrow_schema()
        twice = [refused(1), refused(2), refused(1)]  # the file has the same bad line twice
        first = lakehouse.quarantine(COMMODITY_PRICES, pa.Table.from_pylist(twice, schema))
        # The same rows come again months later, in another batch, with a new one among them.
        later = [refused(number, batch="b2", at=EARLY + timedelta(days=90)) for number in (1, 2, 3)]
        second = lakehouse.quarantine(COMMODITY_PRICES, pa.Table.from_pylist(later, schema))
        third = lakehouse.quarantine(COMMODITY_PRICES, pa.Table.from_pylist(later, schema))

        assert counts(first) == (2, 0, 0, 1, 0)
        assert counts(second) == (1, 0, 0, 2, 0)
        assert counts(third) == (0, 0, 1, 2, 0)
        assert third.snapshot_before == third.snapshot_after
        kept = lakehouse.query("SELECT origin_row, batch_id FROM commodity_prices_quarantine ORDER BY origin_row")
        assert kept.to_pylist() == [
            {"origin_row": 1, "batch_id": "b1"},
            {"origin_row": 2, "batch_id": "b1"},
            {"origin_row": 3, "batch_id": "b2"},
        ]
        wanted = pa.Table.from_pylist([refused(2), refused(4)], schema)
        state = lakehouse.current(quarantine(COMMODITY_PRICES), wanted)
        assert state.to_pylist() == [{"quarantine_id": refused(2)["quarantine_id"], "batch_id": "b1"}]

    def test_the_current_state_of_some_records(self, settings: Settings, lakehouse: Lakehouse) -> None:
        rows = [price("2024-01-02"), price("2024-01-03"), price("2024-02-01")]
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, rows))
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price("2024-01-03", "71", as_of=LATE, batch="b2")]))
        wanted = pa.table({"record_id": [rows[1]["record_id"], rows[2]["record_id"], "nobody"]})

        state = lakehouse.current(COMMODITY_PRICES, wanted)
        assert state.schema.names == ["record_id", "content_hash", "as_of", "batch_id"]
        assert {row["record_id"]: (row["batch_id"], row["as_of"]) for row in state.to_pylist()} == {
            rows[1]["record_id"]: ("b2", LATE),
            rows[2]["record_id"]: ("b1", EARLY),
        }
        bounds = (rows[0]["event_time"], rows[1]["event_time"])
        within = lakehouse.current(COMMODITY_PRICES, wanted, bounds)
        assert within["record_id"].to_pylist() == [rows[1]["record_id"]]
        assert len(lakehouse.current(COMMODITY_PRICES, wanted.slice(2))) == 0

    def test_before_the_first_load_there_is_nothing(self, lakehouse: Lakehouse) -> None:
        nobody = pa.table({"record_id": ["nobody"], "quarantine_id": ["nobody"]})

        assert lakehouse.current(COMMODITY_PRICES, nobody).to_pylist() == []
        assert lakehouse.current(quarantine(COMMODITY_PRICES), nobody).to_pylist() == []
        assert lakehouse.history(COMMODITY_PRICES) == []
        with pytest.raises(UsageError, match="load a batch first"):
            lakehouse.query("SELECT * FROM commodity_prices")

    def test_history_tells_the_commits_in_order(self, settings: Settings, lakehouse: Lakehouse) -> None:
        first = lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price()]))
        second = lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price("2024-01-03", batch="b2")]))
        history = lakehouse.history(COMMODITY_PRICES)

        assert [snapshot.snapshot_id for snapshot in history][-2:] == [first.snapshot_after, second.snapshot_after]
        assert history[-1].parent_id == second.snapshot_before == first.snapshot_after
        assert history[-1].committed_at.tzinfo is not None
        assert abs(datetime.now(UTC) - history[-1].committed_at) < timedelta(minutes=5)
        assert history[-1].summary["added-records"] == "1"

    def test_answers_have_the_types_of_the_table(self, settings: Settings, lakehouse: Lakehouse) -> None:
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price(value="0.1"), price("2024-01-03", "0.2")]))
        answer = lakehouse.query(
            "SELECT event_time, price_date, price, volume, schema_version, commodity, count(*) OVER () AS n"
            " FROM commodity_prices ORDER BY event_time"
        )

        assert answer["price"].to_pylist() == [Decimal("0.100000"), Decimal("0.200000")]
        types = dict(zip(answer.schema.names, answer.schema.types, strict=True))
        expected = COMMODITY_PRICES.arrow_schema()
        assert all(types[name] == expected.field(name).type for name in types if name != "n")
        assert answer["n"].to_pylist() == [2, 2]

    def test_reading_statements_are_answered(self, settings: Settings, lakehouse: Lakehouse) -> None:
        days = [price("2024-01-02", "70"), price("2024-01-03", "71"), price("2024-02-01", "72")]
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, days))
        joined = "SELECT a.price FROM commodity_prices a JOIN commodity_prices b ON a.record_id = b.record_id"
        rows_of = {
            joined: 3,
            "WITH p AS (SELECT * FROM commodity_prices) SELECT * FROM p WHERE price > 70.5": 2,
            f'SELECT * FROM {settings.trino_catalog}.{settings.trino_schema}."commodity_prices"': 3,
            "SELECT ';' AS semicolon -- and; a comment\n;": 1,
            "SHOW TABLES": 1,
            "DESCRIBE commodity_prices": len(COMMODITY_PRICES.columns),
        }

        assert {sql: len(lakehouse.query(sql)) for sql in rows_of} == rows_of
        assert [len(lakehouse.query(joined, max_rows)) for max_rows in (1, 2, 3, 4)] == [1, 2, 3, 3]

    @pytest.mark.parametrize(
        "sql",
        [
            "DELETE FROM commodity_prices",
            "DROP TABLE commodity_prices",
            "INSERT INTO commodity_prices SELECT * FROM commodity_prices",
            "SELECT 1; DROP TABLE commodity_prices",
            "/* SELECT */ CREATE TABLE x (a int)",
            "SET SESSION iceberg.x = 1",
            "CALL system.runtime.kill_query('x')",
            "COPY (SELECT 1) TO '/tmp/leak'",
            "EXPLAIN ANALYZE SELECT 1",
            "",
            "-- nothing",
        ],
    )
    def test_everything_else_is_refused(self, lakehouse: Lakehouse, sql: str) -> None:
        with pytest.raises(UsageError, match=r"not valid|one SELECT"):
            lakehouse.query(sql)

    def test_a_query_reads_tables_and_no_files(self, lakehouse: Lakehouse, tmp_path: Path) -> None:
        lakehouse.ensure(COMMODITY_PRICES)
        file = tmp_path / "private.csv"
        file.write_text("word\nprivate\n")
        private = pa.table({"word": ["private"]})  # a variable in sight of DuckDB
        for source in (f"read_csv('{file}')", f"'{file}'", f'"{file}"', f"glob('{tmp_path}/*')", "private"):
            with pytest.raises(UsageError):
                lakehouse.query(f"SELECT * FROM {source}")
            with pytest.raises(UsageError):
                lakehouse.query(f"SELECT (SELECT count(*) FROM {source}) FROM commodity_prices")
        assert len(private) == 1

    def test_an_unknown_table_is_answered_with_those_there_are(self, lakehouse: Lakehouse) -> None:
        lakehouse.ensure(COMMODITY_PRICES)
        with pytest.raises(UsageError, match="commodity_prices") as refusal:
            lakehouse.query("SELECT * FROM no_such_thing")
        assert "no_such_thing" in str(refusal.value)

    def test_tables_are_read_as_they_were(self, settings: Settings, lakehouse: Lakehouse) -> None:
        first = lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price(value="70"), price("2024-01-03", "71")]))
        schema = quarantine(COMMODITY_PRICES).arrow_schema()
        then = lakehouse.quarantine(COMMODITY_PRICES, pa.Table.from_pylist([refused(1)], schema))
        lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price(value="80", as_of=LATE, batch="b2")]))
        lakehouse.quarantine(COMMODITY_PRICES, pa.Table.from_pylist([refused(2)], schema))
        assert first.snapshot_after
        assert then.snapshot_after
        at = {"commodity_prices": first.snapshot_after, "commodity_prices_quarantine": then.snapshot_after}
        prices_of = {
            "SELECT price FROM commodity_prices ORDER BY price": ["70.000000", "71.000000"],
            "-- a comment\n WITH p AS (SELECT * FROM commodity_prices) SELECT max(price) AS price FROM p": [
                "71.000000"
            ],
            'SELECT p.price FROM "commodity_prices" p JOIN commodity_prices q ON p.record_id = q.record_id'
            " WHERE q.price < 70.5 /* with */;": ["70.000000"],
            "SELECT count(*) AS price FROM commodity_prices_quarantine": ["1"],
            "SELECT count(*) AS price FROM commodity_prices, commodity_prices_quarantine": ["2"],
        }

        told = {sql: [str(found) for found in lakehouse.query(sql, at=at)["price"].to_pylist()] for sql in prices_of}
        assert told == prices_of
        assert lakehouse.query("SELECT max(price) AS p FROM commodity_prices")["p"].to_pylist() == [Decimal(80)]
        assert lakehouse.snapshot(COMMODITY_PRICES) != first.snapshot_after

    def test_what_is_now_is_not_shown_as_then(self, settings: Settings, lakehouse: Lakehouse) -> None:
        loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price()]))
        lakehouse.ensure(quarantine(COMMODITY_PRICES))
        assert loaded.snapshot_after
        at = {"commodity_prices": loaded.snapshot_after}
        for sql in (
            "SELECT * FROM commodity_prices_quarantine",
            "SELECT (SELECT count(*) FROM commodity_prices_quarantine) FROM commodity_prices",
            f"SELECT * FROM {settings.trino_schema}.commodity_prices",
            f'SELECT * FROM "{settings.trino_schema}" . "commodity_prices"',
            'SELECT * FROM "commodity_prices$snapshots"',
            "SHOW TABLES",
        ):
            with pytest.raises(UsageError, match=r"nothing was (read|run)"):
                lakehouse.query(sql, at=at)
        with pytest.raises(UsageError, match=r"snapshot 1 of table commodity_prices is no longer kept"):
            lakehouse.query("SELECT * FROM commodity_prices", at={"commodity_prices": 1})

    def test_maintenance_merges_small_files_and_leaves_the_rows(self, settings: Settings, lakehouse: Lakehouse) -> None:
        assert lakehouse.maintain(COMMODITY_PRICES, timedelta(0)) is None
        days = [price(f"2024-0{month}-{day:02}", batch=f"b{day}") for month in (1, 2) for day in (1, 2, 3, 4, 5)]
        for first in range(0, len(days), 2):
            lakehouse.load(COMMODITY_PRICES, batch_of(settings, days[first : first + 2]))
        revised = price("2024-01-02", "99", as_of=LATE, batch="r")
        last = lakehouse.load(COMMODITY_PRICES, batch_of(settings, [revised]))
        before = contents(lakehouse)
        commits = len(lakehouse.history(COMMODITY_PRICES))
        assert len(before) == 10

        done = lakehouse.maintain(COMMODITY_PRICES, timedelta(days=30))
        assert done
        assert (done.files_after, done.expired) == (2, 0), "a file a month"
        assert done.files_before > 2
        assert contents(lakehouse) == before
        assert len(lakehouse.history(COMMODITY_PRICES)) == commits + 1
        assert last.snapshot_after
        at = {"commodity_prices": last.snapshot_after}
        assert by_record(lakehouse.query("SELECT * FROM commodity_prices", at=at)) == before

        history = lakehouse.history(COMMODITY_PRICES)
        again = lakehouse.maintain(COMMODITY_PRICES, timedelta(days=30))
        assert again
        assert (again.files_before, again.files_after, again.expired) == (2, 2, 0)
        assert lakehouse.history(COMMODITY_PRICES) == history, "there was nothing to do"

    def test_old_snapshots_are_expired_but_for_the_current_one(self, settings: Settings, lakehouse: Lakehouse) -> None:
        loads = [
            lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price(f"2024-01-0{day}", batch=f"b{day}")]))
            for day in (1, 2, 3)
        ]
        lakehouse.maintain(COMMODITY_PRICES, timedelta(days=30))
        before = contents(lakehouse)
        done = lakehouse.maintain(COMMODITY_PRICES, timedelta(0))
        assert done
        assert done.expired >= 3

        assert len(lakehouse.history(COMMODITY_PRICES)) == 1
        assert contents(lakehouse) == before
        assert loads[0].snapshot_after
        with pytest.raises(UsageError, match="no longer kept"):
            lakehouse.query("SELECT * FROM commodity_prices", at={"commodity_prices": loads[0].snapshot_after})
        loaded = lakehouse.load(COMMODITY_PRICES, batch_of(settings, [price("2024-01-04", batch="b4")]))
        assert counts(loaded) == (1, 0, 0, 0, 0)
        assert len(contents(lakehouse)) == 4

    def test_maintenance_and_loads_bear_one_another(self, settings: Settings, lakehouse: Lakehouse) -> None:
        """Loads revise rows of the very files that are being merged."""
        days = [datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 9)]
        versions = [
            [price(day, str(10 + n), as_of=EARLY + timedelta(hours=n), batch=f"b{n}") for day in days[: 8 - n % 2]]
            for n in range(6)
        ]
        for day in days:
            old = price(day, "1", as_of=EARLY - timedelta(hours=1), batch=f"old-{day.day}")
            lakehouse.load(COMMODITY_PRICES, batch_of(settings, [old]))
        done = threading.Event()

        def keep_on() -> int:
            own, turns = open_lakehouse(settings), 0
            while not done.is_set() or turns == 0:
                # A load looks up its own commit a moment after it: that long a snapshot is kept.
                own.maintain(COMMODITY_PRICES, timedelta(seconds=10))
                turns += 1
            return turns

        with ThreadPoolExecutor(1) as pool:
            maintaining = pool.submit(keep_on)
            try:
                for rows in versions:
                    assert lakehouse.load(COMMODITY_PRICES, batch_of(settings, rows)).updated == len(rows)
            finally:
                done.set()
            assert maintaining.result(timeout=120) >= 1

        newest = {row["record_id"]: row for rows in versions for row in rows}
        assert contents(lakehouse) == by_record(table(list(newest.values())))

    def test_an_engine_that_does_not_answer_is_named(self, settings: Settings) -> None:
        nowhere = (
            {"trino_port": 1}
            if settings.trino_host
            else {"postgres_dsn": secret("postgresql://u:hidden@127.0.0.1:1/x")}
        )
        lakehouse = open_lakehouse(settings.model_copy(update=nowhere))
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1\b") as failure:
            lakehouse.check()
        assert time.monotonic() - started < 12
        assert "hidden" not in str(failure.value)

    def test_an_engine_that_answers_is_left_alone(self, lakehouse: Lakehouse) -> None:
        lakehouse.check()

    def test_a_namespace_that_is_dropped_is_gone_with_its_tables_and_no_other_is(
        self, lakehouse_settings: Settings
    ) -> None:
        other = lakehouse_settings.model_copy(update={"trino_schema": new_schema()})
        for settings in (lakehouse_settings, other):
            open_lakehouse(settings).load(COMMODITY_PRICES, batch_of(settings, [price()]))
        lakehouse = open_lakehouse(lakehouse_settings)
        lakehouse.drop_namespace()
        lakehouse.drop_namespace()
        assert lakehouse.history(COMMODITY_PRICES) == []
        assert contents(lakehouse) == {}
        assert len(contents(open_lakehouse(other))) == 1


def counts(loaded: Loaded) -> tuple[int, int, int, int, int]:
    return (loaded.inserted, loaded.updated, loaded.repeated, loaded.unchanged, loaded.superseded)


def contents(lakehouse: Lakehouse) -> dict[str, dict[str, Any]]:
    lakehouse.ensure(COMMODITY_PRICES)
    return by_record(lakehouse.query("SELECT * FROM commodity_prices"))


def by_record(rows: pa.Table | Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by record id; fails where one is there twice."""
    listed = rows.to_pylist() if isinstance(rows, pa.Table) else list(rows)
    found = {row["record_id"]: row for row in listed}
    assert len(found) == len(listed)
    return found


def secret(value: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(value)
