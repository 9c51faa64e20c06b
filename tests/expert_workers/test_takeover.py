"""Live shards without files of their own: what they load comes from their peers, and is the same to the last bit."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from expertfleet.checkpoint.checkpoint_headers import Outline
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.cluster.commands.resource_plan import fleet_shape
from expertfleet.cluster.controller.controller import Controller
from expertfleet.cluster.controller.desired_state import DesiredState
from expertfleet.expert_workers.expert_stream import from_pieces
from expertfleet.membership.client import MembershipClient
from expertfleet.membership.epoch import NO_EPOCH, Epoch, EpochId, ExpertSet, Member
from expertfleet.membership.lease_client import LeaseClient
from expertfleet.membership.watch import EpochWatch
from expertfleet.proto.codec import Hello
from expertfleet.proto.errors import Code, from_call
from expertfleet.proto.generated import expert_pb2, expert_pb2_grpc
from expertfleet.proto.generated import membership_pb2 as pb
from expertfleet.router.router import Router
from expertfleet.transport.io_thread import IoThread
from expertfleet.transport.reactor import Reactor

TOKEN = "a token of these tests alone"


class Head:
    """The controller, and an attention worker that asks nothing but follows epochs."""

    def __init__(self, model: Path, num_shards: int, replicas: float) -> None:
        self.io = IoThread("test-io")
        self.checkpoint = Checkpoint.open(model)
        shape = fleet_shape(self.checkpoint, "bfloat16")
        wanted = DesiredState.first(1, num_shards, replicas)
        self.controller = Controller(shape, wanted, outline=Outline(model))
        self.io.submit(self.controller.start())
        self.address = self.controller.address
        self.epoch = NO_EPOCH
        self.keeper = LeaseClient(self.address, "attention-0")
        self.io.submit(
            self.keeper.register("127.0.0.1:1", os.getpid(), "here", self.checkpoint.fingerprint, "bfloat16")
        )
        for work in (self.keeper.keep(self.report), EpochWatch(self.address, "attention-0").run(self.on_epoch)):
            self.io.spawn(work)
        self.client = MembershipClient(self.address)

    def report(self) -> pb.WorkerReport:
        return pb.WorkerReport(seat="attention-0", state="ready", epoch=self.epoch.to_proto())

    def on_epoch(self, epoch: Epoch) -> None:
        self.epoch = epoch.id

    def shard(self, seat: str) -> pb.WorkerStatus:
        return next(worker for worker in self.client.status().workers if worker.seat == seat)

    def wait_holding(self, seats: list[str], each: int) -> None:
        """Until each of them serves so many experts."""

        def holding() -> bool:
            workers = [self.shard(seat) for seat in seats]
            assert not [worker.report.error for worker in workers if worker.state == "failed"]
            return all(
                worker.state == "ready" and ExpertSet.from_proto(worker.report.held).count == each for worker in workers
            )

        give_up = time.monotonic() + 120
        while not holding():
            assert time.monotonic() < give_up, self.client.status()
            time.sleep(0.1)

    def stop(self) -> None:
        self.client.__exit__(None, None, None)
        self.io.submit(self.keeper.close())
        self.io.submit(self.controller.stop())
        self.io.stop()


@pytest.fixture
def head(small_checkpoint: Path) -> Iterator[Callable[..., Head]]:
    made: list[Head] = []

    def make(num_shards: int, replicas: float) -> Head:
        made.append(Head(small_checkpoint, num_shards, replicas))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def bare(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A folder with the configuration and the index, and not one weight."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors.index.json"):
        shutil.copy(small_checkpoint / name, folder / name)
    return folder


def answer(worker: pb.WorkerStatus, checkpoint: Checkpoint) -> torch.Tensor:
    """What a shard that holds everything makes of the same rows, over its lane."""
    config, report = checkpoint.config, worker.report
    io, reactor = IoThread("router-io"), Reactor()
    router = Router(io, reactor, Hello("attention-1", checkpoint.fingerprint, "bfloat16", 1 << 20), 60.0)
    member = Member(worker.seat, worker.address, report.numerics, ExpertSet.from_proto(report.held))
    router.set_epoch(Epoch(EpochId(1 << 60, 1), checkpoint.fingerprint, "bfloat16", (member,), (), complete=True))
    assert reactor.run(lambda: router.usable, 60)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(24, config.hidden_size, generator=generator).bfloat16()
    weights = torch.rand(24, config.top_k, generator=generator)
    ids = torch.stack([torch.randperm(config.num_experts, generator=generator)[: config.top_k] for _ in range(24)])
    found = []
    for layer in config.moe_layers:
        with closing(router.dispatch(layer, x, ids, weights)) as dispatch:
            assert reactor.run(lambda: dispatch.done, 60)
            assert dispatch.error is None
            found.append(dispatch.combined())
    router.close()
    io.stop()
    return torch.stack(found)


def read_expert(address: str, checkpoint: Checkpoint, layer: int, expert: int, **changes: Any) -> list[torch.Tensor]:
    async def read() -> list[expert_pb2.ExpertPiece]:
        async with grpc.aio.insecure_channel(address) as channel:
            fields = {"fingerprint": checkpoint.fingerprint, "layer": layer, "expert": expert} | changes
            stub = expert_pb2_grpc.ExpertShardStub(channel)
            return [piece async for piece in stub.ReadExpert(expert_pb2.ReadExpertRequest(**fields))]

    three = from_pieces(checkpoint.config, layer, expert, asyncio.run(read()))
    return [part for projection in three for part in projection]


def test_a_shard_without_files_loads_from_a_peer_and_answers_with_the_same_bits(
    head: Callable[..., Head], start: Callable[..., Any], small_checkpoint: Path, bare: Path
) -> None:
    fleet = head(2, 2.0)
    total = int(fleet_shape(fleet.checkpoint, "bfloat16").all_experts().sum())
    flags = ("--controller", fleet.address, "--memory-gib", 1, "--drain-s", 1)
    without = start("expert_workers", "--model", bare, "--seat", "expert-1", *flags)
    start("expert_workers", "--model", small_checkpoint, "--seat", "expert-0", *flags)
    fleet.wait_holding(["expert-0", "expert-1"], total)
    first, second = fleet.shard("expert-0"), fleet.shard("expert-1")
    assert second.report.metrics["expert_loads_peer_total"] == total
    assert second.report.metrics["expert_load_bytes_peer_total"] == second.report.bytes_loaded
    assert first.report.metrics["expert_loads_local_total"] == total
    while fleet.shard("expert-0").report.metrics["experts_given_total"] < total:
        time.sleep(0.1)  # its next report says so
    assert first.report.fingerprint == second.report.fingerprint == fleet.checkpoint.fingerprint
    assert torch.equal(answer(first, fleet.checkpoint), answer(second, fleet.checkpoint))
    for layer, expert in ((1, 0), (2, 17)):
        names = [name for pair in fleet.checkpoint.expert_names(layer, expert) for name in pair]
        given = read_expert(second.address, fleet.checkpoint, layer, expert)
        assert all(torch.equal(part, fleet.checkpoint.read(n)) for part, n in zip(given, names, strict=True))
    log = without.log.read_text()
    assert f"{bare} lacks" in log
    assert "a peer gives it" in log


def test_shards_without_files_take_over_what_a_killed_one_held(
    head: Callable[..., Head], start: Callable[..., Any], small_checkpoint: Path, bare: Path
) -> None:
    fleet = head(3, 2.0)
    total = int(fleet_shape(fleet.checkpoint, "bfloat16").all_experts().sum())
    flags = ("--controller", fleet.address, "--memory-gib", 1, "--drain-s", 1)
    shards = [
        start("expert_workers", "--model", model, "--seat", f"expert-{number}", "--node", f"machine-{number}", *flags)
        for number, model in enumerate((small_checkpoint, bare, bare))
    ]
    fleet.wait_holding(["expert-0", "expert-1", "expert-2"], 2 * total // 3)
    shards[0].popen.send_signal(signal.SIGKILL)
    fleet.wait_holding(["expert-1", "expert-2"], total)
    one, other = fleet.shard("expert-1"), fleet.shard("expert-2")
    assert torch.equal(answer(one, fleet.checkpoint), answer(other, fleet.checkpoint))
    whole = start("expert_workers", "--model", small_checkpoint, "--seat", "expert-9")
    alone = whole.address()

    async def describe() -> pb.WorkerReport:
        async with grpc.aio.insecure_channel(alone) as channel:
            stub = expert_pb2_grpc.ExpertShardStub(channel)
            while (report := await stub.Describe(expert_pb2.DescribeRequest())).state != "ready":
                await asyncio.sleep(0.05)
            return report

    report = asyncio.run(describe())
    from_files = pb.WorkerStatus(seat="expert-9", address=alone, report=report)
    assert torch.equal(answer(one, fleet.checkpoint), answer(from_files, fleet.checkpoint))


def test_a_shard_serves_what_it_could_get_and_gets_the_rest_when_it_comes(
    head: Callable[..., Head], start: Callable[..., Any], small_checkpoint: Path, bare: Path
) -> None:
    fleet = head(1, 1.0)
    total = int(fleet_shape(fleet.checkpoint, "bfloat16").all_experts().sum())
    files = sorted(path.name for path in small_checkpoint.glob("*.safetensors"))
    for name in files[:3]:
        shutil.copy(small_checkpoint / name, bare / name)
    start(
        *("expert_workers", "--model", bare, "--seat", "expert-0", "--controller", fleet.address),
        *("--memory-gib", 1, "--drain-s", 1),
    )
    give_up = time.monotonic() + 60
    while not (report := fleet.shard("expert-0").report).error:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert report.state == "ready"
    assert 0 < ExpertSet.from_proto(report.held).count < total
    assert f"cannot be loaded: local files: {bare}/model-" in report.error
    assert "; peers: no other shard is known (and " in report.error
    assert report.metrics["expert_loads_failed_total"] >= 1
    for name in files[3:]:
        shutil.copy(small_checkpoint / name, bare / name)
    fleet.wait_holding(["expert-0"], total)
    while (report := fleet.shard("expert-0").report).error:
        time.sleep(0.1)  # its next report says so
    assert report.metrics["expert_loads_local_total"] == total


def test_what_is_no_expert_of_this_checkpoint_is_not_given(start: Callable[..., Any], small_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    address = start("expert_workers", "--model", small_checkpoint, "--experts", "0-3").address()
    refused: list[tuple[dict[str, Any], Code]] = [
        ({"fingerprint": "ab" * 32}, Code.FOREIGN_CHECKPOINT),
        ({"fingerprint": ""}, Code.FOREIGN_CHECKPOINT),
        ({"layer": 0}, Code.NOT_HELD),
        ({"layer": 4_000_000_000}, Code.NOT_HELD),
        ({"expert": 64}, Code.NOT_HELD),
    ]
    for changes, code in refused:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            read_expert(address, checkpoint, **({"layer": 1, "expert": 2} | changes))
        assert from_call(caught.value).code is code
    names = [name for pair in checkpoint.expert_names(1, 60) for name in pair]
    from_files = read_expert(address, checkpoint, 1, 60)
    assert all(torch.equal(part, checkpoint.read(name)) for part, name in zip(from_files, names, strict=True))


def test_experts_are_given_to_members_alone(start: Callable[..., Any], small_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(small_checkpoint)
    process = start("expert_workers", "--model", small_checkpoint, "--experts", "0-3", "--cluster-token", TOKEN)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        read_expert(process.address(), checkpoint, 1, 2)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_incomplete_folder_without_a_controller_is_refused(start: Callable[..., Any], bare: Path) -> None:
    process = start("expert_workers", "--model", bare)
    assert process.popen.wait(60) == 1
    assert f"which does not exist in {bare}" in process.log.read_text()
