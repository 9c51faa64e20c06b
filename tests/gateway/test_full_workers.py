"""Workers that have as many requests as they may have: others are asked, then the client is sent away, before the first byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
import torch

from expertfleet.attention_workers.engine import Engine
from expertfleet.attention_workers.kv_cache import PageAllocator
from expertfleet.attention_workers.prefill_budget import PrefillBudget
from expertfleet.attention_workers.scheduler import Chunk, Scheduler
from expertfleet.attention_workers.service import GenerateService, Limits
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import generate_pb2 as pb
from expertfleet.proto.generated import generate_pb2_grpc as rpc

TEXT = "one two three four five six<|im_end|>"


def bounded(ids: list[int], most: int, say: Callable[..., Any]) -> Any:
    """Takes so many sequences in all, and whatever a worker had taken before."""
    num_taken = 0

    async def script(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateReply]:
        nonlocal num_taken
        if not request.taken_before:
            if num_taken == most:
                await asyncio.sleep(0.1)
                raise FleetError(Code.OVERLOADED, f"{num_taken} requests, the limit is {most}")
            num_taken += 1
        async for reply in say(ids)(request):
            yield reply

    return script


@pytest.fixture(scope="module")
def patient(model_dir: Any, scripts: Any) -> Iterator[Any]:
    """Three workers, and a gateway that waits long for others."""
    rig = scripts.Rig(model_dir, num_workers=3, worker_wait_s=60.0, first_chunk_s=0.05, retry_after_s=3)
    yield rig
    rig.close()


def only(fleet: Any, scripts: Any, *workers: Any) -> None:
    """These are in the fleet from now on."""
    fleet.controller.publish(workers)
    addresses = {worker.address for worker in workers}
    scripts.until(lambda: {one.address for one in fleet.gateway.service.backend.workers} == addresses, 5.0)


@pytest.fixture
def fleet(patient: Any) -> Any:
    patient.reset()
    return patient


@pytest.mark.parametrize("full", [(0, 1), (1, 2), (0, 2)])
def test_a_request_finds_the_one_worker_that_has_room(fleet: Any, scripts: Any, full: tuple[int, int]) -> None:
    fleet.says(TEXT)
    for index in full:
        fleet.workers[index].script = scripts.fail(Code.OVERLOADED)
    assert [fleet.chat().status_code for _ in range(5)] == [200] * 5


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["chat", "complete"])
def test_when_all_are_full_the_client_is_sent_away_at_once(fleet: Any, scripts: Any, stream: bool, path: str) -> None:
    for worker in fleet.workers:
        worker.script = scripts.fail(Code.OVERLOADED, f"{worker.seat} has 9 requests, the limit is 9")
    response = getattr(fleet, path)(stream=stream)
    assert response.status_code == 503
    assert 3 <= int(response.headers["retry-after"]) <= 6
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("overloaded", "service_unavailable_error")
    assert "has 9 requests, the limit is 9" in error["message"]
    assert [len(worker.requests) for worker in fleet.workers] == [1, 1, 1]


def test_a_full_worker_beside_a_lost_one_is_not_waited_for(fleet: Any, scripts: Any) -> None:
    for worker, code in zip(fleet.workers, (Code.OVERLOADED, Code.LANE_LOST, Code.NOT_READY), strict=True):
        worker.script = scripts.fail(code)
    assert fleet.chat().json()["error"]["code"] == "overloaded"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("room", [0, 1, 3])
def test_of_several_choices_all_are_taken_or_none(fleet: Any, scripts: Any, stream: bool, room: int) -> None:
    only(fleet, scripts, fleet.worker)
    fleet.worker.script = bounded(fleet.text.ids(TEXT), room, scripts.say)
    response = fleet.chat(n=4, stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    assert "retry-after" in response.headers
    scripts.until(lambda: fleet.worker.num_running == 0, 5.0)


@pytest.mark.parametrize("stream", [True, False])
def test_of_several_prompts_all_are_taken_or_none(fleet: Any, scripts: Any, stream: bool) -> None:
    for worker in fleet.workers:
        worker.script = bounded(fleet.text.ids(TEXT), 1, scripts.say)
    response = fleet.complete(["a", "b"], n=2, stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    for worker in fleet.workers:
        worker.script = bounded(fleet.text.ids(TEXT), 2, scripts.say)
    assert fleet.complete(["a", "b", "c"], n=2, stream=stream).status_code == 200


def test_a_stream_is_refused_with_a_status_however_late_the_worker_says_so(fleet: Any, scripts: Any) -> None:
    async def late(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateReply]:
        await asyncio.sleep(0.5)  # ten times what a stream waits for its first token
        raise FleetError(Code.OVERLOADED, "no room")
        yield

    fleet.worker.script = late
    only(fleet, scripts, fleet.worker)
    assert fleet.chat(stream=True).status_code == 503


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_what_a_worker_had_taken_goes_on_where_there_is_no_room(fleet: Any, scripts: Any, num_tokens: int) -> None:
    ids = fleet.text.ids(TEXT)

    async def die(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateReply]:
        if num_tokens:
            yield pb.GenerateReply(token_ids=ids[:num_tokens])
        await asyncio.sleep(0.05)
        raise FleetError(Code.LANE_LOST, "died")

    first, *others = fleet.workers
    first.admits, first.script = True, die
    for worker in others:
        worker.script = bounded(ids, 0, scripts.say)
    response = fleet.chat(return_token_ids=True)
    assert len(first.requests) == 1
    assert response.status_code == 200
    assert response.json()["choices"][0]["token_ids"] == ids


def test_a_worker_that_was_full_takes_what_another_had_taken_and_lost(fleet: Any, scripts: Any) -> None:
    ids = fleet.text.ids(TEXT)
    fleet.says(TEXT)
    full, dying, _ = fleet.workers
    full.script = bounded(ids, 0, scripts.say)
    dying.admits, dying.script = True, scripts.fail(Code.LANE_LOST)
    only(fleet, scripts, full, dying)
    backend = fleet.gateway.service.backend
    (busy,) = (worker for worker in backend.workers if worker.seat == dying.seat)
    with backend.running(busy, object(), 1):  # so the full one is asked first
        response = fleet.chat(return_token_ids=True)
    assert response.json()["choices"][0]["token_ids"] == ids
    assert [request.taken_before for request in full.requests] == [False, True]


class RealWorker:
    """An attention worker's own service and engine; its next token is the last one plus one, its steps wait for ``open``."""

    seat, numerics, max_model_len = "attention-0", "fake-1", 4096

    def __init__(self, max_open: int, eos: int) -> None:
        self.pages = PageAllocator(64)
        self.open = False
        self._eos = eos
        self.engine = Engine(Scheduler(self.pages, 4, 512), self._forward, PrefillBudget(0.1, 512), 1, 1)
        self.service = GenerateService(
            self.seat, self.engine, Limits(1 << 30, 4096, max_open), lambda: "fake-1", pb.DescribeWorkerRequest, _no_drain
        )  # fmt: skip

    async def start(self) -> None:
        self.server = grpc.aio.server()
        rpc.add_AttentionWorkerServicer_to_server(self.service, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()
        self.engine.start()

    async def stop(self) -> None:
        self.open = True
        await self.server.stop(None)
        await asyncio.to_thread(self.engine.stop)

    async def _forward(self, chunks: list[Chunk]) -> torch.Tensor:
        await _Open(self)
        logits = torch.zeros(sum(chunk.samples for chunk in chunks), self._eos + 1)
        logits[:, self._eos] = 50.0
        return logits


class _Open:
    def __init__(self, worker: RealWorker) -> None:
        self._worker = worker

    def __await__(self) -> Any:
        while not self._worker.open:
            yield self

    def when_done(self, call: Callable[[], None]) -> None:
        self._worker.engine.reactor.call_later(0.01, call)


async def _no_drain(seconds: float) -> bool:
    return True


async def ask(address: tuple[str, int], body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    """Status, headers and body, with less work than a real client: a thousand share this processor with the gateway."""
    reader, writer = await asyncio.open_connection(*address)
    data = json.dumps(body).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
    head, _, text = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    first, *lines = head.split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), text


@pytest.fixture
def real(fleet: Any, scripts: Any) -> Iterator[RealWorker]:
    worker = RealWorker(10, fleet.text.ids("<|im_end|>")[0])
    fleet.run(worker.start())
    only(fleet, scripts, worker)
    yield worker
    fleet.run(worker.stop())


@pytest.mark.parametrize("stream", [True, False])
def test_of_a_thousand_requests_at_once_ten_are_answered_and_the_others_sent_away(
    fleet: Any, real: RealWorker, scripts: Any, stream: bool
) -> None:
    async def ask_all() -> list[tuple[int, dict[str, str], str]]:
        asked = [asyncio.create_task(ask(fleet.gateway.service.address, body)) for _ in range(1000)]
        while real.service.num_refused < 990:
            await asyncio.sleep(0.01)
        assert real.service.num_open == 10
        real.open = True
        return await asyncio.gather(*asked)

    body = {"model": scripts.name, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    responses = asyncio.run(ask_all())
    assert sorted(status for status, _, _ in responses) == [200] * 10 + [503] * 990
    for status, headers, text in responses:
        if status == 503:
            assert int(headers["retry-after"]) >= 3
            assert json.loads(text)["error"]["code"] == "overloaded"
        elif stream:
            *_, last, done = [line for line in text.split("\n\n") if line]
            assert (json.loads(last[6:])["choices"][0]["finish_reason"], done) == ("stop", "data: [DONE]")
        else:
            assert json.loads(text)["choices"][0]["finish_reason"] == "stop"
    scripts.until(lambda: real.service.num_open == 0 and real.pages.num_free == 64, 5.0)
    assert fleet.chat().status_code == 200, "there is room again"


def test_clients_that_go_make_room(fleet: Any, real: RealWorker, scripts: Any) -> None:
    async def ask_and_go() -> None:
        async with httpx.AsyncClient(base_url=fleet.gateway.url, timeout=30) as client:
            asked = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(10)]
            while real.service.num_open < 10:
                await asyncio.sleep(0.01)
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 503
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    body = {"model": scripts.name, "messages": [{"role": "user", "content": "hi"}]}
    asyncio.run(ask_and_go())
    scripts.until(lambda: real.service.num_open == 0, 5.0)
    real.open = True
    assert fleet.chat(n=8).status_code == 200
