"""Peers on real connections: holders first, and whoever is dead, old or wrong is named and passed over."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import trustme

from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.expert_workers import peers as peers_module
from expertfleet.expert_workers.expert_stream import to_pieces
from expertfleet.expert_workers.peers import Failure, Peers
from expertfleet.kernels.expert_layer import ExpertWeights
from expertfleet.membership import security
from expertfleet.membership.epoch import ExpertSet
from expertfleet.membership.security import WireSecurity
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.generated import expert_pb2, expert_pb2_grpc, membership_pb2, membership_pb2_grpc
from expertfleet.transport.io_thread import IoThread

LAYER, EXPERT = 1, 3
FILE = "a-file.safetensors"
Change = Callable[[list[expert_pb2.ExpertPiece]], list[expert_pb2.ExpertPiece]]


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(small_checkpoint)


def weights_of(checkpoint: Checkpoint) -> ExpertWeights:
    names = checkpoint.expert_names(LAYER, EXPERT)
    gate, up, down = ((checkpoint.read(packed), checkpoint.read(scale)) for packed, scale in names)
    return gate, up, down


class Shard(expert_pb2_grpc.ExpertShardServicer):
    def __init__(self, checkpoint: Checkpoint, change: Change | None = None, delay_s: float = 0.0) -> None:
        self.checkpoint, self.change, self.delay_s, self.num_asked = checkpoint, change, delay_s, 0

    async def ReadExpert(
        self, request: expert_pb2.ReadExpertRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[expert_pb2.ExpertPiece]:
        self.num_asked += 1
        assert request.fingerprint == self.checkpoint.fingerprint
        await asyncio.sleep(self.delay_s)
        if self.change is None:
            error = FleetError(Code.NOT_HELD, "has it neither in memory nor in files")
            await context.abort(error.status, error.details)
        pieces = list(to_pieces(self.checkpoint.config, request.layer, request.expert, weights_of(self.checkpoint)))
        for piece in self.change(pieces):
            yield piece


class Fleet(membership_pb2_grpc.MembershipServicer):
    """A controller that says who is there, and the shards."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.io = IoThread("test-io")
        self.checkpoint = checkpoint
        self.workers: list[membership_pb2.WorkerStatus] = []
        self.servers: list[grpc.aio.Server] = []
        self.controller = self.io.submit(
            self._serve(lambda server: membership_pb2_grpc.add_MembershipServicer_to_server(self, server))
        )

    async def Status(
        self, request: membership_pb2.StatusRequest, context: grpc.aio.ServicerContext
    ) -> membership_pb2.FleetStatus:
        return membership_pb2.FleetStatus(workers=self.workers)

    def add(self, shard: Shard | None, *, holds: bool = True, state: str = "ready", address: str = "") -> None:
        """``None`` is a shard of the version before, whose service has no such call."""
        if not address:
            register = self._old if shard is None else expert_pb2_grpc.add_ExpertShardServicer_to_server
            address = self.io.submit(self._serve(lambda server: register(shard, server)))
        config = self.checkpoint.config
        held = ExpertSet.from_pairs([(LAYER, EXPERT)] if holds else [], config.num_layers, config.num_experts)
        seat = f"expert-{len(self.workers) + 1}"
        report = membership_pb2.WorkerReport(seat=seat, held=held.to_proto())
        self.workers.append(
            membership_pb2.WorkerStatus(role="expert", seat=seat, address=address, state=state, report=report)
        )

    def peers(self) -> Peers:
        return Peers(self.controller, "expert-0", self.checkpoint.config, self.checkpoint.fingerprint)

    def close(self) -> None:
        for server in self.servers:
            self.io.submit(server.stop(None))
        self.io.stop()

    async def _serve(self, register: Callable[[grpc.aio.Server], None]) -> str:
        server = security.make_server(())
        register(server)
        port = security.add_port(server, "127.0.0.1", 0)
        await server.start()
        self.servers.append(server)
        return f"127.0.0.1:{port}"

    @staticmethod
    def _old(shard: Any, server: grpc.aio.Server) -> None:
        describe = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
        handlers = {"Describe": describe}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("expertfleet.v1.ExpertShard", handlers),))


@pytest.fixture
def fleet(checkpoint: Checkpoint) -> Iterator[Fleet]:
    made = Fleet(checkpoint)
    yield made
    made.close()


def as_it_is(pieces: list[expert_pb2.ExpertPiece]) -> list[expert_pb2.ExpertPiece]:
    return pieces


def spoiled(pieces: list[expert_pb2.ExpertPiece]) -> list[expert_pb2.ExpertPiece]:
    content = bytearray(pieces[1].data)
    content[7] ^= 16
    pieces[1].data = bytes(content)
    return pieces


def endless(pieces: list[expert_pb2.ExpertPiece]) -> list[expert_pb2.ExpertPiece]:
    return [pieces[0], *([pieces[1]] * 10_000)]


def is_right(found: ExpertWeights | Failure, checkpoint: Checkpoint) -> bool:
    assert not isinstance(found, Failure), str(found)
    pairs = [pair for both in zip(found, weights_of(checkpoint), strict=True) for pair in zip(*both, strict=True)]
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_holder_is_asked_before_who_may_have_it_in_files(fleet: Fleet, checkpoint: Checkpoint) -> None:
    shards = [Shard(checkpoint, as_it_is) for _ in range(3)]
    for shard, holds in zip(shards, (False, True, False), strict=True):
        fleet.add(shard, holds=holds)
    peers = fleet.peers()
    assert all(is_right(peers.read(LAYER, EXPERT, FILE), checkpoint) for _ in range(3))
    assert [shard.num_asked for shard in shards] == [0, 3, 0]
    assert peers.num_copies()[LAYER].tolist() == [expert == EXPERT for expert in range(checkpoint.config.num_experts)]
    peers.close()


def test_who_cannot_give_it_is_named_and_the_next_one_asked(fleet: Fleet, checkpoint: Checkpoint) -> None:
    fleet.add(None, holds=True)
    fleet.add(None, holds=True, address="127.0.0.1:1")
    fleet.add(Shard(checkpoint, spoiled), holds=True)
    fleet.add(Shard(checkpoint, endless), holds=True)
    fleet.add(Shard(checkpoint), holds=True)
    fleet.add(without := Shard(checkpoint), holds=False)
    fleet.add(failed := Shard(checkpoint, as_it_is), holds=True, state="failed")
    peers = fleet.peers()
    for _ in range(2):
        failure = peers.read(LAYER, EXPERT, FILE)
        assert isinstance(failure, Failure)
        for seat, reason in (
            ("expert-1", "is of an older version, which hands out no experts"),
            ("expert-2", "UNAVAILABLE"),
            ("expert-3", "do not have the checksum"),
            ("expert-4", "an expert has"),
            ("expert-5", "has it neither in memory nor in files"),
            ("expert-6", "has it neither in memory nor in files"),
        ):
            assert any(said.startswith(f"{seat}: ") and reason in said for said in failure.reasons), failure.reasons
    assert (without.num_asked, failed.num_asked) == (1, 0), "who lacks a file is left alone for a while"
    fleet.add(Shard(checkpoint, as_it_is), holds=False)
    peers._looked_at = -10.0
    assert is_right(peers.read(LAYER, EXPERT, FILE), checkpoint)
    peers.close()


def test_a_peer_that_stands_still_costs_its_time_once(
    fleet: Fleet, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "_PEER_S", 0.5)
    monkeypatch.setattr(peers_module, "_AVOID_S", 600.0)
    fleet.add(still := Shard(checkpoint, as_it_is, delay_s=60))
    peers = fleet.peers()
    for _ in range(2):
        assert "did not give it within" in str(peers.read(LAYER, EXPERT, FILE))
    assert still.num_asked == 1
    peers.close()


def test_while_the_controller_is_away_the_known_peers_are_asked(fleet: Fleet, checkpoint: Checkpoint) -> None:
    fleet.add(Shard(checkpoint, as_it_is))
    peers = fleet.peers()
    assert is_right(peers.read(LAYER, EXPERT, FILE), checkpoint)
    fleet.io.submit(fleet.servers[0].stop(None))
    peers._looked_at = -10.0
    assert is_right(peers.read(LAYER, EXPERT, FILE), checkpoint)
    peers.close()
    assert str(peers.read(LAYER, EXPERT, FILE)) == "this shard ends"


@pytest.mark.parametrize("by", ["token", "tls"])
def test_peers_are_members_alone(checkpoint: Checkpoint, by: str, tls_dir: Path, certify: Any, tmp_path: Path) -> None:
    strangers_dir = certify(tmp_path / "strangers", trustme.CA())
    ours, strangers = {
        "token": (WireSecurity(token="a token of these tests"), WireSecurity(token="the token of another fleet")),
        "tls": (WireSecurity(tls_dir=tls_dir), WireSecurity(tls_dir=strangers_dir)),
    }[by]
    security.secure(ours)
    try:
        fleet = Fleet(checkpoint)
        fleet.add(Shard(checkpoint, as_it_is))
        peers = fleet.peers()
        assert is_right(peers.read(LAYER, EXPERT, FILE), checkpoint)
        peers.close()
        stranger = fleet.peers()
        stranger._look()
        security.secure(strangers)
        assert isinstance(failure := stranger.read(LAYER, EXPERT, FILE), Failure)
        assert failure.reasons[0].startswith("expert-1: "), "who it is was known before"
        stranger.close()
    finally:
        security.secure(WireSecurity())
        fleet.close()


def test_nobody_there_is_said(fleet: Fleet) -> None:
    peers = fleet.peers()
    assert str(peers.read(LAYER, EXPERT, FILE)) == "no other shard is known"
    peers.close()
