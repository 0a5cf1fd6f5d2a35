"""What the platform's chart says of who calls whom."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.unit.helm_values.releases import ROOT


@pytest.fixture(scope="session")
def network() -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((ROOT / "deploy" / "parts" / "values.yaml").read_text(encoding="utf-8"))
    workloads: dict[str, dict[str, Any]] = content["network"]["workloads"]
    return workloads
