"""The embedded engines: real Kafka, PostgreSQL and Airflow on this machine, wherever no other address is set."""

from marketdata.engines.airflow import airflow_environment, migrate_airflow
from marketdata.engines.lifecycle import EngineStatus, down, status, up

__all__ = ["EngineStatus", "airflow_environment", "down", "migrate_airflow", "status", "up"]
