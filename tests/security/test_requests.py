"""A price API that wants to lead us elsewhere: no other host is asked, and none but the API gets the key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from marketdata.batches import Interval
from marketdata.datasets import COMMODITY_PRICES
from marketdata.errors import MarketdataError, UsageError
from marketdata.settings import Settings
from marketdata.sources.api import ApiSource, Limits
from tests.security.canaries import canary, leaks
from tests.security.world import Reply, World, world

pytestmark = pytest.mark.timeout(60)

DAY = Interval(date(2020, 4, 20), date(2020, 4, 21))
NOW = datetime(2020, 4, 22, tzinfo=UTC)
LIMITS = Limits(retries=0)


@pytest.fixture
def worlds() -> Iterator[tuple[World, World]]:
    """The API, and the host it would like us to ask."""
    with ExitStack() as stack:
        yield stack.enter_context(world()), stack.enter_context(world())


def asked(api: World, key: str) -> list[Any]:
    source = ApiSource(api.api, key, 100, COMMODITY_PRICES, LIMITS)
    return [row for table in source.fetch(DAY, NOW) for row in table.to_pylist()]


ELSEWHERE = [
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://kubernetes.default.svc/api/v1/secrets",
    "{other}/prices",
    "{other}\\@{own}/prices",
    "{other}#@{own}/prices",
    "{other}?@{own}/prices",
    "http://{own}@{other_host}/prices",
    "http://{own}:80@{other_host}/prices",
    "http://{own}%40{other_host}/prices",
    "http://{own}%2f@{other_host}/prices",
    "//{other_host}/prices",
    "\\\\{other_host}\\prices",
    "http:\\\\{other_host}\\prices",
    "https://{own}/prices",
    "http://127.0.0.1:1/prices",
    "http://127.1/prices",
    "http://0x7f000001/prices",
    "http://localhost/prices",
    "HTTP://{other_host}/prices",
    "file:///etc/passwd",
    "ftp://{own}/prices",
    "gopher://{own}/prices",
    "data:application/json,[]",
    "javascript:alert(1)",
    "jar:http://{own}!/prices",
    "\thttp://{other_host}/prices",
    "http://{other_host}\t/prices",
    "http://{own}\r\nHost: {other_host}\r\n\r\n/prices",
    "http://[::1/prices",
    "http:// {other_host}/prices",
]


@pytest.mark.parametrize("how", ["next", "redirect"])
@pytest.mark.parametrize("address", ELSEWHERE)
def test_no_answer_leads_to_another_host(worlds: tuple[World, World], address: str, how: str) -> None:
    api, other = worlds
    key = canary("key")
    own, other_host = (each.address.removeprefix("http://") for each in worlds)
    target = address.format(other=other.address, other_host=other_host, own=own)

    def leading(request: BaseHTTPRequestHandler) -> Reply:
        if how == "redirect":
            return Reply(302, b"", {"Location": target.replace("\r\n", "")})
        return Reply(body=json.dumps({"data": [], "next": target}).encode())

    api.prices = leading
    with pytest.raises(MarketdataError) as caught:
        asked(api, key)
    assert caught.value.exit_code in (64, 65), "a host that was asked and did not answer would be 69"
    assert other.asked == []
    assert leaks({"key": key}, [("the error", str(caught.value).encode())]) == []


def test_a_redirect_within_the_api_is_followed_with_the_key(worlds: tuple[World, World]) -> None:
    """Else the test above would pass on an API that cannot be asked at all."""
    api, _ = worlds
    answers = iter([Reply(302, b"", {"Location": "/prices/v2"}), Reply.records(
        {"commodity": "Gold", "price": 1700, "timestamp": "2020-04-20T00:00:00Z"}
    )])  # fmt: skip
    api.prices = lambda _: next(answers)
    assert len(asked(api, "sesame")) == 1
    assert {authorization for _, _, authorization in api.asked} == {"Bearer sesame"}


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://prices.example.com/", "gopher://x/", "javascript:alert(1)", "/etc/passwd", "x"]
)
def test_an_address_of_another_kind_is_no_setting(settings_for: Callable[..., Settings], url: str) -> None:
    with pytest.raises(ValueError, match="commodity_api_url"):
        settings_for(commodity_api_url=url)


@pytest.mark.parametrize("url", ["http://user:sesame@prices.example.com/", "http://sesame@prices.example.com/"])
def test_a_credential_in_the_address_is_refused_unseen(url: str) -> None:
    with pytest.raises(UsageError, match="COMMODITY_API_URL") as caught:
        ApiSource(url, None, 100, COMMODITY_PRICES, LIMITS)
    assert "sesame" not in str(caught.value)
