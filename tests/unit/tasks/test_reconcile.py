"""The proof itself: whatever the stores hold that they should not, or lack, is named."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from marketdata.batches import Lake
from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import BadDataError
from marketdata.streaming.fold import Marker
from marketdata.tasks import reconcile as module
from marketdata.tasks.reconcile import reconcile
from marketdata.tasks.transform import transform
from tests.unit.tasks.test_transform import verdict_on

LATER = datetime(2030, 1, 1, tzinfo=UTC)


class Stores:
    """What topic, ledger and table are made to hold; at first exactly the batch."""

    def __init__(self, rows, batch_id):
        self.marker = Marker("commodity_prices", "default", batch_id, "r", len(rows), 0, 0, 0, (), (), LATER)
        self.topic = [{name: row[name] for name in ("record_id", "content_hash")} for row in rows]
        self.ledger = [{name: row[name] for name in ("record_id", "content_hash", "as_of")} for row in rows]
        self.table = [{**row, "batch_id": batch_id} for row in self.ledger]

    def current(self, dataset, keys, bounds=None):
        schema = pa.schema(
            [("record_id", pa.string()), ("content_hash", pa.string()), ("as_of", pa.timestamp("us", "UTC")),
             ("batch_id", pa.string())]
        )  # fmt: skip
        return pa.Table.from_pylist(self.table, schema)


@pytest.fixture
def run(settings_for, monkeypatch):
    """A run of three records: its settings, its transformed batch, and the stores."""
    settings = settings_for()
    verdict = verdict_on(settings, [{"event_time": f"2020-01-0{day}"} for day in (1, 2, 3)])
    raw = Lake(settings).parent(verdict)
    counts = {"rows": 3, "by_series": [], "reasons": {}}
    path = f"{verdict.folder}/manifest.json"
    store = Lake(settings)._store
    store.put(path, replace(verdict.manifest, counts=counts, files={"report.html": raw.manifest.parts[0]}).to_json())
    store.put(f"{raw.folder}/manifest.json", replace(raw.manifest, details={"asked": "all"}).to_json())
    batch = transform(settings, COMMODITY_PRICES, Lake(settings).open(verdict.uri))
    rows = [row for table in batch.tables() for row in table.to_pylist()]
    stores = Stores(rows, batch.manifest.batch_id)
    pair = pa.schema([("record_id", pa.string()), ("content_hash", pa.string())])
    monkeypatch.setattr(module.ledger, "read_with", lambda *_: (None, stores.marker))
    monkeypatch.setattr(module, "records_of", lambda *_: pa.Table.from_pylist(stores.topic, pair))
    monkeypatch.setattr(
        module,
        "ledger_state",
        lambda *_: pa.Table.from_pylist(stores.ledger, pair.append(pa.field("as_of", pa.timestamp("us", "UTC")))),
    )
    monkeypatch.setattr(module, "open_lakehouse", lambda _: stores)
    return settings, batch, stores


def test_a_run_whose_stores_hold_its_batch_is_proved(run):
    settings, batch, _ = run
    proved = reconcile(settings, COMMODITY_PRICES, batch.uri)
    assert (proved["records"], proved["published"], proved["loaded"]) == (3, 3, 3)


def test_what_was_there_before_counts_as_already(run):
    settings, batch, stores = run
    stores.topic.pop()
    stores.marker = replace(stores.marker, published=2, already_published=1)
    stores.table[0]["batch_id"] = "another"
    proved = reconcile(settings, COMMODITY_PRICES, batch.uri)
    assert (proved["published"], proved["already_published"]) == (2, 1)
    assert (proved["loaded"], proved["already_loaded"]) == (2, 1)


def test_a_newer_revision_of_another_run_is_no_difference(run):
    settings, batch, stores = run
    for state in (stores.ledger, stores.table):
        state[0] |= {"content_hash": "f" * 64, "as_of": LATER}
    assert reconcile(settings, COMMODITY_PRICES, batch.uri)["records"] == 3


def test_messages_the_topic_has_lost_fail_the_run_though_the_ledger_knows_their_records(run):
    settings, batch, stores = run
    stores.topic.pop()
    with pytest.raises(BadDataError, match=r"topic holds 2 messages of the batch, its marker counts 3.*from a backup"):
        reconcile(settings, COMMODITY_PRICES, batch.uri)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda stores: stores.ledger.pop(), "is missing or stale in the topic"),
        (lambda stores: stores.table.pop(), "is missing or stale in the table"),
        (lambda stores: stores.table[0].update(content_hash="0" * 64), "is missing or stale in the table"),
        (lambda stores: stores.ledger[0].update(content_hash="f" * 64, as_of=datetime(1999, 1, 1, tzinfo=UTC)),
         "is missing or stale in the topic"),
        (lambda stores: stores.topic.append(stores.topic[0]), "is in the topic twice"),
        (lambda stores: stores.table.append(stores.table[0]), "is in the table twice"),
        (lambda stores: stores.topic[0].update(content_hash="0" * 64), "is in the topic, but not as this batch has it"),
    ],
)  # fmt: skip
def test_every_difference_fails_the_run_and_names_the_key(run, spoil, says):
    settings, batch, stores = run
    ids = {row["record_id"] for row in stores.table}
    spoil(stores)
    with pytest.raises(BadDataError, match=says) as caught:
        reconcile(settings, COMMODITY_PRICES, batch.uri)
    assert any(record_id in str(caught.value) for record_id in ids)


def test_a_run_that_ended_early_is_not_proved(settings_for):
    with pytest.raises(BadDataError, match="ended before its batch was transformed"):
        reconcile(settings_for(), COMMODITY_PRICES, "")
