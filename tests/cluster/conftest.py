import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleet_process import plain_environment
from until import until

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.cluster.ray.process_reaper import alive, descendants

FAKE_SERVERS = Path(__file__).with_name("fake_servers")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Serve:
    """`expertfleet serve` with fake workers, in a temp folder of its own."""

    def __init__(self, model: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        self.tmp = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
        self.port = free_port()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "expertfleet.cluster",
                "serve",
                str(model),
                f"--port={self.port}",
                "--cache-gib=0.1",
                "--max-model-len=1024",
                *flags,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **plain_environment(os.environ),
                "TMPDIR": str(self.tmp),
                "PYTHONPATH": str(FAKE_SERVERS),
                **(env or {}),
            },
            start_new_session=True,
        )
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        for lines, stream in ((self.stdout, self.process.stdout), (self.stderr, self.process.stderr)):
            threading.Thread(target=self._read, args=(lines, stream), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_ready(self, timeout_s: float = 90.0) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, "".join(self.stderr)
            return bool(self.stdout)

        until(ready, timeout_s)

    def get(self, url: str) -> Any:
        return httpx.get(url, timeout=10, trust_env=False).json()

    def status(self) -> dict[str, Any]:
        admin = self.get(f"{self.url}/health")["admin"]
        return {worker["seat"]: worker for worker in self.get(f"{admin}/status")["workers"]}

    def below(self) -> list[int]:
        return descendants(self.process.pid)

    def left_over(self, pids: list[int]) -> list[str]:
        """What of this run is still there."""
        left = [f"process {pid}" for pid in pids if alive(pid)]
        left += [f"file {path}" for path in self.tmp.iterdir()]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=0.5):
            left.append(f"port {self.port}")
        return left

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        """For fixtures: whatever the test did, nothing stays."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        until(lambda: not list(self.tmp.iterdir()), 15)
        shutil.rmtree(self.tmp)

    @staticmethod
    def _read(lines: list[str], stream: Any) -> None:
        with stream:
            lines.extend(stream)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny(directory, seed=3)
    return directory


@pytest.fixture
def serve(tiny: Path) -> Iterator[Callable[..., Serve]]:
    started: list[Serve] = []

    def start(*flags: str, env: dict[str, str] | None = None) -> Serve:
        started.append(Serve(tiny, *flags, env=env))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture(scope="module")
def fleet(tiny: Path) -> Iterator[Serve]:
    """One ready fleet for all tests of a module; the last of them may end it."""
    started = Serve(tiny)
    try:
        started.wait_ready()
        yield started
    finally:
        started.end()
