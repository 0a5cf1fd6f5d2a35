"""Slack's HTTP API on loopback, strict: it refuses what Slack would refuse, misbehaves as told, and keeps what it took.

Two doors, as Slack has: `POST /services/T…/B…/…` (incoming webhook) and `POST /api/chat.postMessage` (bot token). The
limits are those of https://docs.slack.dev/reference/block-kit/blocks, the notation that of
https://docs.slack.dev/messaging/formatting-message-text.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "xoxb-1234567890-abcdefghij"
WEBHOOK = "/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX"
CHANNEL = "C0123456789"

_MENTION = re.compile(r"<[!@#]")
_LINK = re.compile(r"<(https?://[^|<>\s]+)\|([^<>|]+)>")
_ENTITY = re.compile(r"&(?!amp;|lt;|gt;)")


@dataclass(frozen=True)
class Misbehaviour:
    """What to do with the next request instead of taking it.

    Args:
        status: HTTP status to answer with, 0 for resetting the connection.
        retry_after: header `Retry-After`, in seconds.
        delay_seconds: wait before anything else.
        takes: take the message all the same: its answer is what goes wrong.
    """

    status: int = 200
    retry_after: int | None = None
    delay_seconds: float = 0.0
    takes: bool = False


@dataclass(frozen=True)
class Posted:
    """A message that was taken."""

    at: float
    channel: str
    ts: str
    thread_ts: str | None
    payload: dict[str, Any]

    @property
    def text(self) -> str:
        return str(self.payload["text"])


@dataclass
class Slack:
    """The server's state; every list is in order of arrival."""

    address: str = ""
    posted: list[Posted] = field(default_factory=list)
    refused: list[tuple[str, Any]] = field(default_factory=list)
    requests: list[tuple[float, int]] = field(default_factory=list)
    script: deque[Misbehaviour] = field(default_factory=deque)
    down: bool = False
    """Every connection is reset, as long as this is set."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def webhook(self) -> dict[str, Any]:
        """An Airflow connection to the webhook."""
        return {"conn_type": "slackwebhook", "password": f"{self.address}{WEBHOOK}"}

    @property
    def bot(self) -> dict[str, Any]:
        """An Airflow connection with the bot's token."""
        extra = {"base_url": f"{self.address}/api/", "channel": CHANNEL}
        return {"conn_type": "slack", "password": TOKEN, "extra": extra}

    def about(self, *words: str) -> list[Posted]:
        """What was posted and holds all these words."""
        with self.lock:
            return [post for post in self.posted if all(word in json.dumps(post.payload) for word in words)]

    def take(self, payload: dict[str, Any], channel: str) -> Posted:
        with self.lock:
            ts = f"{time.time():.6f}"
            post = Posted(time.time(), channel, ts, payload.get("thread_ts"), payload)
            self.posted.append(post)
        with self.changed:
            self.changed.notify_all()
        return post


def problems(payload: Any) -> list[str]:
    """What Slack would refuse a message for; empty for a good one."""
    if not isinstance(payload, dict):
        return ["invalid_payload"]
    found = []
    text = payload.get("text")
    if not isinstance(text, str) or not text:
        found.append("no_text")
    elif len(text) > 40_000:
        found.append("msg_too_long")
    else:
        found += _notation("text", text)
    blocks = payload.get("blocks", [])
    if not isinstance(blocks, list) or len(blocks) > 50:
        return [*found, "invalid_blocks: at most 50"]
    for number, block in enumerate(blocks):
        where = f"blocks[{number}]"
        kind = block.get("type")
        if kind == "header":
            found += _keys(where, block, {"type", "text", "block_id"})
            found += _text(f"{where}.text", block.get("text"), 150, {"plain_text"})
        elif kind == "section":
            found += _keys(where, block, {"type", "text", "fields", "block_id", "accessory", "expand"})
            if "text" not in block and not block.get("fields"):
                found.append(f"{where}: needs text or fields")
            if "text" in block:
                found += _text(f"{where}.text", block["text"], 3000, {"plain_text", "mrkdwn"})
            if len(block.get("fields", [])) > 10:
                found.append(f"{where}.fields: at most 10")
            for index, one in enumerate(block.get("fields", [])):
                found += _text(f"{where}.fields[{index}]", one, 2000, {"plain_text", "mrkdwn"})
        elif kind == "context":
            found += _keys(where, block, {"type", "elements", "block_id"})
            if not 1 <= len(block.get("elements", [])) <= 10:
                found.append(f"{where}.elements: 1 to 10")
            for index, one in enumerate(block.get("elements", [])):
                found += _text(f"{where}.elements[{index}]", one, 3000, {"plain_text", "mrkdwn"})
        elif kind == "divider":
            found += _keys(where, block, {"type", "block_id"})
        else:
            found.append(f"{where}.type: {kind!r} is not one of header, section, context, divider")
    return found


def _keys(where: str, block: dict[str, Any], known: set[str]) -> list[str]:
    return [f"{where}: unknown key {name}" for name in sorted(block.keys() - known)]


def _text(where: str, value: Any, limit: int, kinds: set[str]) -> list[str]:
    if not isinstance(value, dict) or value.get("type") not in kinds:
        return [f"{where}.type: one of {sorted(kinds)}"]
    text = value.get("text")
    if not isinstance(text, str) or not 1 <= len(text) <= limit:
        return [f"{where}.text: 1 to {limit} characters"]
    if value["type"] == "plain_text":
        return _keys(where, value, {"type", "text", "emoji"})
    return _keys(where, value, {"type", "text", "verbatim"}) + _notation(where, text)


def _notation(where: str, text: str) -> list[str]:
    """Slack itself would show these somehow; here they are mistakes: somebody is called, or an escape was forgotten."""
    found = []
    if _MENTION.search(text):
        found.append(f"{where}: mentions somebody")
    rest = _LINK.sub("", text)
    if "<" in rest or ">" in rest or _ENTITY.search(text):
        found.append(f"{where}: &, < and > are to be escaped")
    if text.count("```") % 2:
        found.append(f"{where}: a block of code is left open")
    return found


class _Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    slack: Slack

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        slack = self.slack
        with slack.lock:
            act = slack.script.popleft() if slack.script else Misbehaviour()
        if slack.down:
            act = Misbehaviour(status=0)
        time.sleep(act.delay_seconds)
        slack.requests.append((time.time(), act.status))
        if act.status != 200 and not act.takes:
            self._misbehave(act)
            return
        if self.path == WEBHOOK:
            self._webhook(body, act)
        elif self.path == "/api/chat.postMessage":
            self._post_message(body, act)
        else:
            self._answer(404, b"no_service", "text/html")

    def _webhook(self, body: bytes, act: Misbehaviour) -> None:
        if "application/json" not in self.headers.get("Content-Type", ""):
            self._answer(400, b"invalid_payload", "text/html")
            return
        payload = _parsed(body)
        found = problems(payload)
        if found:
            self.slack.refused.append((found[0], payload))
            self._answer(400, b"invalid_blocks", "text/html")
            return
        self.slack.take(payload, CHANNEL)
        if act.status == 200:
            self._answer(200, b"ok", "text/html")
        else:
            self._misbehave(act)

    def _post_message(self, body: bytes, act: Misbehaviour) -> None:
        payload = _parsed(body)
        error = ""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            error = "invalid_auth"
        elif not isinstance(payload, dict) or payload.get("channel") != CHANNEL:
            error = "channel_not_found"
        elif found := problems(payload):
            self.slack.refused.append((found[0], payload))
            error = "invalid_blocks"
        elif payload.get("thread_ts") and payload["thread_ts"] not in {p.ts for p in self.slack.posted}:
            error = "thread_not_found"
        if error:
            self._answer(200, json.dumps({"ok": False, "error": error}).encode(), "application/json")
            return
        post = self.slack.take(payload, CHANNEL)
        if act.status == 200:
            answer = {"ok": True, "channel": CHANNEL, "ts": post.ts, "message": {"text": post.text}}
            self._answer(200, json.dumps(answer).encode(), "application/json")
        else:
            self._misbehave(act)

    def _misbehave(self, act: Misbehaviour) -> None:
        if act.status == 0:
            # Zero seconds of lingering: the connection is reset, not closed.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        extra = {} if act.retry_after is None else {"Retry-After": str(act.retry_after)}
        self._answer(act.status, b'{"ok": false, "error": "ratelimited"}', "application/json", extra)

    def _answer(self, status: int, body: bytes, kind: str, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
        pass


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reset is what was asked for."""


@contextmanager
def slack_server() -> Iterator[Slack]:
    """A server for as long as the block lasts."""
    state = Slack()
    server = _Server(("127.0.0.1", 0), type("Door", (_Door,), {"slack": state}))
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
