"""The commands of the pull's Job and of the pods that wait for it, run as they stand: a server has the checkpoint, a folder is the volume."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fleet_chart as chart
import pytest

from expertfleet.demo.bundled import NANO_K2

WEIGHTS = "/model.safetensors"


class Site:
    """A web server with nano-k2; ``gets`` has what was read of it."""

    def __init__(self) -> None:
        self.gets: list[str] = []
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                site.gets.append(self.path)
                super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(NANO_K2)))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def start(container: chart.Object, volume: Path) -> "subprocess.Popen[bytes]":
    """A container of the image, or one with a command of its own."""
    words = container.get("command") or [sys.executable, "-m", "expertfleet.cluster", *container["args"]]
    return subprocess.Popen([word.replace("/model/", f"{volume}/") for word in words], stdout=subprocess.DEVNULL)


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
