"""The ``api`` source: JSON over HTTP from ``COMMODITY_API_URL``.

``GET <url>?start=2020-04-20&end=2020-04-21&page=1&page_size=1000`` answers with a list of records, or with
``{"data": [records], "next": address of the next page or null}``. A list is asked for page by page until one is empty.

A record has `commodity`, `price` and `timestamp`, and may have `currency`, `unit`, `volume`, `series`, `frequency` and
`source`. A record that lacks something is passed on as it is: the quality gate says so. Neither a redirect nor a next
page leads to another origin, and the key is sent to this one only.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from marketdata.batches import Interval, content_id
from marketdata.datasets import Dataset
from marketdata.errors import BadDataError, MarketdataError, UnavailableError, UsageError
from marketdata.settings import Settings
from marketdata.sources.formats.jsontext import Answer, decode
from marketdata.sources.mapping import Entry, From, Layout, Prices
from marketdata.sources.rows import to_raw

if TYPE_CHECKING:
    import pyarrow as pa
    import requests
    from tenacity import RetryCallState

_log = logging.getLogger(__name__)

VERSION = 1
"""Of the reading: a change that makes another raw row of the same answer counts it up."""

_FIELDS = ("timestamp", "price", "commodity", "series", "frequency", "currency", "unit", "volume", "source")
_OWN_PARAMETERS = ("start", "end", "page", "page_size")
"""Parameters that may stand in logs and in ``origin``: others may be secrets."""

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_OK, _NO_CONTENT = 200, 204
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5


@dataclass(frozen=True)
class Limits:
    """What is waited for and taken at most: seconds, bytes once decompressed, pages."""

    connect_seconds: float = 10
    read_seconds: float = 30
    response_seconds: float = 300
    retries: int = 3
    backoff_seconds: float = 1
    longest_wait_seconds: float = 60
    max_bytes: int = 64 * 2**20
    max_pages: int = 10_000


class _BusyError(Exception):
    """A try that may succeed when repeated."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait


@dataclass(frozen=True)
class _Response:
    url: str
    content: bytes
    date: str | None


class ApiSource:
    """The records of one HTTP API."""

    name = "api"

    def __init__(
        self, url: str, key: str | None, page_size: int, dataset: Dataset, limits: Limits | None = None
    ) -> None:
        parts = urlsplit(url)
        if parts.username or parts.password:
            raise UsageError(
                "COMMODITY_API_URL holds a user or password; nothing was asked", "put the key in COMMODITY_API_KEY"
            )
        self._host = parts.hostname
        if not self._host:
            raise UsageError(
                "COMMODITY_API_URL names no host; nothing was asked", "example: https://prices.example.com/v1"
            )
        self._url = url
        self._key = key
        self._page_size = page_size
        self._dataset = dataset
        self._limits = limits or Limits()
        # The usual unit of a commodity is the first one its ranges name.
        self._units: dict[str, str] = dict(reversed(list(dataset.ranges)))
        columns = {name: From(name) for name in _FIELDS if name not in ("timestamp", "price")}
        self._entry = Entry(files="", layout=Layout(_FIELDS), prices=(Prices("price", columns),))

    @classmethod
    def from_settings(cls, settings: Settings, dataset: Dataset) -> Self:
        """The API of ``COMMODITY_API_URL``.

        Raises:
            UsageError: it is not set, or holds a password.
        """
        if settings.commodity_api_url is None:
            raise UsageError(
                "COMMODITY_API_URL is not set; nothing was asked", "set it to the address of the api source"
            )
        key = settings.commodity_api_key.get_secret_value() if settings.commodity_api_key else None
        return cls(settings.commodity_api_url, key, settings.commodity_api_page_size, dataset)

    def fingerprint(self) -> str:
        return content_id(self.name, VERSION, _public(self._url), self._page_size)

    def fetch(self, interval: Interval, now: datetime) -> Iterator[pa.Table]:
        with _session(self._key) as session:
            for response, answer in self._pages(session, interval):
                as_of = response.date or now.astimezone(UTC).isoformat()
                origin = _public(response.url)
                yield from to_raw([self._completed(answer)], self._dataset, self._entry, origin, interval, as_of)

    def _pages(self, session: requests.Session, interval: Interval) -> Iterator[tuple[_Response, Answer]]:
        number = 1
        url = self._page_url(interval, number)
        asked: set[str] = set()
        previous = b""
        while True:
            if url in asked or len(asked) == self._limits.max_pages:
                what = (
                    "names a page again as the next one"
                    if url in asked
                    else f"has more than {self._limits.max_pages} pages"
                )
                raise _refused(url, what)
            asked.add(url)
            response = self._get(session, url)
            answer = decode(response.content, _FIELDS, _public(response.url))
            if answer.says_next:
                yield response, answer
                if not answer.next:
                    return
                url = self._next_url(response.url, answer.next)
                continue
            digest = hashlib.sha256(response.content).digest()
            if digest == previous and len(answer):
                if len(answer) == self._page_size:
                    raise _refused(
                        url, "is the same as the page before: the API does not page, and may have cut its answer",
                        "set COMMODITY_API_PAGE_SIZE above the number of records",
                    )  # fmt: skip
                return
            if not len(answer):
                return
            yield response, answer
            previous = digest
            number += 1
            url = self._page_url(interval, number)

    def _page_url(self, interval: Interval, number: int) -> str:
        own = {"start": interval.start, "end": interval.end, "page": number, "page_size": self._page_size}
        parts = urlsplit(self._url)
        query = parse_qsl(parts.query, keep_blank_values=True) + [(name, str(value)) for name, value in own.items()]
        return urlunsplit(parts._replace(query=urlencode(query), fragment=""))

    def _next_url(self, url: str, said: str) -> str:
        try:
            target = urljoin(url, said)
            inside = _origin(target) == _origin(self._url)
        except ValueError:  # no address at all
            inside = False
        if not inside:
            raise _refused(url, "leads to another host; it was not followed", "check COMMODITY_API_URL")
        return target

    def _get(self, session: requests.Session, url: str) -> _Response:
        from tenacity import Retrying, retry_if_exception, stop_after_attempt

        limits = self._limits

        def again(error: BaseException) -> bool:
            return isinstance(error, _BusyError) and (error.wait or 0) <= limits.longest_wait_seconds

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            backoff = limits.backoff_seconds * 2.0 ** (state.attempt_number - 1)
            seconds = error.wait if isinstance(error, _BusyError) and error.wait is not None else backoff
            _log.warning("%s: %s; asking again in %.1f s", _public(url), error, seconds)
            return seconds

        retrying = Retrying(
            retry=retry_if_exception(again), stop=stop_after_attempt(1 + limits.retries), wait=wait, reraise=True
        )
        try:
            return retrying(self._follow, session, url)
        except _BusyError as error:
            raise UnavailableError(
                f"{_public(url)}: {error.reason}; nothing of this extraction was kept", "try again later"
            ) from None

    def _follow(self, session: requests.Session, url: str) -> _Response:
        for _ in range(1 + _MAX_REDIRECTS):
            answer = self._ask(session, url)
            if isinstance(answer, _Response):
                return answer
            url = self._next_url(url, answer)
        raise _refused(url, f"redirects more than {_MAX_REDIRECTS} times", "check COMMODITY_API_URL")

    def _ask(self, session: requests.Session, url: str) -> _Response | str:
        """The answer of one request, or the address it redirects to."""
        import requests
        from urllib3.exceptions import HTTPError

        limits = self._limits
        timeout = (limits.connect_seconds, limits.read_seconds)
        try:
            with session.get(url, stream=True, timeout=timeout, allow_redirects=False) as response:
                status = response.status_code
                if status in _REDIRECTS and "Location" in response.headers:
                    return response.headers["Location"]
                self._judge(status, url, response.headers)
                content = b"[]" if status == _NO_CONTENT else self._body(response, url)
                return _Response(url, content, _date(response.headers.get("Date")))
        except requests.exceptions.ContentDecodingError as error:
            raise _refused(url, "is not compressed as its header says") from error
        except requests.exceptions.ConnectTimeout as error:
            raise _BusyError(f"no connection within {limits.connect_seconds:g} s") from error
        except requests.exceptions.Timeout as error:
            raise _BusyError(f"no answer within {limits.read_seconds:g} s") from error
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError, HTTPError) as error:
            raise _BusyError(_reason(error)) from error
        except (requests.exceptions.RequestException, ValueError) as error:
            raise UsageError(
                f"{_public(url)} cannot be asked: {type(error).__name__}", "check COMMODITY_API_URL"
            ) from error

    def _judge(self, status: int, url: str, headers: Mapping[str, str]) -> None:
        if status in (_OK, _NO_CONTENT):
            return
        said = f"the API answered {status}"
        if status in _BUSY or status >= 500:
            raise _BusyError(said, _retry_after(headers.get("Retry-After")))
        if status in (401, 403):
            raise UsageError(f"{_public(url)}: {said}; nothing was read", "check COMMODITY_API_KEY")
        raise UsageError(f"{_public(url)}: {said}; nothing was read", "check COMMODITY_API_URL")

    def _body(self, response: requests.Response, url: str) -> bytes:
        content = bytearray()
        deadline = time.monotonic() + self._limits.response_seconds
        for block in response.iter_content(65_536):
            content += block
            if len(content) > self._limits.max_bytes:
                raise _refused(url, f"is more than {self._limits.max_bytes} bytes", "lower COMMODITY_API_PAGE_SIZE")
            if time.monotonic() > deadline:
                raise _BusyError(f"the answer was not complete within {self._limits.response_seconds:g} s")
        return bytes(content)

    def _completed(self, answer: Answer) -> pa.Table:
        """The records as text columns, with the defaults where a field is absent."""
        import pyarrow as pa

        said = dict(zip(_FIELDS, answer.columns, strict=True))
        aliases = self._dataset.aliases.get("commodity", {})
        commodities = [aliases.get(name.strip().lower(), name.strip()) if name else None for name in said["commodity"]]
        defaults: dict[str, list[str | None]] = {
            "series": commodities,
            "unit": [self._units.get(commodity) if commodity else None for commodity in commodities],
            "currency": ["USD"] * len(answer),
            "frequency": ["daily"] * len(answer),
            "source": [self._host] * len(answer),
        }
        for field, values in defaults.items():
            said[field] = [
                default if value is None else value for value, default in zip(said[field], values, strict=True)
            ]
        return pa.table({field: pa.array(values, pa.string()) for field, values in said.items()})


def _session(key: str | None) -> requests.Session:
    import requests

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if key is not None:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    session = requests.Session()
    session.headers["Accept"] = "application/json"
    session.auth = authorize  # said here, a .netrc of the machine has no say
    return session


def _public(url: str) -> str:
    """The address without anything that may be a secret."""
    parts = urlsplit(url)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name in _OWN_PARAMETERS]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=host, query=urlencode(query), fragment=""))


def _origin(url: str) -> tuple[str | None, str | None, int | None]:
    """Where a request would go, as the library that sends it reads the address: others read a backslash otherwise."""
    from urllib3.util import parse_url

    parts = parse_url(url)
    return parts.scheme, parts.host, parts.port or {"http": 80, "https": 443}.get(parts.scheme or "")


def _refused(url: str, what: str, remedy: str = "") -> MarketdataError:
    return BadDataError(f"{_public(url)} {what}; nothing of this extraction was kept", remedy)


def _date(header: str | None) -> str | None:
    try:
        date = parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def _retry_after(header: str | None) -> float | None:
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    try:
        return Retry().parse_retry_after(header) if header else None
    except InvalidHeader:
        return None


def _reason(error: Any) -> str:
    """Why a connection failed, without the address, which may hold secrets."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror and error.errno:
            return f"the connection failed: {error.strerror}"
        error = error.__cause__ or error.__context__
    return "the connection failed or broke off"
