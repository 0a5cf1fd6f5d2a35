"""A broker that only talks over TLS, to those who can prove who they are: the production listener, on one node."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from marketdata.engines.kafka import _java, _properties
from marketdata.engines.process import LOOPBACK, free_port, listens
from marketdata.errors import UnavailableError, UsageError
from marketdata.settings import Settings
from marketdata.streaming import brokers, topics
from tests.engines import jvm
from tests.engines.kubernetes.pki import Authority

PASSWORD = "only-for-this-test"
LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    signs = Authority(tmp_path_factory.mktemp("pki"))
    signs.sign("broker", "broker", hosts=[LOOPBACK])
    return signs


@pytest.fixture(scope="module")
def address(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the broker listens."""
    home = tmp_path_factory.mktemp("kafka")
    inside, port = free_port(), free_port()
    store = home / "broker.pem"
    store.write_text((authority.folder / "broker.key").read_text() + (authority.folder / "broker.crt").read_text())
    plain = f"PLAINTEXT://{LOOPBACK}:{inside}"
    settings = home / "server.properties"
    settings.write_text(
        _properties(home / "data", LOOPBACK, inside, free_port()).replace(
            plain, f"{plain},SASL_SSL://{LOOPBACK}:{port}"
        )
        + "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL\n"
        + f"ssl.keystore.type=PEM\nssl.keystore.location={store}\n"
        + "sasl.enabled.mechanisms=SCRAM-SHA-512\n"
        + f"listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={LOGIN} required;\n"
    )
    user = f"SCRAM-SHA-512=[name=pipeline,password={PASSWORD}]"
    tool = [*_java(print), "kafka.tools.StorageTool", "format", "--cluster-id", "AAAAAAAAAAAAAAAAAAAAAA"]
    subprocess.run([*tool, "--config", str(settings), "--add-scram", user], check=True, capture_output=True)
    arguments = [*_java(print)[1:], "kafka.Kafka", str(settings)]
    at = f"{LOOPBACK}:{port}"
    with jvm.server(arguments, lambda: listens(at), folder=home, name="kafka", seconds=90):
        yield at


@pytest.fixture
def pipeline(address: str, authority: Authority, settings_for: Callable[..., Settings]) -> Settings:
    """As a pod is told by the Secret `kafka-credentials`."""
    ca = (Path(authority.folder) / "ca.crt").read_text()
    return settings_for(kafka_brokers=address, kafka_user="pipeline", kafka_password=PASSWORD, kafka_ca=ca)


def test_who_has_the_password_and_the_authority_gets_in(pipeline: Settings) -> None:
    assert brokers.reach(pipeline).metadata.brokers
    topics.apply(pipeline)
    assert "commodity-prices" in brokers.reach(pipeline).metadata.topics


@pytest.mark.parametrize("without", ["kafka_user", "kafka_ca"])
def test_nobody_else_does(pipeline: Settings, without: str) -> None:
    with pytest.raises(UnavailableError):
        brokers.reach(pipeline.model_copy(update={without: None}))


def test_a_wrong_password_is_said_and_not_shown(pipeline: Settings) -> None:
    from pydantic import SecretStr

    with pytest.raises(UnavailableError, match=r"(?i)auth") as refused:
        brokers.reach(pipeline.model_copy(update={"kafka_password": SecretStr("guessed-wrong")}))
    assert "guessed-wrong" not in str(refused.value)


def test_a_user_without_a_password_is_wrong_use(pipeline: Settings) -> None:
    with pytest.raises(UsageError, match="KAFKA_PASSWORD"):
        brokers.reach(pipeline.model_copy(update={"kafka_password": None}))
