"""The DAG bag of the repository, and every pod its tasks would submit."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG

from tests.fake_marketdata import clean_settings, fake

__all__ = ["clean_settings", "fake"]

DAGS = Path(__file__).resolve().parents[2] / "dags"


@pytest.fixture(scope="session")
def bag() -> DagBag:
    return DagBag(dag_folder=DAGS)


@pytest.fixture(scope="session")
def dag(bag: DagBag) -> DAG:
    return bag.dags["commodity-price-pipeline"]
