"""The commands of the pull's Job and of the pods that wait for it, run as they stand: a server has the checkpoint, a folder is the volume."""

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import fleet_chart as chart
import pytest
import trustme

from expertfleet.demo.bundled import NANO_K2

WEIGHTS = "/model.safetensors"


class Site:
    """A web server with nano-k2; ``gets`` has what was read of it. It is asked as a proxy, too, and has then whatever host is named."""

    def __init__(self, certificate: trustme.LeafCert | None = None) -> None:
        self.gets: list[str] = []
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                site.gets.append(self.path)
                self.path = urlsplit(self.path).path
                super().do_GET()

            def do_HEAD(self) -> None:
                self.path = urlsplit(self.path).path
                super().do_HEAD()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(NANO_K2)))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def start(
    container: chart.Object, volume: Path, authority: Path = NANO_K2, stderr: int | None = None
) -> "subprocess.Popen[bytes]":
    """A container of the image, or one with a command of its own; with the variables that are written out."""
    words = container.get("command") or [sys.executable, "-m", "expertfleet.cluster", *container["args"]]
    given = {each["name"]: each["value"] for each in container.get("env", ()) if "value" in each}
    local = {name: value.replace("/etc/authority", str(authority)) for name, value in given.items()}
    unproxied = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.Popen(
        [word.replace("/model/", f"{volume}/") for word in words],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env={**unproxied, **local},
    )


def pull_of(url: str, more: chart.Values) -> chart.Object:
    source = {"source": "pull", "subPath": "org/nano-k2", "pull": {"url": url, **more}}
    (job,) = chart.of_kind(chart.render("demo", {"model": source}), "Job")
    return job["spec"]["template"]["spec"]["initContainers"][-1]  # type: ignore[no-any-return]


def pulled(container: chart.Object, volume: Path, authority: Path = NANO_K2) -> tuple[int, str]:
    process = start(container, volume, authority, subprocess.PIPE)
    _, said = process.communicate(timeout=120)
    return process.returncode, said.decode()


@pytest.mark.slow
def test_a_checkpoint_is_copied_once_and_then_nobody_waits(site: Site, tmp_path: Path) -> None:
    values: chart.Values = {"model": {"source": "pull", "subPath": "nano-k2", "pull": {"url": site.url}}}
    objects = chart.render("demo", values)
    (job,) = chart.of_kind(objects, "Job")
    spec = job["spec"]["template"]["spec"]
    (pull,), (complete,) = spec["initContainers"], spec["containers"]
    gateway = chart.named(objects, "Deployment", "-gateway")["spec"]["template"]["spec"]
    (await_model,) = gateway["initContainers"]

    waiting = start(await_model, tmp_path)
    try:
        assert start(pull, tmp_path).wait(120) == 0
        assert waiting.poll() is None, "the mark is not there yet"
        assert start(complete, tmp_path).wait(30) == 0
        assert waiting.wait(30) == 0
    finally:
        waiting.kill()
        waiting.wait()
    for path in NANO_K2.iterdir():
        if path.name != "README.md" and path.suffix not in (".svg", ".jsonl"):
            assert (tmp_path / "nano-k2" / path.name).read_bytes() == path.read_bytes(), path.name
    (told,) = {word for word in gateway["containers"][0]["args"] if word.startswith("--model=")}
    assert told == "--model=/model/nano-k2"

    read = site.gets.count(WEIGHTS)
    assert read >= 1
    assert start(pull, tmp_path).wait(120) == 0, "as the Job of the next upgrade does"
    assert site.gets.count(WEIGHTS) == read, "what is there is not copied again"


@pytest.mark.slow
def test_a_proxy_is_gone_through(site: Site, tmp_path: Path) -> None:
    env = [{"name": "HTTP_PROXY", "value": site.url}, {"name": "NO_PROXY", "value": "other.example"}]
    assert pulled(pull_of("http://models.example/k2", {"env": env}), tmp_path)[0] != 0, "the proxy has no such folder"
    assert f"http://models.example/k2{WEIGHTS}" not in site.gets
    status, said = pulled(pull_of("http://models.example", {"env": env}), tmp_path)
    assert status == 0, said
    assert f"http://models.example{WEIGHTS}" in site.gets
    assert (tmp_path / "org/nano-k2" / WEIGHTS[1:]).exists()


@pytest.mark.slow
def test_a_server_with_a_certificate_of_ones_own_authority_is_trusted_where_it_is_told(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    site = Site(authority.issue_cert("127.0.0.1"))
    try:
        status, said = pulled(pull_of(site.url, {}), tmp_path / "volume")
        assert status == 1
        assert "certificate" in said
        told: chart.Values = {
            "env": [{"name": "SSL_CERT_FILE", "value": "/etc/authority/ca.crt"}],
            "volumes": [{"name": "authority", "configMap": {"name": "authority"}}],
            "volumeMounts": [{"name": "authority", "mountPath": "/etc/authority", "readOnly": True}],
        }
        status, said = pulled(pull_of(site.url, told), tmp_path / "volume", authority=tmp_path)
        assert status == 0, said
        assert (tmp_path / "volume/org/nano-k2" / WEIGHTS[1:]).exists()
    finally:
        site.close()
