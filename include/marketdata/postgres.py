"""How this platform connects to PostgreSQL: a server or a network that falls silent is given up within seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg


SILENCE: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Of libpq: a server that has gone without a word is given up after some ten seconds."""


def connect(dsn: str, application: str, **options: Any) -> psycopg.Connection[Any]:
    """A connection that commits each statement by itself and keeps no state in between: a pooler may lie on the way.

    Args:
        application: who it is, in ``pg_stat_activity``.
        options: more of libpq's and psycopg's.

    Raises:
        psycopg.OperationalError: it cannot be had within 3 seconds; a silence of 10 ends one that was had.
    """
    import psycopg

    return psycopg.connect(
        dsn, autocommit=True, prepare_threshold=None, application_name=f"marketdata-{application}", connect_timeout=3,
        **SILENCE, **options,
    )  # fmt: skip


@contextmanager
def transaction(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction whose statements and pauses take 10 seconds at most: it neither waits for a sleeper nor is one.

    Raises:
        psycopg.OperationalError: a statement took longer, or waited so for a lock; nothing was changed.
    """
    with connection.transaction():
        connection.execute(_TEN_SECONDS)
        yield


# Set within the transaction, for a pooler forbids options of a connection.
_TEN_SECONDS = """
SELECT set_config('statement_timeout', '10s', true), set_config('idle_in_transaction_session_timeout', '10s', true)
"""
