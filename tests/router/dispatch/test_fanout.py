"""A compiled question is the frames that Python would send, and what is not sent so is left to Python."""

import ctypes
import random
import socket
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from expertfleet.kernels import native_lanes
from expertfleet.kernels.native import tensor_at
from expertfleet.kernels.native_lanes import Calls, WorkerEnd
from expertfleet.membership.epoch import EpochId, ExpertSet, Member
from expertfleet.proto.codec import Dispatch, DispatchShm, decode
from expertfleet.proto.frame_prefix import WIRE_VERSION
from expertfleet.router.dispatch.fanout import FanoutResult, LayerFanout
from expertfleet.router.dispatch.routing_table import RoutingTable
from expertfleet.router.dispatch.shard_requests import partition_routes
from expertfleet.transport.shared_memory import ALIGNMENT, Arena

H, E, K, LAYER = 64, 16, 4, 1
AREA = 1 << 20
MARK = b"\1\2\3\4\5\6\7\x08"
LENGTH = 8


class Shards:
    """Ends of lanes, every second one over shared memory, and the other side of each; ``holders`` of each expert."""

    def __init__(self, calls: Calls, holders: list[list[int]], num_shards: int) -> None:
        held = [[(LAYER, e) for e in range(E) if shard in holders[e]] for shard in range(num_shards)]
        members = tuple(
            Member(f"s{shard}", "", "any", ExpertSet.from_pairs(pairs, 2, E)) for shard, pairs in enumerate(held)
        )
        self.plan = RoutingTable(EpochId(3, 9), members, {member.seat for member in members})
        self.arena = Arena()
        self.clear = ctypes.c_int64(1)
        self.pairs, self.ends = [], []
        for shard in range(num_shards):
            is_local = shard % 2 == 0
            kind = socket.SOCK_SEQPACKET if is_local else socket.SOCK_STREAM
            self.pairs.append(socket.socketpair(socket.AF_UNIX, kind))
            end = WorkerEnd(seconds_per_expert=1.0)
            native_lanes.open_end(end, self.pairs[-1][0].fileno(), WIRE_VERSION, self.clear)
            end.most_frame_bytes, end.most_answer_bytes = 1 << 20, 1 << 20
            if is_local:
                end.memory, end.area, end.area_bytes = self.arena.address, self.arena.allocate(AREA), AREA
            self.ends.append(end)
        self.asking = LayerFanout(calls, self.plan, self.ends, MARK, 5.0)

    def received(self, shard: int) -> Dispatch:
        data = self.pairs[shard][1].recv(1 << 20, socket.MSG_DONTWAIT)
        if shard % 2:
            assert int.from_bytes(data[:LENGTH], "little") == len(data) - LENGTH
            frame = decode(data[LENGTH:], 1 << 20)
            assert isinstance(frame, Dispatch)
            return frame
        placed = decode(data, 1 << 20)
        assert isinstance(placed, DispatchShm)
        end = self.ends[shard]
        assert end.area_bytes == 0
        assert placed.rows_at == end.area
        assert placed.results_at % ALIGNMENT == 0
        assert placed.results_at >= end.area + placed.num_rows * 2 * H
        return placed.with_rows(self.arena.rows(placed.rows_at, placed.dtype, placed.num_rows, placed.hidden))

    def is_silent(self, shard: int) -> bool:
        with pytest.raises(BlockingIOError):
            self.pairs[shard][1].recv(1, socket.MSG_DONTWAIT)
        return True

    def close(self) -> None:
        for one, other in self.pairs:
            one.close()
            other.close()
        self.arena.close()


def drawn(rng: random.Random, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([rng.sample(range(E), K) for _ in range(tokens)])
    return torch.randn(tokens, H).bfloat16(), ids


@pytest.fixture
def shards(calls: Calls) -> Iterator[Shards]:
    with closing(Shards(calls, [[e % 3] for e in range(E)], 3)) as shards:
        yield shards


@pytest.mark.parametrize("has_replicas", [False, True])
def test_frames_are_those_that_python_would_send(calls: Calls, has_replicas: bool) -> None:
    rng = random.Random()
    for number in range(60):
        num_shards = rng.randint(1, 5)
        holders = [rng.sample(range(num_shards), rng.randint(0, num_shards if has_replicas else 1)) for _ in range(E)]
        x, ids = drawn(rng, rng.choice((1, 2, 7, 40)))
        with closing(Shards(calls, holders, num_shards)) as shards:
            for end in shards.ends:
                end.seconds_per_expert = rng.random()
            asked = shards.asking(LAYER, x, ids, number % 2, 100)
            assert asked is not None
            shares, orphans = partition_routes(shards.plan.assign(LAYER, ids), num_shards, ids, None, K, len(x))
            assert asked.unroutable.tolist() == orphans.tolist()
            sent = list(asked.sent())
            assert not asked.unsent()
            paces = [share.num_experts * shards.ends[share.owner].seconds_per_expert for share in sent]
            assert paces == sorted(paces, reverse=True)
            assert [share.frame_id for share in sent] == list(range(100, 100 + len(shares)))
            by_owner = {share.owner: share for share in shares}
            for one in sent:
                wanted, frame = by_owner.pop(one.owner), shards.received(one.owner)
                assert one.num_unsent == 0
                assert one.routes.tolist() == wanted.routes.tolist()
                at = tensor_at(one.routes_at, (len(one.routes),), torch.int64)
                assert at.tolist() == wanted.routes.tolist()
                assert (one.num_rows, one.num_experts) == (len(wanted.rows), wanted.num_experts)
                assert (frame.frame_id, frame.fingerprint, frame.epoch) == (one.frame_id, MARK, (3, 9))
                assert (frame.layer, frame.priority, frame.timeout_us) == (LAYER, number % 2, 5_000_000)
                assert frame.route_rows.tolist() == wanted.places.tolist()
                assert frame.route_experts.tolist() == wanted.experts.tolist()
                assert torch.equal(frame.rows.tensor, x[torch.from_numpy(wanted.rows)])
            assert not by_owner
            assert all(shards.is_silent(shard) for shard in range(num_shards))


def unsent(asked: FanoutResult | None) -> set[int]:
    assert asked is not None
    return {share.owner for share in asked.unsent()}


def test_what_cannot_be_sent_so_is_left_to_python(shards: Shards) -> None:
    x, ids = drawn(random.Random(), 8)
    shards.ends[1].most_answer_bytes = 10
    shards.ends[2].area_bytes = 100
    asked = shards.asking(LAYER, x, ids, 0, 1)
    assert unsent(asked) == {1, 2}
    assert asked is not None
    (sent,) = asked.sent()
    assert sent.owner == 0
    for share in asked.unsent():
        (wanted,) = (
            each
            for each in partition_routes(shards.plan.assign(LAYER, ids), 3, ids, None, K, 8)[0]
            if each.owner == share.owner
        )
        for name in ("routes", "experts", "places", "rows"):
            assert np.array_equal(getattr(share, name), getattr(wanted, name))
    assert shards.received(0).frame_id == sent.frame_id
    assert shards.is_silent(1)
    assert shards.is_silent(2)
    native_lanes.close_end(shards.ends[0])
    shards.ends[1].most_answer_bytes = 1 << 20
    assert unsent(shards.asking(LAYER, x, ids, 0, 5)) == {0, 2}
    shards.received(1)
    shards.clear.value = 0
    assert unsent(shards.asking(LAYER, x, ids, 0, 9)) == {0, 1, 2}
    assert shards.is_silent(1)


def test_large_questions_and_those_to_nobody_are_not_for_it(calls: Calls, shards: Shards) -> None:
    x, ids = drawn(random.Random(), 65)
    assert shards.asking(LAYER, x, ids, 0, 1) is None
    nobody = LayerFanout(calls, RoutingTable(EpochId(1, 1), (), ()), [], MARK, 5.0)
    assert nobody(LAYER, x[:1], ids[:1], 0, 1) is None


def test_an_expert_that_there_is_not_is_said_to_be_so(shards: Shards) -> None:
    x, ids = drawn(random.Random(), 1)
    ids[0, 1] = E
    with pytest.raises(IndexError, match=f"is not below {E}"):
        shards.asking(LAYER, x, ids, 0, 1)
    assert all(shards.is_silent(shard) for shard in range(3))


def test_of_a_frame_that_the_kernel_takes_in_part_is_told_what_waits(shards: Shards) -> None:
    x, ids = drawn(random.Random(), 64)
    near, far = shards.pairs[1]
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    left, frames = 0, 0
    while left == 0:
        asked = shards.asking(LAYER, x, ids, 0, 1)
        assert asked is not None
        frames += 1
        left = next((share.num_unsent for share in asked.sent() if share.owner == 1), -1)
    assert left > 0
    share = next(share for share in asked.sent() if share.owner == 1)
    whole = LENGTH + 64 + share.num_rows * 2 * H + 8 * len(share.routes)
    came = 0
    while came < frames * whole - left:
        came += len(far.recv(1 << 20))
    assert came == frames * whole - left
