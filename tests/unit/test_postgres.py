from __future__ import annotations

import socket
import time

import psycopg
import pytest

from marketdata import postgres


def test_a_server_that_accepts_and_says_nothing_is_given_up_within_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match="timeout expired"):
            postgres.connect(f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none", "test")
    assert time.monotonic() - began < 30
