"""A network that is slow: a TCP relay to a server, which holds back what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Relay:
    """Connections to `address` reach the server late.

    Args:
        host, port: of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self.delay = 0.0
        """Seconds each piece of at most `PIECE` bytes is held back, one after the other in each direction."""
        self._target = host, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

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
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                time.sleep(self.delay)
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


PIECE = 1 << 14


@contextmanager
def relay(host: str, port: int) -> Iterator[Relay]:
    """A relay that lives as long as the block."""
    made = Relay(host, port)
    try:
        yield made
    finally:
        made.close()
