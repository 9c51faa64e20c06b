"""A fleet under test: ``expertfleet serve`` in a temporary folder of its own, its status, and the processes behind its seats.

Knows nothing of loads and steps.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from expertfleet.cluster.ray.process_reaper import alive, descendants

from .plan import HEAD

_END_S = 60.0
_ANSWER_S, _FIRST_ANSWER_S = 2.0, 30.0
_LAST_LINES = 2
_NO_MORE: Mapping[str, str] = {}


class FleetError(Exception):
    """The fleet under test cannot be used; one line."""


class Observed:
    """A fleet as both kinds show themselves: an API, and an admin port that tells their status."""

    def __init__(self) -> None:
        self.url = ""
        self._admin = ""
        self._client = httpx.AsyncClient(trust_env=False, timeout=_ANSWER_S)

    async def find_admin(self) -> None:
        try:
            self._admin = (await self._client.get(f"{self.url}/health", timeout=_FIRST_ANSWER_S)).json()["admin"]
        except httpx.TransportError as error:
            raise FleetError(f"{self.url}/health: {str(error) or type(error).__name__}") from error

    async def status(self) -> dict[str, Any] | None:
        """What the admin port says; None while nothing answers there."""
        try:
            reply = await self._client.get(f"{self._admin}/status")
        except httpx.TransportError:
            return None
        return reply.json() if reply.status_code == 200 else None

    async def pid(self, target: str) -> int:
        """Of the process that has the seat now, or of Ray's head."""
        found = (
            self.head() if target == HEAD else next((one["pid"] for one in seats(await self.status(), target)), None)
        )
        if found is None or not alive(found):
            raise FleetError(f"{target} has no running process")
        return int(found)

    def head(self) -> int | None:
        """The pid of Ray's head while it runs."""
        return None

    async def command(self, *arguments: str) -> None:
        """Runs ``expertfleet …`` against this fleet. Raises FleetError with what it said when it fails."""
        words = ("-m", "expertfleet.cluster", *arguments, "--url", self.url)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=pipe, stderr=pipe)
        _, said = await process.communicate()
        if process.returncode:
            told = " ".join(said.decode(errors="replace").split())
            raise FleetError(f"expertfleet {' '.join(arguments)} ended with status {process.returncode}: {told}")

    async def close(self) -> None:
        await self._client.aclose()


class Fleet(Observed):
    """On this machine, as people start it."""

    def __init__(self, model: Path, flags: tuple[str, ...], tmp: Path, environ: Mapping[str, str] = _NO_MORE) -> None:
        super().__init__()
        self._tmp = tmp
        self._process = subprocess.Popen(
            [sys.executable, "-m", "expertfleet.cluster", "serve", str(model), "--port=0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean_environment(), "TMPDIR": str(tmp), **environ},
            start_new_session=True,
        )
        self._said: dict[str, list[str]] = {"stdout": [], "stderr": []}
        for name, lines in self._said.items():
            threading.Thread(target=self._read, args=(getattr(self._process, name), lines), daemon=True).start()

    async def wait_ready(self, within_s: float) -> None:
        give_up = time.monotonic() + within_s
        while not self._said["stdout"]:
            if self._process.poll() is not None:
                raise FleetError(f"serve ended with status {self._process.returncode}: {self.last_lines()}")
            if time.monotonic() > give_up:
                raise FleetError(f"serve was not ready within {within_s:g} s: {self.last_lines()}")
            await asyncio.sleep(0.05)
        self.url = self._said["stdout"][0].removeprefix("ready ").strip()
        await self.find_admin()

    def head(self) -> int | None:
        return named_below(self._process.pid, HEAD)

    def last_lines(self) -> str:
        return " | ".join(line.strip() for line in self._said["stderr"][-_LAST_LINES:])

    async def end(self) -> list[str]:
        """What is wrong with the fleet's end after SIGTERM: its exit status, and what is left of it."""
        pids = descendants(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            status = await asyncio.to_thread(self._process.wait, _END_S)
        except subprocess.TimeoutExpired:
            return [f"serve had not ended {_END_S:g} s after SIGTERM: {self.last_lines()}"]
        wrong = [f"serve ended with status {status}: {self.last_lines()}"] if status else []
        wrong += [f"process {pid} was left" for pid in pids if alive(pid)]
        return wrong + [f"{path} was left" for path in self._tmp.iterdir()]

    async def close(self) -> None:
        """Whatever happened, nothing stays: the guard clears up after a killed ``serve``."""
        await super().close()
        if self._process.poll() is None:
            self._process.kill()
        await asyncio.to_thread(self._process.wait, _END_S)
        give_up = time.monotonic() + _END_S
        while list(self._tmp.iterdir()) and time.monotonic() < give_up:
            await asyncio.sleep(0.1)

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        with stream:
            lines.extend(stream)


def seats(status: dict[str, Any] | None, seat: str = "") -> list[dict[str, Any]]:
    """The workers of a status, or the one at ``seat``."""
    workers = status["workers"] if status is not None else []
    return [worker for worker in workers if seat in ("", worker["seat"])]


def picture(status: dict[str, Any] | None) -> str:
    """In words, for an error."""
    if status is None:
        return "no status"
    states = ", ".join(f"{worker['seat']} {worker['state']} (pid {worker['pid']})" for worker in seats(status))
    return f"{status.get('missing') or ('settled' if status['settled'] else 'not settled')}; {states}"


def clean_environment() -> dict[str, str]:
    """Without settings for another fleet."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EXPERTFLEET_"))}


def named_below(root: int, name: str) -> int | None:
    """The pid of the program of that name below ``root``."""
    return next((pid for pid in descendants(root) if Path(_command(pid)).name == name), None)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.fsdecode(Path("/proc", str(pid), "cmdline").read_bytes()).split("\0")[0]
    return ""
