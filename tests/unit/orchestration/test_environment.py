"""Every setting has its place in the pod, and no secret has its value there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import SecretStr

from marketdata.orchestration import environment
from marketdata.settings import Settings


def test_the_table_names_every_setting_once() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    placed = [*environment.PLAIN, *environment.SECRETS, *environment.NOT_FOR_PODS]
    assert sorted(placed) == sorted(settings)


def test_what_is_secret_in_the_settings_comes_from_a_secret() -> None:
    secret = {name.upper() for name, field in Settings.model_fields.items() if SecretStr in _types(field.annotation)}
    assert secret
    assert secret <= environment.SECRETS.keys()


def test_brokers_and_topic_come_from_production_credentials() -> None:
    for name, key in (("KAFKA_BROKERS", "kafka_brokers"), ("KAFKA_TOPIC", "kafka_topic")):
        assert environment.SECRETS[name] == environment.SecretKey("production-credentials", key, optional=False)


def test_other_secrets_have_a_secret_of_their_own_kind_and_may_be_missing() -> None:
    others = [key for name, key in environment.SECRETS.items() if not name.startswith("KAFKA_")]
    assert all(key.optional and key.secret != "production-credentials" for key in others)


def test_no_value_of_a_secret_reaches_the_pod(settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(
        postgres_dsn="postgresql://u:hidden@db/x", aws_secret_access_key="hidden", commodity_api_key="hidden",
        kafka_brokers="hidden:9092", marketdata_files=Path("/data"),
    )  # fmt: skip
    variables = environment.variables(settings, None)
    assert "hidden" not in str(variables)
    plain = {variable.name: variable.value for variable in variables if variable.value is not None}
    assert plain["MARKETDATA_FILES"] == "/data"
    assert "COMMODITY_API_URL" not in plain, "what is not set is not set in the pod"


def test_the_run_is_named_for_the_logs(settings_for: Callable[..., Settings]) -> None:
    instance = SimpleNamespace(dag_id="d", task_id="g.t", run_id="manual__1", try_number=2)
    context: Any = {"ti": instance}
    given = {variable.name: variable.value for variable in environment.variables(settings_for(), context)}
    assert {name: value for name, value in given.items() if name.startswith("MARKETDATA_")} == {
        "MARKETDATA_DAG_ID": "d", "MARKETDATA_TASK_ID": "g.t", "MARKETDATA_RUN_ID": "manual__1",
        "MARKETDATA_TRY_NUMBER": "2", "MARKETDATA_RESULT": "/dev/termination-log", "MARKETDATA_SOURCES": "archive",
    }  # fmt: skip


def test_known_credentials_are_found_with_the_password_inside_an_address(settings_for: Callable[..., Settings]) -> None:
    settings = settings_for(postgres_dsn="postgresql://u:p4ss@db/x", commodity_api_key="k3y")
    assert environment.credentials(settings) == {"postgresql://u:p4ss@db/x", "p4ss", "k3y"}


def _types(annotation: Any) -> set[Any]:
    return {annotation, *getattr(annotation, "__args__", ())}
