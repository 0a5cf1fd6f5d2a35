"""The embedded engines: real Kafka and PostgreSQL on this machine, wherever no other address is set."""

from marketdata.engines.lifecycle import EngineStatus, down, status, up

__all__ = ["EngineStatus", "down", "status", "up"]
