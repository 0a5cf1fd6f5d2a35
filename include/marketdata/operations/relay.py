"""A way to a server that can be slow, or be cut, without touching the server: a TCP relay."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PIECE = 1 << 14


class Relay:
    """Connections to `address` reach the server, until the way is cut.

    Args:
        host, port: of the server.
        mark: bytes that the server may be sent.
    """

    def __init__(self, host: str, port: int, mark: bytes = b"") -> None:
        self.delay = 0.0
        """Seconds each piece of at most `PIECE` bytes is held back, one after the other in each direction."""
        self.marked = threading.Event()
        """The mark has been sent to the server."""
        self._mark = mark
        self._target = host, port
        self._cut = False
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End all connections, and all that are made until `heal`."""
        self._cut = True
        for end in tuple(self._ends):
            _end(end)

    def heal(self) -> None:
        self._cut = False

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target)
        except OSError:
            near.close()  # as from a server that is down
            return
        self._ends |= {near, far}
        if self._cut:
            self.cut()
        threading.Thread(target=self._carry, args=(near, far, self._mark), daemon=True).start()
        threading.Thread(target=self._carry, args=(far, near, b""), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, mark: bytes) -> None:
        seen = b""
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                time.sleep(self.delay)
                sink.sendall(piece)
                if mark and mark in (seen := seen[-len(mark) :] + piece):
                    self.marked.set()
        for end in (source, sink):
            _end(end)
            self._ends.discard(end)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(host: str, port: int, mark: bytes = b"") -> Iterator[Relay]:
    """A relay that lives as long as the block."""
    made = Relay(host, port, mark)
    try:
        yield made
    finally:
        made.close()
