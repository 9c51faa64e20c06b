"""A checkpoint's base address: what the server says of a file, and its bytes from any position on.

Knows nothing of the disk. ``HEAD`` never refuses anything: where a server (or a signed address behind a redirect) will
not answer it, size and checksum are unknown and ``GET`` decides. The bearer token goes to the base address's own host and
port alone. A query in the base address (a storage's signature) is sent with every file and never shown.
"""

import datetime
import email.utils
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx

from ... import __version__
from .errors import PullError, RangeError, StatusError, TransientError
from .partial import STRONG_ETAG

_MAX_TEXT_BYTES = 16 << 20
_TIMEOUT = httpx.Timeout(60.0, connect=15.0, pool=None)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Remote:
    """What is known of a file before it is fetched; None is not known."""

    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Body:
    """An answer on its way: ``chunks`` are the bytes from ``start`` to the end of the version ``etag``."""

    start: int
    size: int | None
    sha256: str | None
    etag: str
    # The connection's mere end does not pass for the end of the file.
    delimited: bool
    chunks: Iterator[bytes]


class Source:
    def __init__(self, url: str, token: str, connections: int) -> None:
        self._base = parse_url(url)
        if token and not _TOKEN.fullmatch(token):
            raise PullError("the token must be printable ASCII characters without spaces")
        self._token = token
        self._client = httpx.Client(
            follow_redirects=True,
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={"accept-encoding": "identity", "user-agent": f"expertfleet/{__version__}"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def address(self, name: str) -> httpx.URL:
        folder = self._base.raw_path.partition(b"?")[0].rstrip(b"/")
        query = b"?" + self._base.query if self._base.query else b""
        return self._base.copy_with(raw_path=folder + b"/" + quote(name, safe="").encode() + query)

    def look(self, name: str) -> Remote:
        with self._answer("HEAD", self.address(name)) as response:
            status = response.status_code
            if status in (404, 429) or (status >= 500 and status != 501):
                _check_status(response, self.address(name))
            hops = [*response.history, response]
            return Remote(_linked_size(hops) or (_length(response) if status == 200 else None), _sha256(hops))

    @contextmanager
    def read(self, name: str, start: int, etag: str) -> Iterator[Body]:
        """From ``start`` if that is still the version ``etag``, else from 0. Raises RangeError."""
        headers = {"range": f"bytes={start}-", "if-range": etag} if start else {}
        url = self.address(name)
        with self._answer("GET", url, headers) as response:
            _check_status(response, url)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise PullError(f"{shown(url)}: comes as {response.headers['content-encoding']}, was asked for plain")
            found = response.headers.get("etag", "")
            begin, size = 0, _length(response)
            if response.status_code != 200 and not start:
                raise StatusError(shown(url), response.status_code)
            if response.status_code != 200:
                match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
                # Some servers heed Range and overlook If-Range.
                if response.status_code != 206 or not match or int(match[1]) != start or found != etag:
                    raise RangeError
                begin, size = start, int(match[2])
            yield Body(
                start=begin,
                size=size,
                sha256=_sha256([*response.history, response]),
                etag=found if STRONG_ETAG.fullmatch(found) else "",
                delimited=size is not None or "chunked" in response.headers.get("transfer-encoding", ""),
                # As they come from the socket: a chunk size would hold bytes back, and a broken connection lose them.
                chunks=response.iter_raw(),
            )

    def text(self, url: httpx.URL) -> str:
        content = bytearray()
        with self._answer("GET", url) as response:
            _check_status(response, url)
            for chunk in response.iter_raw():
                content += chunk
                if len(content) > _MAX_TEXT_BYTES:
                    raise PullError(f"{shown(url)}: longer than {_MAX_TEXT_BYTES} bytes")
        return content.decode(errors="replace")

    @contextmanager
    def _answer(
        self, method: str, url: httpx.URL, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        own = self._token and _origin(url) == _origin(self._base)
        sent = {**(headers or {}), **({"authorization": f"Bearer {self._token}"} if own else {})}
        try:
            with self._client.stream(method, url, headers=sent) as response:
                yield response
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
            raise PullError(f"{shown(url)}: {error}") from error
        except httpx.RequestError as error:
            raise TransientError(f"{shown(url)}: {str(error) or type(error).__name__}") from error


def parse_url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        # Not shown: where the host ends cannot be told, nor what is a password.
        raise PullError("not an address: its host and port cannot be told") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise PullError(f"{shown(parsed)!r} is not an address that begins with http:// or https://")
    if parsed.userinfo or parsed.fragment:
        raise PullError(f"{shown(parsed)!r}: must hold no user, password or fragment")
    return parsed


def shown(url: httpx.URL) -> str:
    """For people: without what may be secret."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _check_status(response: httpx.Response, url: httpx.URL) -> None:
    status = response.status_code
    if status == 429 or status >= 500:
        raise TransientError(f"{shown(url)}: HTTP {status}", _retry_after(response.headers.get("retry-after", "")))
    if status not in (200, 206, 416):
        raise StatusError(shown(url), status)


def _retry_after(text: str) -> float:
    """Seconds, or a date; 0 for neither."""
    if text.isdecimal():
        return float(text)
    try:
        until = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (until - datetime.datetime.now(until.tzinfo)).total_seconds())


def _length(response: httpx.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if text.isdecimal() and "content-encoding" not in response.headers else None


def _linked_size(hops: list[httpx.Response]) -> int | None:
    """What the Hugging Face Hub says before it redirects."""
    sizes = [hop.headers.get("x-linked-size", "") for hop in hops]
    return next((int(size) for size in sizes if size.isdecimal()), None)


def _sha256(hops: list[httpx.Response]) -> str | None:
    """Also the Hub's, of files that it keeps in LFS; any other server's ETag may be anything."""
    for hop in hops:
        own = hop.headers.get("etag", "") if "x-repo-commit" in hop.headers else ""
        if match := _SHA256.fullmatch(hop.headers.get("x-linked-etag", own)):
            return match[1]
    return None
