import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from harness.driver import Driver

NUM_TOKENS = 12
WHERE = 5
PACE_S, GAP_S = 0.005, 0.6


class FakeApi:
    """Answers every chat with tokens of its seed; ``fault`` is what goes wrong with the token at ``WHERE``."""

    def __init__(self) -> None:
        self.fault = ""
        self.url = ""
        self.salts: list[str] = []
        self._answers: list[asyncio.Task[Any]] = []

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeApi"]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self
        await asyncio.gather(*self._answers)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answers.append(task)
        with contextlib.suppress(ConnectionError):
            await self._answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
        body = json.loads(await reader.readexactly(length) or "{}")
        if head.startswith("get /v1/models"):
            self._head(writer, 200)
            writer.write(json.dumps({"data": [{"id": "fake"}]}).encode())
        elif self.fault == "refused":
            self._head(writer, 503)
            writer.write(b'{"error": {"message": "no replica", "code": "no_replica"}}')
        else:
            self.salts.append(body["cache_salt"])
            self._head(writer, 200)
            async for frame in self._frames(body["seed"]):
                writer.write(f"data: {frame}\n\n".encode())
                await writer.drain()

    @staticmethod
    def _head(writer: asyncio.StreamWriter, status: int) -> None:
        writer.write(f"HTTP/1.1 {status} -\r\nconnection: close\r\n\r\n".encode())

    async def _frames(self, seed: int) -> AsyncIterator[str]:
        tokens = [10 * seed + index for index in range(NUM_TOKENS)]
        for index, token in enumerate(tokens):
            fault = self.fault if index == WHERE else ""
            await asyncio.sleep(GAP_S if fault == "gap" else PACE_S)
            if fault == "broken off":
                return
            if fault == "error frame":
                yield json.dumps({"error": {"message": "layer 3: no answer", "code": "deadline_exceeded"}})
                return
            if fault == "not JSON":
                yield "{"
            if fault == "lost chunk":
                continue
            is_last = index + 1 == NUM_TOKENS or fault == "early end"
            text = "other" if fault == "other text" else f"t{token} "
            yield self._chunk(-1 if fault == "other token" else token, text, is_last)
            if is_last:
                break
        if self.fault != "no usage":
            yield json.dumps({"choices": [], "usage": {"completion_tokens": index + 1}})
        if self.fault != "no end":
            yield "[DONE]"

    def _chunk(self, token: int, text: str, is_last: bool) -> str:
        reason = None
        if is_last and self.fault != "no reason":
            reason = "stop" if self.fault == "other reason" else "length"
        kind = "reasoning_content" if token % 2 else "content"
        choice = {"index": 0, "delta": {kind: text}, "token_ids": [token], "finish_reason": reason}
        return json.dumps({"choices": [choice], "usage": None})


@pytest.fixture
def fake_api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def drive_twice(fake_api: FakeApi) -> Callable[..., Any]:
    """``drive_twice(fault, streams)``: the recordings of a calm run and of one with the fault."""

    async def run(driver: Driver) -> Any:
        one, once = driver.new_run(), asyncio.Event()
        once.set()
        await one.drive(once)
        return one.recordings

    async def both(fault: str, streams: int) -> Any:
        async with fake_api.serving(), Driver(fake_api.url, [{"seed": 1 + seed} for seed in range(streams)]) as driver:
            calm = await run(driver)
            fake_api.fault = fault
            return calm, await run(driver)

    return lambda fault, streams=1: asyncio.run(both(fault, streams))
