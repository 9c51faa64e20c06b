"""The real shard process behind its port: what it holds it answers, everything else is refused by type."""

import asyncio
import dataclasses
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
import torch

from expertfleet.attention_workers.config import AttentionConfig
from expertfleet.attention_workers.server import AttentionServer
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.server import ExpertServer
from expertfleet.kernels.grouped_gemm import grouped_gemm_reference
from expertfleet.membership.epoch import ExpertSet
from expertfleet.proto.codec import (
    Dispatch,
    DispatchShm,
    Error,
    Hello,
    Result,
    ResultShm,
    decode,
    encode_cancel,
    encode_dispatch,
    encode_dispatch_shm,
    encode_hello,
    encode_result,
    short_fingerprint,
)
from expertfleet.proto.errors import Code, FleetError, from_call
from expertfleet.proto.generated import expert_pb2, expert_pb2_grpc, membership_pb2
from expertfleet.proto.rows import Rows
from expertfleet.transport.lane import PATH, channel_options
from expertfleet.transport.local_lane import MAX_MESSAGE_BYTES
from expertfleet.transport.shared_memory import Arena

T = TypeVar("T")
LIMIT = 1 << 20
ANSWER_LIMIT = 16 * LIMIT  # what is read from shared memory in one piece may be larger than any frame
HELD = "0-31"
FIELDS = [field.name for field in dataclasses.fields(Dispatch)]


class LocalStream:
    """A local lane that is written and read like a gRPC stream: rows of frames go to shared memory, results come from it."""

    def __init__(self, address: str) -> None:
        self._name = f"\0expertfleet-{os.getuid()}-lane-{address.rpartition(':')[2]}"
        self._socket: socket.socket | None = None
        self._results: dict[int, torch.Tensor] = {}

    async def write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.connect(self._name)
            self.arena = Arena()
            socket.send_fds(self._socket, [data], [self.arena.file])
            self._socket.setblocking(False)
            return
        try:
            frame = decode(data, LIMIT)
        except FleetError:  # it is not ours to be understood
            frame = None
        if isinstance(frame, Dispatch):
            data = encode_dispatch_shm(self.place(frame))
        await loop.sock_sendall(self._socket, data)

    async def read(self) -> bytes:
        assert self._socket is not None
        data = await asyncio.get_running_loop().sock_recv(self._socket, 1 << 18)
        if not data:
            raise ConnectionResetError
        frame = decode(data, LIMIT)
        if isinstance(frame, ResultShm):
            rows = self._results[frame.frame_id].part(frame.first_route, frame.count)
            return encode_result(frame.frame_id, frame.first_route, frame.num_routes, rows)
        return data

    def place(self, frame: Dispatch, **changes: Any) -> DispatchShm:
        R, H, dtype = frame.rows.count, frame.rows.width, frame.rows.dtype
        N = len(frame.route_rows)
        rows_at, results_at = (self.arena.allocate(count * H * dtype.itemsize) for count in (R, N))
        self.arena.put(rows_at, frame.rows)
        self._results[frame.frame_id] = self.arena.rows(results_at, dtype, N, H)
        fields = {name: getattr(frame, name) for name in FIELDS if name != "rows"}
        placed = {"dtype": dtype, "num_rows": R, "hidden": H, "rows_at": rows_at, "results_at": results_at}
        return DispatchShm(**(fields | placed | changes))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self.arena.close()


class Client:
    """A raw lane to one shard."""

    def __init__(self, address: str, checkpoint: Checkpoint, transport: str = "grpc") -> None:
        self.channel = grpc.aio.insecure_channel(address, options=channel_options(LIMIT))
        self.stream: Any
        if transport == "grpc":
            self.stream = self.channel.stream_stream(PATH)()
        else:
            self.stream = LocalStream(address)
        self.checkpoint = checkpoint
        self.hello = Hello("test", checkpoint.fingerprint, "bfloat16", LIMIT)

    async def greet(self) -> None:
        await self.stream.write(encode_hello(self.hello))
        assert isinstance(decode(await self.stream.read(), LIMIT), Hello)

    def frame(self, frame_id: int = 5, **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "fingerprint": short_fingerprint(self.checkpoint.fingerprint),
            "epoch": (10, 10),
            "layer": 1,
            "priority": 0,
            "timeout_us": 10_000_000,
            "rows": torch.randn(3, self.checkpoint.config.hidden_size).bfloat16(),
            "route_rows": np.array([0, 1, 2, 0], dtype=np.int32),
            "route_experts": np.array([0, 5, 5, 31], dtype=np.int32),
        }
        fields |= changes
        fields["rows"] = Rows.of(fields["rows"])
        for name in ("route_rows", "route_experts"):
            fields[name] = fields[name].data
        return encode_dispatch(Dispatch(frame_id, **fields))

    async def ask(self, frame: bytes) -> Result | Error:
        await self.stream.write(frame)
        answer = decode(await asyncio.wait_for(self.stream.read(), 10), ANSWER_LIMIT)
        assert isinstance(answer, Result | Error)
        return answer


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(small_checkpoint)


@pytest.fixture(scope="module")
def shard(start_once: Callable[..., Any], small_checkpoint: Path) -> str:
    """One shard for the whole file."""
    flags = ("--model", small_checkpoint, "--experts", HELD, "--max-frame-mib", 1)
    address = str(start_once("expert_workers", *flags).address())
    asyncio.run(_wait_ready(address))
    return address


@pytest.fixture(params=["grpc", "local"])
def transport(request: pytest.FixtureRequest) -> str:
    """A lane's two kinds."""
    return str(request.param)


@pytest.fixture
def own_shard(start: Callable[..., Any], small_checkpoint: Path) -> str:
    """A shard whose state a test changes or counts."""
    address = str(start("expert_workers", "--model", small_checkpoint, "--experts", HELD).address())
    asyncio.run(_wait_ready(address))
    return address


async def broken(client: Client) -> FleetError:
    """Why the shard ended the lane."""
    if isinstance(client.stream, LocalStream):
        refusal = decode(await client.stream.read(), LIMIT)
        assert isinstance(refusal, Error)
        assert refusal.frame_id == 0
        with pytest.raises(ConnectionResetError):
            await client.stream.read()
        return FleetError(refusal.code, refusal.message)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.stream.read()
    return from_call(caught.value)


async def _wait_ready(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = expert_pb2_grpc.ExpertShardStub(channel)
        while (await stub.Describe(expert_pb2.DescribeRequest())).state != "ready":
            await asyncio.sleep(0.05)


async def close(client: Client) -> None:
    if isinstance(client.stream, LocalStream):
        client.stream.close()
    await client.channel.close()


def talk(
    shard: str, checkpoint: Checkpoint, conversation: Callable[[Client], Awaitable[T]], transport: str = "grpc"
) -> T:
    """Runs a conversation over a fresh, greeted lane."""

    async def run() -> T:
        client = Client(shard, checkpoint, transport)
        await client.greet()
        try:
            return await conversation(client)
        finally:
            await close(client)

    return asyncio.run(run())


def test_answers_what_it_holds(shard: str, checkpoint: Checkpoint, transport: str) -> None:
    rows = torch.randn(3, checkpoint.config.hidden_size).bfloat16()
    answer = talk(shard, checkpoint, lambda client: client.ask(client.frame(rows=rows)), transport)
    assert isinstance(answer, Result)
    experts = {
        expert: tuple((checkpoint.read(p), checkpoint.read(s)) for p, s in checkpoint.expert_names(1, expert))
        for expert in (0, 5, 31)
    }
    expected = grouped_gemm_reference(rows, torch.tensor([0, 1, 2, 0]), torch.tensor([0, 5, 5, 31]), experts)
    assert (answer.rows.tensor.double() - expected).norm() / expected.norm() < 8e-3


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"route_experts": np.array([0, 5, 32, 31], dtype=np.int32)}, Code.NOT_HELD),
        ({"route_experts": np.array([0, 5, -1, 31], dtype=np.int32)}, Code.NOT_HELD),
        ({"route_experts": np.array([0, 5, 10**6, 31], dtype=np.int32)}, Code.NOT_HELD),
        ({"layer": 0}, Code.NOT_HELD),
        ({"layer": 60000}, Code.NOT_HELD),
        ({"fingerprint": b"\x01" * 8}, Code.FOREIGN_CHECKPOINT),
        ({"rows": torch.zeros(3, 256)}, Code.WRONG_DTYPE),
        ({"rows": torch.zeros(3, 64).bfloat16()}, Code.BAD_FRAME),
        ({"timeout_us": 0}, Code.EXPIRED),
    ],
)
def test_what_does_not_fit_is_refused_by_type_and_the_lane_lives(
    shard: str, checkpoint: Checkpoint, transport: str, changes: dict[str, Any], code: Code
) -> None:
    async def conversation(client: Client) -> tuple[Result | Error, Result | Error]:
        return await client.ask(client.frame(7, **changes)), await client.ask(client.frame(8))

    refused, fine = talk(shard, checkpoint, conversation, transport)
    assert isinstance(refused, Error)
    assert (refused.frame_id, refused.code) == (7, code)
    assert refused.message
    assert isinstance(fine, Result)


def test_a_row_that_is_not_finite_is_answered_beside_the_others(
    shard: str, checkpoint: Checkpoint, transport: str
) -> None:
    rows = torch.randn(3, checkpoint.config.hidden_size).bfloat16()
    spoiled = rows.clone()
    spoiled[1, 7] = float("nan")

    async def conversation(client: Client) -> tuple[Result | Error, Result | Error]:
        return await client.ask(client.frame(7, rows=rows)), await client.ask(client.frame(8, rows=spoiled))

    clean, mixed = talk(shard, checkpoint, conversation, transport)
    assert isinstance(clean, Result)
    assert isinstance(mixed, Result)
    assert torch.isfinite(mixed.rows.tensor).all(1).tolist() == [True, False, True, True]
    assert torch.equal(mixed.rows.tensor[[0, 2, 3]], clean.rows.tensor[[0, 2, 3]])


def test_truncated_and_alien_frames_are_refused(shard: str, checkpoint: Checkpoint, transport: str) -> None:
    async def conversation(client: Client) -> list[Result | Error]:
        frame = client.frame(7)
        return [await client.ask(data) for data in (frame[:-1], frame + b"\0", b"hello", encode_hello(client.hello))]

    answers = talk(shard, checkpoint, conversation, transport)
    assert [answer.code for answer in answers if isinstance(answer, Error)] == [Code.BAD_FRAME] * 4


def test_an_oversized_frame_is_refused(shard: str, checkpoint: Checkpoint) -> None:
    async def conversation(client: Client) -> Result | Error:
        return await client.ask(client.frame(9, rows=torch.zeros(3000, 256).bfloat16()))

    answer = talk(shard, checkpoint, conversation)
    assert isinstance(answer, Error)
    assert answer.code is Code.FRAME_TOO_LARGE


@pytest.mark.parametrize(
    "changes", [{"rows_at": 1 << 60}, {"results_at": 1 << 40}, {"rows_at": 1}, {"num_rows": 1 << 31}]
)
def test_rows_outside_the_shared_memory_are_refused_and_the_lane_lives(
    shard: str, checkpoint: Checkpoint, changes: dict[str, int]
) -> None:
    async def conversation(client: Client) -> tuple[Result | Error, Result | Error]:
        assert isinstance(client.stream, LocalStream)
        frame = decode(client.frame(7), LIMIT)
        assert isinstance(frame, Dispatch)
        return await client.ask(encode_dispatch_shm(client.stream.place(frame, **changes))), await client.ask(
            client.frame(8)
        )

    refused, fine = talk(shard, checkpoint, conversation, "local")
    assert isinstance(refused, Error)
    assert (refused.frame_id, refused.code) == (7, Code.BAD_FRAME)
    assert isinstance(fine, Result)


def test_a_message_too_large_for_a_local_lane_ends_it_by_type(shard: str, checkpoint: Checkpoint) -> None:
    async def conversation(client: Client) -> FleetError:
        await client.stream.write(bytes(MAX_MESSAGE_BYTES + 1))
        return await broken(client)

    assert talk(shard, checkpoint, conversation, "local").code is Code.FRAME_TOO_LARGE


def test_a_local_lane_needs_shared_memory(shard: str, checkpoint: Checkpoint) -> None:
    async def run() -> FleetError:
        client = Client(shard, checkpoint, "local")
        assert isinstance(client.stream, LocalStream)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bare:
            bare.connect(client.stream._name)
            bare.send(encode_hello(client.hello))
            refusal = decode(bare.recv(1 << 16), LIMIT)
        assert isinstance(refusal, Error)
        await close(client)
        return FleetError(refusal.code, refusal.message)

    error = asyncio.run(run())
    assert error.code is Code.BAD_FRAME
    assert "shared memory" in str(error)


def test_a_frame_beyond_the_transports_limit_ends_the_lane_in_the_transports_words(
    shard: str, checkpoint: Checkpoint
) -> None:
    async def conversation(client: Client) -> FleetError:
        await client.stream.write(client.frame(rows=torch.zeros(3, 256).bfloat16().repeat(2000, 1)))
        return await broken(client)

    error = talk(shard, checkpoint, conversation)
    assert error.code is Code.INTERNAL
    assert "RESOURCE_EXHAUSTED" in str(error)
    assert "larger than max" in str(error)


def test_an_epoch_below_the_minimum_is_stale_and_the_minimum_never_falls(
    own_shard: str, checkpoint: Checkpoint
) -> None:
    async def conversation(client: Client) -> list[Any]:
        stub = expert_pb2_grpc.ExpertShardStub(client.channel)
        raised = []
        for incarnation, counter in ((10, 11), (10, 3)):
            minimum = membership_pb2.EpochId(incarnation=incarnation, counter=counter)
            reply = await stub.RaiseMinEpoch(expert_pb2.RaiseMinEpochRequest(min_epoch=minimum))
            raised.append((reply.min_epoch.incarnation, reply.min_epoch.counter))
        stale = await client.ask(client.frame(1, epoch=(10, 10)))
        fresh = await client.ask(client.frame(2, epoch=(10, 11)))
        return [raised, stale, fresh]

    raised, stale, fresh = talk(own_shard, checkpoint, conversation)
    assert raised == [(10, 11), (10, 11)]
    assert isinstance(stale, Error)
    assert stale.code is Code.STALE_EPOCH
    assert isinstance(fresh, Result)


@pytest.mark.parametrize(
    ("change", "code"),
    [({"fingerprint": "cd" * 32}, Code.FOREIGN_CHECKPOINT), ({"dtype": "float32"}, Code.WRONG_DTYPE)],
)
def test_strangers_are_turned_away_at_the_greeting(
    shard: str, checkpoint: Checkpoint, transport: str, change: dict[str, str], code: Code
) -> None:
    async def run() -> FleetError:
        client = Client(shard, checkpoint, transport)
        hello = dataclasses.replace(client.hello, **change)
        await client.stream.write(encode_hello(hello))
        error = await broken(client)
        await close(client)
        return error

    assert asyncio.run(run()).code is code


def test_a_cancelled_frame_is_not_computed(shard: str, checkpoint: Checkpoint, transport: str) -> None:
    """Only a local lane says that it is over, because its memory is used again after that. All would take many slices of time."""

    async def conversation(client: Client) -> Result | Error:
        rows = torch.randn(1500, 256).bfloat16()
        routes = np.arange(12_000, dtype=np.int32) % 1500
        big = client.frame(1, rows=rows, route_rows=routes, route_experts=np.zeros_like(routes))
        await client.stream.write(big)
        await client.stream.write(encode_cancel(1))
        answer = await client.ask(client.frame(2))
        told = False
        while answer.frame_id == 1:
            if isinstance(answer, Error):
                assert answer.code is Code.CANCELLED
                told = True
            else:
                assert not told, "memory was written to after the frame was over"
                assert answer.first_route + answer.rows.count < len(routes), "every route was computed after all"
            answer = decode(await client.stream.read(), ANSWER_LIMIT)  # type: ignore[assignment]
        assert told == (transport == "local")
        return answer

    assert isinstance(talk(shard, checkpoint, conversation, transport), Result)


def test_describe_tells_what_is_held(own_shard: str, checkpoint: Checkpoint) -> None:
    async def conversation(client: Client) -> membership_pb2.WorkerReport:
        await client.ask(client.frame())
        report: membership_pb2.WorkerReport = await expert_pb2_grpc.ExpertShardStub(client.channel).Describe(
            expert_pb2.DescribeRequest()
        )
        return report

    report = talk(own_shard, checkpoint, conversation)
    config = checkpoint.config
    held = ExpertSet.from_proto(report.held)
    assert held.count == 32 * len(config.moe_layers)
    assert report.bytes_loaded == report.bytes_total == held.count * config.expert_bytes
    assert report.tokens == 4
    assert "cpu-native" in report.numerics
    assert report.fingerprint == checkpoint.fingerprint


def test_drain_answers_and_ends_the_process(start: Callable[..., Any], small_checkpoint: Path) -> None:
    process = start("expert_workers", "--model", small_checkpoint, "--experts", "0-3")
    address = process.address()

    async def drain() -> bool:
        await _wait_ready(address)
        async with grpc.aio.insecure_channel(address) as channel:
            stub = expert_pb2_grpc.ExpertShardStub(channel)
            return bool((await stub.Drain(membership_pb2.DrainRequest(timeout_s=5))).finished)

    assert asyncio.run(drain())
    assert process.popen.wait(10) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--experts", "0-64"], "names ids outside 0 to 63"),
        (["--experts", "x"], "neither a number nor a range"),
        (["--threads", "0"], "threads: 0 is not within 1 to 1024"),
        (["--backend", "magic"], "'magic' is not one of"),
        (["--port", "99999"], "port: 99999"),
    ],
)
def test_bad_settings_are_one_line(
    start: Callable[..., Any], small_checkpoint: Path, flags: list[str], message: str
) -> None:
    process = start("expert_workers", "--model", small_checkpoint, *flags)
    assert process.popen.wait(30) == 1
    lines = process.log.read_text().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.parametrize("role", [ExpertServer, AttentionServer])
def test_stopping_from_several_threads_ends_once_though_the_controller_is_away(
    role: Any, small_checkpoint: Path
) -> None:
    config = {ExpertServer: ExpertConfig, AttentionServer: AttentionConfig}[role]
    server = role(config(small_checkpoint, controller="127.0.0.1:1"))
    server.start()
    threads = [threading.Thread(target=server.stop, args=(0.0,), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    server.wait()
