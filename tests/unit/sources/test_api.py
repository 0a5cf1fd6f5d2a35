"""The api source against a server in this process, on the loopback."""

from __future__ import annotations

import gzip
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from marketdata.batches import Interval
from marketdata.errors import BadDataError, MarketdataError, UnavailableError, UsageError
from marketdata.sources.api import ApiSource, Limits
from tests.unit.sources.reading import DATASET, EVER, NOW, rows
from tests.waiting import until

pytestmark = pytest.mark.timeout(60)

KEY = "sesame-4711"
DAY = Interval(date(2020, 4, 20), date(2020, 4, 21))
QUICK = Limits(backoff_seconds=0.01, max_pages=50)
DATE = "Mon, 20 Apr 2020 22:00:00 GMT"


def record(price: Any = 2000.5, **more: Any) -> dict[str, Any]:
    return {"commodity": "Gold", "price": price, "timestamp": "2020-04-20T00:00:00Z", **more}


@dataclass
class Reply:
    """What the server says; `steps` are sent apart, with a wait for the client's patience to end between them."""

    status: int = 200
    body: Any = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    stall: bool = False
    short: int = 0


class FakeApi:
    """An HTTP server whose replies a test writes: a list in order (the last one stays), or a function of the query."""

    def __init__(self) -> None:
        self.replies: list[Reply] | Callable[[dict[str, str]], Reply] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.released = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.requests.append((self.path, dict(self.headers)))
                fake.reply(self)

            def log_message(self, *args: Any) -> None:
                pass

            def date_time_string(self, timestamp: Any = None) -> str:
                return DATE

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.address}/v1/prices"

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        if callable(self.replies):
            query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
            reply = self.replies(query)
        else:
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.status != 204:
            handler.send_header("Content-Length", str(len(body) + reply.short))
        if reply.stall:
            self.released.wait(10)
        try:
            handler.end_headers()
            handler.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass

    @property
    def queries(self) -> list[dict[str, list[str]]]:
        return [parse_qs(urlsplit(path).query) for path, _ in self.requests]

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    server = FakeApi()
    yield server
    server.close()


def fetch(
    api: FakeApi, replies: list[Reply] | Callable[[dict[str, str]], Reply], *, url: str = "", key: str | None = KEY,
    interval: Interval = DAY, limits: Limits = QUICK, page_size: int = 2,
) -> list[dict[str, Any]]:  # fmt: skip
    api.replies = replies
    return rows(ApiSource(url or api.url, key, page_size, DATASET, limits).fetch(interval, NOW))


def error_of(kind: type[MarketdataError], api: FakeApi, *replies: Reply, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        fetch(api, list(replies), **more)
    said = str(caught.value)
    assert KEY not in said
    assert "\n" not in said
    return said


def envelope(*records: Any, then: str | None = None) -> Reply:
    return Reply(body={"data": list(records), "next": then})


def test_a_record_as_said_and_its_defaults(api: FakeApi) -> None:
    (row,) = fetch(api, [envelope(record("1,1"))])
    assert row == {
        "commodity": "Gold", "series": "Gold", "frequency": "daily", "price": "1,1", "currency": "USD",
        "unit": "troy_oz", "volume": None, "source": "127.0.0.1",
        "event_time": "2020-04-20T00:00:00Z", "as_of": "2020-04-20T22:00:00+00:00",
        "origin": f"{api.url}?start=2020-04-20&end=2020-04-21&page=1&page_size=2", "origin_row": 1,
    }  # fmt: skip


def test_what_is_asked(api: FakeApi) -> None:
    fetch(api, [envelope()], url=f"{api.url}?dataset=spot")
    path, headers = api.requests[0]
    assert path == "/v1/prices?dataset=spot&start=2020-04-20&end=2020-04-21&page=1&page_size=2"
    assert headers["Authorization"] == f"Bearer {KEY}"
    fetch(api, [envelope()], key=None)
    assert "Authorization" not in api.requests[1][1]


def test_optional_fields_win_over_defaults(api: FakeApi) -> None:
    said = record(currency="EUR", unit="kg", volume=12.50, series="XAU", frequency="monthly", source="LBMA")
    (row,) = fetch(api, [envelope(said)])
    assert [row[name] for name in ("currency", "unit", "volume", "series", "frequency", "source")] == [
        "EUR", "kg", "12.5", "XAU", "monthly", "LBMA",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("commodity", "series", "unit"),
    [
        ("Silver", "Silver", "troy_oz"),
        ("copper", "Copper", "lb"),
        (" crude oil ", "Oil", "bbl"),
        ("natural_gas", "Natural Gas", "mmbtu"),
        ("Tin", "Tin", None),
        (None, None, None),
    ],
)
def test_series_and_unit_follow_the_commodity(
    api: FakeApi, commodity: str | None, series: str | None, unit: str | None
) -> None:
    (row,) = fetch(api, [envelope(record(commodity=commodity))])
    assert (row["commodity"], row["series"], row["unit"]) == (commodity, series, unit)


def test_numbers_keep_their_digits(api: FakeApi) -> None:
    body = b'[{"price": -36.980, "timestamp": "2020-04-20"}, {"price": 1E3, "timestamp": "2020-04-20"}]'
    taken = fetch(api, lambda query: Reply(body=body if query["page"] == "1" else []))
    assert [row["price"] for row in taken] == ["-36.980", "1E3"]


def test_records_that_lack_fields_pass(api: FakeApi) -> None:
    taken = fetch(api, [envelope({}, {"timestamp": 1587340800, "price": None}, record("n/a", unknown=[1]))])
    assert [(row["commodity"], row["price"], row["event_time"]) for row in taken] == [
        (None, None, None), (None, None, "1587340800"), ("Gold", "n/a", "2020-04-20T00:00:00Z"),
    ]  # fmt: skip


def test_only_the_interval_is_taken_from_a_server_that_sends_all(api: FakeApi) -> None:
    sent = [
        record(timestamp=said)
        for said in ("2020-04-19T23:59:59Z", "2020-04-20", "2020-04-21T01:00:00+02:00", "2020-04-21", "soon")
    ]
    assert [row["event_time"] for row in fetch(api, [envelope(*sent)])] == [
        "2020-04-20",
        "2020-04-21T01:00:00+02:00",
        "soon",
    ]


def test_no_data(api: FakeApi) -> None:
    assert fetch(api, [Reply(body=[])]) == []
    assert fetch(api, [envelope()]) == []
    assert fetch(api, [Reply(204, b"")]) == []


def test_lists_are_paged_until_one_is_empty(api: FakeApi) -> None:
    prices = list(range(1, 6))

    def page(query: dict[str, str]) -> Reply:
        start = (int(query["page"]) - 1) * 2  # never more than two a page, whatever is asked for
        return Reply(body=[record(price) for price in prices[start : start + 2]])

    taken = fetch(api, page, page_size=1000)
    assert [row["price"] for row in taken] == ["1", "2", "3", "4", "5"]
    assert [row["origin_row"] for row in taken] == [1, 2, 1, 2, 1]
    assert [query["page"] for query in api.queries] == [["1"], ["2"], ["3"], ["4"]]


def test_next_is_followed_to_its_end(api: FakeApi) -> None:
    first = envelope(record(1), then="/v1/prices?cursor=secret")
    second = envelope(then=f"{api.url}?cursor=last")  # an empty page is not the end
    taken = fetch(api, [first, second, envelope(record(3))])
    assert [row["price"] for row in taken] == ["1", "3"]
    assert [row["origin"] for row in taken] == [
        f"{api.url}?start=2020-04-20&end=2020-04-21&page=1&page_size=2",
        api.url,
    ]
    assert [path for path, _ in api.requests[1:]] == ["/v1/prices?cursor=secret", "/v1/prices?cursor=last"]
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers in api.requests)


def test_a_server_that_does_not_page(api: FakeApi) -> None:
    whole = Reply(body=[record(1), record(2), record(3)])
    assert len(fetch(api, [whole], page_size=1000)) == 3
    assert len(fetch(api, [whole], page_size=2)) == 3
    said = error_of(BadDataError, api, Reply(body=[record(1), record(2)]), page_size=2)
    assert "does not page, and may have cut its answer" in said


@pytest.mark.parametrize(
    "then", ["http://127.0.0.1:1/", "https://{host}/", "//evil.example/", "file:///etc/passwd", "http://[bad/"]
)
def test_next_never_leaves_the_origin(api: FakeApi, then: str) -> None:
    said = error_of(BadDataError, api, envelope(record(), then=then.format(host=urlsplit(api.url).netloc)))
    assert "leads to another host; it was not followed" in said
    assert len(api.requests) == 1


def test_next_in_a_circle(api: FakeApi) -> None:
    assert "names a page again" in error_of(BadDataError, api, envelope(record(), then="?page=7"))
    assert len(api.requests) == 2


def test_pages_without_end(api: FakeApi) -> None:
    limits = Limits(max_pages=5)
    with pytest.raises(BadDataError, match="has more than 5 pages"):
        fetch(api, lambda query: Reply(body=[record(query["page"])]), limits=limits)
    assert len(api.requests) == 5


def test_a_redirect_within_the_origin_is_followed_with_the_key(api: FakeApi) -> None:
    (row,) = fetch(api, [Reply(302, b"", {"Location": "/v2/prices?page=1"}), envelope(record())])
    assert row["origin"] == f"{api.address}/v2/prices?page=1"
    assert api.requests[1][1]["Authorization"] == f"Bearer {KEY}"


def test_a_redirect_elsewhere_is_not(api: FakeApi) -> None:
    other = FakeApi()
    try:
        other.replies = [envelope(record())]
        said = error_of(BadDataError, api, Reply(301, b"", {"Location": other.url}))
        assert "leads to another host; it was not followed" in said
        assert other.requests == []
    finally:
        other.close()


def test_redirects_in_a_circle(api: FakeApi) -> None:
    assert "redirects more than 5 times" in error_of(BadDataError, api, Reply(302, b"", {"Location": api.url}))
    assert len(api.requests) == 6


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(api: FakeApi, status: int) -> None:
    assert len(fetch(api, [Reply(status), Reply(status), Reply(status), envelope(record())])) == 1
    assert len(api.requests) == 4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_and_given_up_after_three_more_tries(api: FakeApi, status: int) -> None:
    said = error_of(UnavailableError, api, Reply(status, headers={"Retry-After": "0"}))
    assert f"the API answered {status}" in said
    assert len(api.requests) == 4


def test_retry_after_is_honoured(api: FakeApi, caplog: pytest.LogCaptureFixture) -> None:
    patient = Limits(backoff_seconds=30)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert len(fetch(api, [Reply(429, headers={"Retry-After": "1"}), envelope(record())], limits=patient)) == 1
    assert 1 <= time.monotonic() - started < 10
    assert "the API answered 429; asking again in 1.0 s" in caplog.text


def test_a_server_that_wants_an_hour_is_left_to_the_scheduler(api: FakeApi) -> None:
    assert "the API answered 429" in error_of(UnavailableError, api, Reply(429, headers={"Retry-After": "3600"}))
    assert len(api.requests) == 1


@pytest.mark.parametrize("header", ["soon", "", "-1"])
def test_a_retry_after_nobody_can_read_is_ignored(api: FakeApi, header: str) -> None:
    assert len(fetch(api, [Reply(503, headers={"Retry-After": header}), envelope(record())])) == 1


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(400, "COMMODITY_API_URL"), (401, "COMMODITY_API_KEY"), (403, "COMMODITY_API_KEY"), (404, "COMMODITY_API_URL")],
)
def test_a_request_that_is_refused(api: FakeApi, status: int, remedy: str) -> None:
    said = error_of(UsageError, api, Reply(status, {"error": f"bad key {KEY}"}))
    assert f"the API answered {status}" in said
    assert remedy in said
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "truncated"),
        (b"<html>", "invalid character .byte 0."),
        (b'[{"price": 1},', "truncated"),
        (b'[{"price": 01}]', "byte 12"),
        (b'{"error": "no"}', "missing required field `data`"),
        (b'{"data": {}}', r"Expected `array`, got `object` - at `\$.data`"),
        (b'{"data": [], "next": 7}', r"at `\$.next`"),
        (b'{"data": [1]}', r"at `\$.data\[0\]`"),
        (b'"text"', "is JSON of another shape"),
        (b'[{"price": "\xff"}]', "not UTF-8"),
    ],
)
def test_an_answer_that_is_no_list_of_records(api: FakeApi, body: bytes, says: str) -> None:
    with pytest.raises(BadDataError, match=says):
        fetch(api, [Reply(body=body)])


def test_an_answer_that_is_too_large_is_not_read_to_its_end(api: FakeApi) -> None:
    limits = Limits(max_bytes=100_000)
    assert "is more than 100000 bytes" in error_of(BadDataError, api, Reply(body=b" " * 1_000_000), limits=limits)
    bomb = Reply(body=gzip.compress(b" " * 50_000_000), headers={"Content-Encoding": "gzip"})
    assert "is more than 100000 bytes" in error_of(BadDataError, api, bomb, limits=limits)


def test_compression(api: FakeApi) -> None:
    body = gzip.compress(json.dumps({"data": [record()], "next": None}).encode())
    assert len(fetch(api, [Reply(body=body, headers={"Content-Encoding": "gzip"})])) == 1
    assert "is not compressed as its header says" in error_of(
        BadDataError, api, Reply(body=b"[]", headers={"Content-Encoding": "gzip"})
    )


def test_a_silent_server_is_given_up(api: FakeApi) -> None:
    said = error_of(UnavailableError, api, Reply(stall=True), limits=Limits(read_seconds=0.1, backoff_seconds=0.01))
    assert "no answer within 0.1 s" in said
    until("it was asked four times", lambda: len(api.requests) == 4)


def test_an_answer_that_breaks_off_is_asked_for_again(api: FakeApi) -> None:
    whole = envelope(record())
    assert len(fetch(api, [Reply(body=whole.body, short=10), whole])) == 1
    assert "broke off" in error_of(UnavailableError, api, Reply(body=whole.body, short=10))


def test_nobody_is_there(api: FakeApi) -> None:
    said = error_of(UnavailableError, api, Reply(), url="http://127.0.0.1:1/v1?token=sesame-4711")
    assert "the connection failed: Connection refused" in said
    assert "token" not in said


def test_the_key_and_tokens_stay_out_of_the_log(api: FakeApi, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fetch(api, [Reply(500), envelope(record())], url=f"{api.url}?token={KEY}")
    assert "asking again" in caplog.text
    assert KEY not in caplog.text


def test_a_password_in_the_address_is_refused() -> None:
    with pytest.raises(UsageError, match="holds a user or password") as caught:
        ApiSource(f"https://me:{KEY}@prices.example.com/", None, 10, DATASET)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["http://", "http:///v1", "http://host:port/"])
def test_an_address_without_a_host(url: str) -> None:
    with pytest.raises(UsageError, match="COMMODITY_API_URL"):
        list(ApiSource(url, None, 10, DATASET).fetch(EVER, NOW))


def test_a_netrc_of_the_machine_does_not_replace_the_key(
    api: FakeApi, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    fetch(api, [envelope()])
    fetch(api, [envelope()], key=None)
    assert [headers.get("Authorization") for _, headers in api.requests] == [f"Bearer {KEY}", None]


@pytest.mark.parametrize("header", ["yesterday", ""])
def test_without_a_date_the_time_of_the_extraction_counts(
    api: FakeApi, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.DATE", header)
    (row,) = fetch(api, [envelope(record())])
    assert row["as_of"] == NOW.isoformat()
