from __future__ import annotations

import json

import pytest

from marketdata import settings
from marketdata.errors import UsageError


@pytest.fixture(autouse=True)
def _fresh(settings_for):
    settings.load.cache_clear()
    yield
    settings.load.cache_clear()


def test_a_missing_address_is_a_named_usage_error(settings_for):
    with pytest.raises(UsageError, match=r"KAFKA_BROKERS is not set") as caught:
        settings_for().require("kafka_brokers")
    assert caught.value.exit_code == 64
    assert "marketdata engines up" in caught.value.remedy


def test_the_endpoint_file_gives_embedded_addresses_and_the_environment_wins(monkeypatch, tmp_path):
    file = tmp_path / "endpoints.json"
    file.write_text(json.dumps({"kafka_brokers": "127.0.0.1:1", "lake_uri": "file:///lake", "engines": {"kafka": {}}}))
    monkeypatch.setenv(settings.ENDPOINTS_VARIABLE, str(file))
    monkeypatch.setenv("KAFKA_BROKERS", "broker:9092")
    loaded = settings.load()
    assert loaded.kafka_brokers == "broker:9092"
    assert loaded.lake_uri == "file:///lake"


def test_a_value_of_the_wrong_form_is_named_and_not_repeated(monkeypatch):
    monkeypatch.setenv("COMMODITY_API_URL", "ftp://user:hunter2@host")
    with pytest.raises(UsageError, match="COMMODITY_API_URL") as caught:
        settings.load()
    assert "hunter2" not in str(caught.value)


def test_secrets_do_not_show(settings_for):
    loaded = settings_for(postgres_dsn="postgresql://u:hunter2@h/d", commodity_api_key="hunter2")
    assert "hunter2" not in repr(loaded)
    assert loaded.require("postgres_dsn") == "postgresql://u:hunter2@h/d"
