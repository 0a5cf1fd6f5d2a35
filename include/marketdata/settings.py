"""Every environment variable the platform reads, typed, once.

An engine is embedded until its address is set: the addresses of embedded engines come from the endpoint file that
``marketdata engines up`` writes, and any environment variable of the same name wins over it.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, JsonConfigSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from marketdata.errors import UsageError

CHECKOUT = Path(__file__).resolve().parents[2]
"""The repository this package is imported from; in an image it is meaningless and unused."""

ENDPOINTS_VARIABLE = "MARKETDATA_ENDPOINTS"


def endpoint_file() -> Path:
    """Where the addresses of the embedded engines are written."""
    return Path(os.environ.get(ENDPOINTS_VARIABLE) or _home() / "engines" / "endpoints.json")


def _home() -> Path:
    return Path(os.environ.get("MARKETDATA_HOME") or CHECKOUT / "build")


_WORD = r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"
_HOST = r"(?:[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_POSTGRES = re.compile(
    rf"postgres(ql)?://({_WORD}(:{_WORD})?@)?{_HOST}(,{_HOST})*(/{_WORD})?(\?(?!.*password=)[^#\s]*)?"
)


def _postgres_address(value: SecretStr) -> SecretStr:
    """Refused here in our own words: PostgreSQL's client repeats what it cannot read, password and all."""
    if not _POSTGRES.fullmatch(value.get_secret_value()):
        raise ValueError(
            "it is not postgresql://user:password@host:port/database; what is no letter or digit in the password is "
            "written as % and two hexadecimal digits"
        )
    return value


PostgresAddress = Annotated[SecretStr, AfterValidator(_postgres_address)]


class Settings(BaseSettings):
    """The platform's settings; field ``kafka_brokers`` is environment variable ``KAFKA_BROKERS``."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    environment: str = Field("development", description="Name of the installation: development, staging, production.")
    tenant: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Tenant the data belongs to.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Level of the JSON logs.")
    marketdata_home: Path = Field(CHECKOUT / "build", description="Folder of everything a laptop run leaves behind.")

    marketdata_image: str = Field(
        "marketdata-task:0.1.0", description="Image of the task pods; production names a digest."
    )

    marketdata_revision: str | None = Field(None, description="Commit the image was built from; the image says it.")

    lake_uri: str | None = Field(
        None, pattern=r"^(file|s3)://", description="Root of batches and tables: file:///folder or s3://bucket/prefix."
    )
    aws_endpoint_url: str | None = Field(None, description="Address of an S3-compatible store other than AWS.")
    aws_access_key_id: SecretStr | None = Field(None, description="S3 access key.")
    aws_secret_access_key: SecretStr | None = Field(None, description="S3 secret key.")
    aws_region: str = Field("us-east-1", description="S3 region.")

    kafka_brokers: str | None = Field(None, description="Kafka bootstrap servers, host:port, separated by commas.")
    kafka_topic: str = Field("commodity-prices", description="Topic the commodity prices are published to.")
    kafka_user: str | None = Field(
        None, description="Who we are to Kafka, by SCRAM-SHA-512 over TLS; unset, brokers are talked to in the clear."
    )
    kafka_password: SecretStr | None = Field(None, description="Password of KAFKA_USER.")
    kafka_ca: str | None = Field(
        None, description="Certificates that vouch for the brokers, PEM text; unset, those the machine trusts."
    )

    schema_registry_url: str | None = Field(
        None,
        pattern=r"^https?://[^@\s]+$",
        description="Schema registry of Confluent's protocol, to where its paths begin; a user or password in it is "
        "refused. Unset, schemas are registered nowhere.",
    )

    analytics_topic: str = Field("commodity-aggregates", description="Topic the aggregates of prices go to.")
    analytics_group: str = Field(
        "commodity-analytics", description="Consumer group of `marketdata analytics`; its state belongs to the group."
    )
    analytics_member: str | None = Field(
        None, description="Name of this member of the group; default: the host's, which is the pod's."
    )
    analytics_port: int = Field(8000, description="Port of the consumer's /metrics and /health; 0 takes a free one.")
    analytics_alert_percent: float = Field(
        5.0, gt=0, description="A recent price that moves by so much within a minute, or since the one before, is told."
    )

    postgres_dsn: PostgresAddress | None = Field(
        None, description="PostgreSQL, postgresql://user:password@host:port/database."
    )

    trino_host: str | None = Field(None, description="Trino coordinator; unset, tables are written by pyiceberg.")
    trino_port: int = Field(8080, description="Port of the Trino coordinator.")
    trino_user: str = Field("marketdata", description="User Trino runs the statements as.")
    trino_catalog: str = Field("iceberg", description="Iceberg catalog in Trino.")
    trino_schema: str = Field(
        "commodities", pattern=r"^[a-z_][a-z0-9_]*$", description="Schema (namespace) of the tables."
    )

    runbooks_url: str | None = Field(
        None, pattern=r"^https?://", description="Where people read docs/runbooks; Slack messages link there."
    )
    pushgateway_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Prometheus Pushgateway of the run metrics; unset, none are kept or pushed.",
    )

    marketdata_sources: str = Field("archive", description="Sources to extract from, in order, separated by commas.")
    marketdata_files: Annotated[str, Field(pattern=r"^s3://[^/]")] | Path | None = Field(
        None, description="What the `files` source reads: a folder, or s3://bucket/prefix."
    )
    marketdata_files_mapping: Path | None = Field(
        None, description="Mapping of the `files` source; default: mapping.yaml in the folder, else the built-in one."
    )
    commodity_api_url: str | None = Field(
        None, pattern=r"^https?://", description="Address the `api` source asks for prices."
    )
    commodity_api_key: SecretStr | None = Field(None, description="Bearer token of the commodity API.")
    commodity_api_page_size: int = Field(1000, ge=1, le=100_000, description="Records asked for in one page.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, JsonConfigSettingsSource(settings_cls, json_file=endpoint_file())

    def require(self, field: str) -> str:
        """The value of an address that this step cannot do without.

        Raises:
            UsageError: neither the variable nor an embedded engine gives it.
        """
        value = getattr(self, field)
        if value is None:
            raise UsageError(
                f"{field.upper()} is not set and no embedded engine provides it; nothing was read or written",
                f"set {field.upper()}, or on a laptop start the embedded engines: marketdata engines up",
            )
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


@cache
def load() -> Settings:
    """The settings of this process.

    Raises:
        UsageError: a variable has a value of the wrong form; the message names it, never its value.
    """
    try:
        return Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]).upper()
        raise UsageError(
            f"{name} is not valid: {first['msg']}", f"correct {name}; docs/reference/settings.md says its form"
        ) from None
