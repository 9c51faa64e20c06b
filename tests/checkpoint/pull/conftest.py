"""A server on loopback that does to its clients what networks and servers do."""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from expertfleet.checkpoint.pull.pull import PullReport, pull
from expertfleet.checkpoint.pull.retry import RetryPolicy


@dataclass
class Seen:
    method: str
    name: str
    query: str
    headers: dict[str, str]


@dataclass
class FileServer:
    """Each list of ``cuts`` and ``statuses`` is used up, one entry an answer."""

    files: dict[str, bytes]
    seen: list[Seen] = field(default_factory=list)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    redirect_to: str | None = None
    heeds_range: bool = True
    heeds_if_range: bool = True
    heeds_head: bool = True
    sends_length: bool = True
    bytes_per_s: float | None = None
    url: str = ""

    def etag(self, name: str) -> str:
        return self.etags.get(name, f'"{hashlib.md5(self.files[name]).hexdigest()}"')

    def gets(self, name: str) -> list[dict[str, str]]:
        return [seen.headers for seen in self.seen if seen.method == "GET" and seen.name == name]

    def add_sums(self) -> None:
        lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in self.files.items()]
        self.files["SHA256SUMS"] = "".join(lines).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """Clients that stop at once are what is tested here."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *args: object) -> None:
        pass

    @property
    def site(self) -> FileServer:
        return self.server.site  # type: ignore[attr-defined,no-any-return]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        site, parts = self.site, urlsplit(self.path)
        name = unquote(parts.path.rpartition("/")[2])
        headers = {key.lower(): value for key, value in self.headers.items()}
        site.seen.append(Seen(self.command, name, parts.query, headers))
        if site.statuses.get(name):
            self.say(*site.statuses[name].pop(0))
        elif self.command == "HEAD" and not site.heeds_head:
            self.say(405, {})
        elif name not in site.files:
            self.say(404, {})
        elif site.redirect_to is not None:
            self.say(302, {"Location": f"{site.redirect_to}/{name}", **site.headers.get(name, {})})
        else:
            self.send_file(name, headers)

    def say(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": "0", **headers}.items():
            self.send_header(key, value)
        self.end_headers()

    def send_file(self, name: str, headers: dict[str, str]) -> None:
        site, content = self.site, self.site.files[name]
        start = self.start_of(headers, site.etag(name))
        if start >= len(content) > 0:
            self.say(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        extra = {"ETag": site.etag(name), **site.headers.get(name, {})}
        if start:
            extra["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if site.sends_length:
            extra["Content-Length"] = str(len(content) - start)
        else:
            self.close_connection = True
        self.send_response(206 if start else 200)
        for key, value in extra.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.send_body(name, content[start:])

    def start_of(self, headers: dict[str, str], etag: str) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        same = headers.get("if-range", etag) == etag or not self.site.heeds_if_range
        return int(asked[1]) if asked and same and self.site.heeds_range else 0

    def send_body(self, name: str, body: bytes) -> None:
        cuts = self.site.cuts.get(name)
        if cuts:
            body, self.close_connection = body[: cuts.pop(0)], True
        piece = len(body) if self.site.bytes_per_s is None else 1 << 16
        for start in range(0, len(body), piece or 1):
            self.wfile.write(body[start : start + piece])
            if self.site.bytes_per_s is not None:
                time.sleep(piece / self.site.bytes_per_s)


Serve = Callable[[Path], FileServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """``serve(directory)`` puts its files on a port of loopback, under ``/models/kimi``."""
    monkeypatch.setenv("NO_PROXY", "*")
    running: list[ThreadingHTTPServer] = []

    def start(directory: Path) -> FileServer:
        site = FileServer({path.name: path.read_bytes() for path in directory.iterdir()})
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.site = site  # type: ignore[attr-defined]
        site.url = f"http://127.0.0.1:{server.server_port}/models/kimi"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(server)
        return site

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(serve: Serve, tiny: Path) -> FileServer:
    return serve(tiny)


class Puller:
    """``puller(site)`` pulls into ``directory``; what was said is in ``said``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.said: list[str] = []

    def __call__(self, site: FileServer, *, jobs: int = 2, url: str | None = None, **options: str) -> PullReport:
        policy = RetryPolicy(first_pause_s=0.01)
        address = site.url if url is None else url
        return pull(address, self.directory, jobs=jobs, say=self.said.append, retry=policy, **options)

    def left(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if ".partial" in path.name)


@pytest.fixture
def puller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Puller:
    """The files of these tests are far smaller than what is dropped of an earlier process's bytes."""
    monkeypatch.setattr("expertfleet.checkpoint.pull.partial._TAIL_BYTES", 1)
    return Puller(tmp_path / "pulled")
