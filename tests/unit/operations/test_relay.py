from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from marketdata.operations.relay import Relay, relay
from tests.waiting import until


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    """Sends back what it is sent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(connection: socket.socket) -> None:
        with connection:
            while piece := connection.recv(100):
                connection.sendall(piece)

    def accept() -> None:
        try:
            while True:
                threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
        except OSError:
            return

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def connect(way: Relay) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", way.port), timeout=10)
    connection.settimeout(10)
    return connection


def answered(way: Relay) -> bool:
    with connect(way) as connection:
        try:
            connection.sendall(b"hello")
            return connection.recv(5) == b"hello"
        except OSError:
            return False


def test_cut_it_ends_what_there_is_and_what_comes_until_it_is_healed(server: tuple[str, int]):
    with relay(*server) as way, connect(way) as old:
        old.sendall(b"hello")
        assert old.recv(5) == b"hello"
        way.cut()
        assert old.recv(5) == b""
        assert not answered(way)
        way.heal()
        assert answered(way)


def test_it_says_when_the_mark_has_passed_also_in_pieces(server: tuple[str, int]):
    with relay(*server, b"MERGE INTO") as way, connect(way) as connection:
        for piece in (b"MERGE", b" IN"):
            connection.sendall(piece)
            assert connection.recv(len(piece)) == piece
        assert not way.marked.is_set()
        connection.sendall(b"TO prices")
        until("the mark has passed", way.marked.is_set)


def test_a_server_that_is_down_is_down_behind_it_too():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with relay(*unused.getsockname()) as way:
            assert not answered(way)
