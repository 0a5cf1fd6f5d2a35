"""The WTI history inside the `arch` package."""

from __future__ import annotations

import subprocess
import sys
from datetime import date

import pytest

from marketdata.batches import Interval
from marketdata.errors import UsageError
from marketdata.sources import archive
from marketdata.sources.archive import ArchiveSource
from tests.unit.sources.reading import DATASET, EVER, NOW, rows


def test_whole_history() -> None:
    taken = rows(ArchiveSource(DATASET).fetch(EVER, NOW))
    assert len(taken) == 8321  # 8611 days, 290 of them without an observation
    assert not [row for row in taken if row["price"] == "."]
    assert taken[0] == {
        "commodity": "Oil", "series": "WTI", "frequency": "daily", "price": "25.56", "currency": "USD", "unit": "bbl",
        "volume": None, "source": "fred", "event_time": "1986-01-02", "as_of": "2019-01-03",
        "origin": "arch/data/wti/wti.csv.gz", "origin_row": 1,
    }  # fmt: skip
    assert (taken[-1]["event_time"], taken[-1]["price"], taken[-1]["origin_row"]) == ("2019-01-03", "46.92", 8611)


def test_an_interval_ends_before_its_end() -> None:
    taken = rows(ArchiveSource(DATASET).fetch(Interval(date(2018, 12, 28), date(2019, 1, 3)), NOW))
    assert [(row["event_time"], row["price"]) for row in taken] == [("2018-12-28", "45.15"), ("2019-01-02", "46.31")]


def test_a_weekend_has_no_tables() -> None:
    assert list(ArchiveSource(DATASET).fetch(Interval(date(2018, 12, 29), date(2018, 12, 31)), NOW)) == []


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"`arch`.*group `embedded`"):
        ArchiveSource(DATASET)


def test_arch_itself_is_not_imported() -> None:
    code = (
        "import sys; from datetime import date;"
        "from marketdata.batches import Interval, now; from marketdata.datasets import get;"
        "from marketdata.sources.archive import ArchiveSource;"
        "list(ArchiveSource(get('commodity_prices')).fetch(Interval(date(2018,1,1), date(2019,1,1)), now()));"
        "print([m for m in ('arch', 'statsmodels', 'scipy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
