"""Everything a run talks to that may be hostile: a price API, an S3 store and a Pushgateway, on one loopback port."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """An answer of the API."""

    status: int = 200
    body: bytes = b"[]"
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def records(cls, *records: dict[str, Any]) -> Reply:
        return cls(body=json.dumps({"data": records, "next": None}).encode())


@dataclass
class World:
    """What was asked, and how to answer `/prices`; everything else is refused in words that repeat the question."""

    address: str = ""
    scene: str = ""
    """Name of what is played; who asks for `/scene/<name>` changes it."""
    prices: Callable[[BaseHTTPRequestHandler], Reply] = lambda _: Reply()
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and Authorization header of each request, in order."""
    pushed: list[bytes] = field(default_factory=list)
    """Bodies of what was pushed as metrics."""

    @property
    def api(self) -> str:
        return f"{self.address}/prices"


def echoing(status: int) -> Callable[[BaseHTTPRequestHandler], Reply]:
    """An API that refuses, and repeats the key it was sent in every place it has."""

    def reply(request: BaseHTTPRequestHandler) -> Reply:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        body = json.dumps({"error": f"bad key {key}", "request": str(request.headers)}).encode()
        headers = {"WWW-Authenticate": f'Bearer error="{key}"', "X-Request": key, "Retry-After": "3600"}
        return Reply(status, body, headers)

    return reply


class _Door(BaseHTTPRequestHandler):
    world: World

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.world.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
        if self.path.startswith("/scene/"):
            self.world.scene = self.path.removeprefix("/scene/")
            reply = Reply()
        elif self.path.startswith("/prices"):
            reply = self.world.prices(self)
        elif self.path.startswith("/metrics"):
            self.world.pushed.append(content)
            reply = Reply(202, b"")
        else:
            said = json.dumps([self.path, str(self.headers)])
            key = self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
            told = f"<Code>InvalidAccessKeyId</Code><AWSAccessKeyId>{key}</AWSAccessKeyId><Said>{said}</Said>"
            reply = Reply(403, f"<Error>{told}</Error>".encode())
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - the base class's names

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def world() -> Iterator[World]:
    """A world for as long as the block lasts."""
    state = World()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Door", (_Door,), {"world": state}))
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
