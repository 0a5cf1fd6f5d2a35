"""The contracts: what each dataset is, and nothing about how it moves."""

from __future__ import annotations

from marketdata.datasets.commodity_aggregates import COMMODITY_AGGREGATES
from marketdata.datasets.commodity_features import COMMODITY_FEATURES
from marketdata.datasets.commodity_prices import COMMODITY_PRICES
from marketdata.datasets.dataset import Column, Dataset, KnownEvent, quarantine
from marketdata.datasets.ml_predictions import ML_PREDICTIONS
from marketdata.datasets.platform_events import (
    DATA_QUALITY_RESULTS,
    MODEL_EVENTS,
    PIPELINE_EVENTS,
    PLATFORM_METRICS,
    PRICE_ALERTS,
)
from marketdata.datasets.raw_trades import BINANCE_RAW_TRADE, KRAKEN_RAW_TRADE
from marketdata.errors import UsageError

DATASETS = {dataset.name: dataset for dataset in (COMMODITY_PRICES,)}
"""Those a pipeline brings, each with a suite of rules."""

DERIVED = {dataset.name: dataset for dataset in (COMMODITY_AGGREGATES,)}
"""Those that are computed from others, in a table of their own."""

EVENTS = {
    dataset.name: dataset
    for dataset in (
        COMMODITY_FEATURES,
        ML_PREDICTIONS,
        PRICE_ALERTS,
        PIPELINE_EVENTS,
        DATA_QUALITY_RESULTS,
        PLATFORM_METRICS,
        MODEL_EVENTS,
        BINANCE_RAW_TRADE,
        KRAKEN_RAW_TRADE,
    )
}
"""Those that are messages, and no table of the lake."""

__all__ = ["DATASETS", "DERIVED", "EVENTS", "Column", "Dataset", "KnownEvent", "get", "quarantine"]


def get(name: str, derived: bool = False) -> Dataset:
    """The dataset of that name.

    Args:
        derived: those that are computed from others count, too.

    Raises:
        UsageError: there is none.
    """
    known = DATASETS | DERIVED if derived else DATASETS
    if name not in known:
        raise UsageError(f"no dataset is named {name!r}", f"datasets: {', '.join(sorted(known))}")
    return known[name]
