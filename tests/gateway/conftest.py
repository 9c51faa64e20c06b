"""A whole gateway on loopback with a scripted attention worker and a scripted controller behind it."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from until import until

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.gateway.config import GatewayConfig
from expertfleet.gateway.events.served_model import Model
from expertfleet.gateway.server import GatewayServer
from expertfleet.proto.admission import ADMITTED
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import generate_pb2 as pb
from expertfleet.proto.generated import generate_pb2_grpc as rpc
from expertfleet.proto.generated import membership_pb2 as mpb
from expertfleet.proto.generated import membership_pb2_grpc as mrpc

Script = Callable[[pb.GenerateRequest], AsyncIterator[pb.GenerateReply]]
NAME = "moonshotai/Kimi-K2-Thinking"


class FakeWorker(rpc.AttentionWorkerServicer):
    """Answers Generate by its script and remembers what it was asked."""

    def __init__(self, seat: str, numerics: str = "fake-1") -> None:
        self.seat, self.numerics, self.state, self.address = seat, numerics, "ready", ""
        self.max_model_len = 0
        self.admits = False  # whether it says at once that it has taken a sequence, as real ones do
        self.requests: list[pb.GenerateRequest] = []
        self.num_running = 0
        self.num_cancelled = 0
        self.script: Script = say([])
        self.server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self.server = grpc.aio.server()
        rpc.add_AttentionWorkerServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateReply]:
        self.requests.append(request)
        self.num_running += 1
        is_first, ended = True, False
        if self.admits:
            await context.send_initial_metadata(((ADMITTED, self.seat),))
        try:
            async for reply in self.script(request):
                if is_first:
                    reply.MergeFrom(pb.GenerateReply(seat=self.seat, numerics=self.numerics, num_cached_tokens=3))
                is_first = False
                yield reply
            ended = True
        except FleetError as error:
            ended = True
            await context.abort(error.status, error.details)
        finally:
            self.num_cancelled += not ended
            self.num_running -= 1

    async def Describe(self, request: Any, context: Any) -> mpb.WorkerReport:
        return mpb.WorkerReport(seat=self.seat, state=self.state, numerics=self.numerics)


def say(
    token_ids: Sequence[int], finish: str = "stop", *, step: int = 1, wait_s: float = 0.0, logprobs: float = -0.5
) -> Script:
    """Generates these ids as a real worker would: resumed after earlier ones, ended by stop ids and max_tokens."""

    async def script(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateReply]:
        planned = list(token_ids)[: request.max_tokens]
        reason = finish if len(planned) == len(token_ids) else "length"
        ends = [index for index, id_ in enumerate(planned) if id_ in request.stop_token_ids]
        if ends:
            planned, reason = planned[: ends[0] + 1], "stop"
        rest = planned[len(request.generated_ids) :]
        for start in range(0, len(rest), step):
            if wait_s:
                await asyncio.sleep(wait_s)
            piece = rest[start : start + step]
            yield pb.GenerateReply(token_ids=piece, logprobs=entries(request, piece, logprobs))
        yield pb.GenerateReply(finish_reason=reason)

    return script


def entries(request: pb.GenerateRequest, ids: Sequence[int], value: float) -> list[pb.TokenLogprobs]:
    if not request.logprobs:
        return []
    top = range(request.num_top_logprobs)
    return [pb.TokenLogprobs(logprob=value, top_ids=top, top_logprobs=[value - i for i in top]) for _ in ids]


def fail(code: Code, message: str = "scripted", *, after: Sequence[int] = ()) -> Script:
    async def script(request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateReply]:
        if after:
            yield pb.GenerateReply(token_ids=after, logprobs=entries(request, after, -0.5))
            await asyncio.sleep(0.05)
        raise FleetError(code, message)

    return script


class FakeController(mrpc.MembershipServicer):
    def __init__(self) -> None:
        self.epoch = mpb.Epoch()
        self.registered: list[mpb.RegisterRequest] = []
        self.reports: list[mpb.WorkerReport] = []
        self.missing = ""
        self.wanted_expert_shards = 0
        self.coverage = 0.0
        self.wishes: list[mpb.ScaleRequest] = []
        self.refusal: FleetError | None = None
        self.workers: list[mpb.WorkerStatus] = []
        self.address = ""
        self.server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self.server = grpc.aio.server()
        mrpc.add_MembershipServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    def publish(self, workers: Sequence[FakeWorker], *, complete: bool = True) -> None:
        self.epoch = mpb.Epoch(
            id=mpb.EpochId(incarnation=1, counter=self.epoch.id.counter + 1),
            attention=[
                mpb.Member(seat=w.seat, address=w.address, numerics=w.numerics, max_model_len=w.max_model_len)
                for w in workers
            ],
            complete=complete,
        )

    async def Register(self, request: Any, context: Any) -> mpb.RegisterReply:
        self.registered.append(request)
        return mpb.RegisterReply(lease_id=1, lease_s=5)

    async def Report(self, request: mpb.ReportRequest, context: Any) -> mpb.ReportReply:
        self.reports.append(request.report)
        return mpb.ReportReply(known=True)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[mpb.Epoch]:
        sent = 0
        while True:
            if self.epoch.id.counter > sent:
                sent = self.epoch.id.counter
                yield self.epoch
            await asyncio.sleep(0.01)

    async def Scale(self, request: mpb.ScaleRequest, context: Any) -> mpb.ScaleReply:
        if self.refusal is not None:
            await context.abort(self.refusal.status, self.refusal.details)
        self.wishes.append(request)
        return mpb.ScaleReply(
            expert_seats=["expert-0", "expert-1"], attention_seats=["attention-0"], replicas=request.replicas
        )

    async def Status(self, request: Any, context: Any) -> mpb.FleetStatus:
        return mpb.FleetStatus(
            workers=self.workers,
            epoch=self.epoch.id,
            ready=self.epoch.complete,
            missing=self.missing,
            wanted_expert_shards=self.wanted_expert_shards,
            coverage=self.coverage,
        )


class Rig:
    """The event loop of the fakes and the gateway runs in a thread, so that tests are ordinary blocking clients."""

    def __init__(self, model_dir: Path, num_workers: int = 1, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.controller = FakeController()
        self.workers = [FakeWorker(f"attention-{index}") for index in range(num_workers)]
        self.gateway: GatewayServer
        self.run(self._start(model_dir, settings))
        self.client = httpx.Client(base_url=self.gateway.url, timeout=20)
        self.admin = httpx.Client(base_url=self.gateway.admin_url, timeout=20)
        self.text = Text(self.gateway.service.model)
        self.reset()

    @property
    def worker(self) -> FakeWorker:
        return self.workers[0]

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=30)

    def start(self, work: Any) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def reset(self) -> None:
        for worker in self.workers:
            worker.script, worker.state = say(self.text.ids("hello<|im_end|>")), "ready"
            worker.max_model_len = 0
            worker.admits = False
            worker.requests.clear()
            worker.num_cancelled = 0
        self.controller.publish(self.workers)
        self.controller.missing = ""
        self.controller.wishes.clear()
        self.controller.refusal = None
        fleet = self.gateway.service.fleet
        until(lambda: fleet.epoch is not None and fleet.epoch.id.counter == self.controller.epoch.id.counter, 5.0)

    def says(self, text: str, **how: Any) -> None:
        for worker in self.workers:
            worker.script = say(self.text.ids(text), **how)

    def chat(self, content: str = "hi", **fields: Any) -> httpx.Response:
        body = {"model": NAME, "messages": [{"role": "user", "content": content}]} | fields
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, prompt: Any = "once", **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": NAME, "prompt": prompt} | fields)

    def close(self) -> None:
        self.client.close()
        self.admin.close()
        self.run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=10)
        self.loop.close()

    async def _start(self, model_dir: Path, settings: dict[str, Any]) -> None:
        await self.controller.start()
        for worker in self.workers:
            await worker.start()
        defaults: dict[str, Any] = {
            "port": 0,
            "served_model_name": (NAME, "tiny"),
            "max_model_len": 4096,
            "drain_s": 5.0,
            "worker_wait_s": 0.0,
        }
        config = GatewayConfig(model=model_dir, controller=self.controller.address, **(defaults | settings))
        self.gateway = GatewayServer(config)
        await self.gateway.start()

    async def _stop(self) -> None:
        await self.gateway.stop(0.2)
        for server in (self.controller.server, *(worker.server for worker in self.workers)):
            assert server is not None
            await server.stop(None)


class Text:
    """Text with marker names to token ids, for scripts; specials only where this test file spells them."""

    def __init__(self, model: Model) -> None:
        self._tokenizer = model.tokenizer
        self._names = re.compile("(" + "|".join(map(re.escape, model.tokenizer.special)) + ")")

    def ids(self, text: str) -> list[int]:
        special = self._tokenizer.special
        parts = self._names.split(text)
        return [
            id_ for part in parts for id_ in ([special[part]] if part in special else self._tokenizer.encode_text(part))
        ]

    def text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode_bytes(ids).decode()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gateway") / "tiny"
    make_tiny(directory, layers=2, experts=8)
    return directory


@pytest.fixture(scope="session")
def model(model_dir: Path) -> Model:
    return Model.load(model_dir, (NAME,), 4096)


@pytest.fixture(scope="session")
def text(model: Model) -> Text:
    return Text(model)


@pytest.fixture(scope="module")
def shared_rig(model_dir: Path) -> Iterator[Rig]:
    rig = Rig(model_dir, keep_alive_s=0.15, first_chunk_s=0.2)
    yield rig
    rig.close()


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    shared_rig.reset()
    return shared_rig


@pytest.fixture(scope="module")
def shared_pair(model_dir: Path) -> Iterator[Rig]:
    rig = Rig(model_dir, num_workers=3, keep_alive_s=0.15, first_chunk_s=0.2)
    yield rig
    rig.close()


@pytest.fixture
def trio(shared_pair: Rig) -> Rig:
    """Three workers of one numerics class."""
    for worker in shared_pair.workers:
        worker.numerics = "fake-1"
    shared_pair.reset()
    return shared_pair


@pytest.fixture(scope="session")
def scripts() -> Any:
    """``scripts.say`` and ``scripts.fail``, as test files cannot import this one."""

    class Scripts:
        say = staticmethod(say)
        fail = staticmethod(fail)
        until = staticmethod(until)
        Rig = Rig
        name = NAME

    return Scripts
