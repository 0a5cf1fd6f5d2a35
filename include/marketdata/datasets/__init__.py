"""The contracts: what each dataset is, and nothing about how it moves."""

from __future__ import annotations

from marketdata.datasets.commodity_aggregates import COMMODITY_AGGREGATES
from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.datasets.dataset import Column, Dataset, KnownEvent, quarantine
from marketdata.errors import UsageError

DATASETS = {dataset.name: dataset for dataset in (COMMODITY_PRICES,)}
"""Those a pipeline brings, each with a suite of rules."""

DERIVED = {dataset.name: dataset for dataset in (COMMODITY_AGGREGATES,)}
"""Those that are computed from others."""

__all__ = ["DATASETS", "DERIVED", "Column", "Dataset", "KnownEvent", "get", "quarantine"]


def get(name: str) -> Dataset:
    """The dataset of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in DATASETS:
        raise UsageError(f"no dataset is named {name!r}", f"datasets: {', '.join(sorted(DATASETS))}")
    return DATASETS[name]
