"""Whatever compiled calls let into a shard Python would let in as well, with the same meaning; all else goes to Python as it came."""

import ctypes
import random
import socket
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.expert_workers.expert_store import ExpertStore
from expertfleet.expert_workers.sources import ExpertSources
from expertfleet.kernels import native_lanes
from expertfleet.kernels.native import tensor_at
from expertfleet.kernels.native_lanes import HANDLED, NOTHING, Calls, ShardEnd
from expertfleet.membership.epoch import EpochId
from expertfleet.proto.codec import (
    Dispatch,
    DispatchShm,
    Result,
    ResultShm,
    decode,
    encode_cancel,
    encode_dispatch,
    encode_dispatch_shm,
    encode_result_shm,
    short_fingerprint,
)
from expertfleet.proto.errors import FleetError
from expertfleet.proto.frame_prefix import WIRE_VERSION
from expertfleet.proto.rows import Rows, address_of
from expertfleet.transport.shared_memory import Arena

HIDDEN, EXPERTS, TOP_K, MOST = 64, 8, 2, 64
LIMIT, LENGTH = 1 << 20, 8
BEFORE_ROUTES = {"placed": 80, "dispatch": 64}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ExpertStore:
    """Half of the experts of layers 1 and 2, at epoch 1.4 or later."""
    folder = tmp_path_factory.mktemp("fast_path") / "model"
    make_tiny(folder, hidden=HIDDEN, layers=3, experts=EXPERTS, top_k=TOP_K, expert_width=32, dense_width=64, vocab=512)
    checkpoint = Checkpoint.open(folder)
    store = ExpertStore(checkpoint, "bfloat16", ExpertSources(checkpoint))
    store._mask[1:, ::2] = True
    store.raise_min_epoch(EpochId(1, 4))
    return store


class Pair:
    """A shard's end and the socket that frames for it are written to; ``kind`` is placed or dispatch."""

    def __init__(self, calls: Calls, store: ExpertStore, kind: str) -> None:
        self.calls, self.kind, self.store = calls, kind, store
        self.is_local = kind == "placed"
        self.arena = Arena()
        family = socket.SOCK_SEQPACKET if self.is_local else socket.SOCK_STREAM
        self.worker, self.shard = socket.socketpair(socket.AF_UNIX, family)
        self.end = ShardEnd(socket=self.shard.fileno(), version=WIRE_VERSION, most_routes=MOST)
        self.end.filter = ctypes.pointer(store.filter)
        if self.is_local:
            self.end.memory, self.end.memory_bytes = self.arena.address, self.arena.size
        self.buffer = bytearray(LIMIT)
        self.take = calls.take_dispatch_shm if self.is_local else calls.take_dispatch

    def receive(self) -> int:
        size: int = self.take(ctypes.addressof(self.end), address_of(self.buffer), len(self.buffer))
        return native_lanes.check(size)

    def send(self, frame: bytes) -> None:
        self.worker.send(frame if self.is_local else len(frame).to_bytes(LENGTH, "little") + frame)

    def received(self, size: int) -> bytes:
        """What Python is left with."""
        return bytes(self.buffer[:size] if self.is_local else self.buffer[LENGTH:size])

    def frame(self, rng: random.Random) -> bytes:
        rows = rng.choice((1, 1, 2, 5, 32, 40))
        epoch = (1, rng.randrange(3, 9))
        experts = np.array([rng.randrange(0, EXPERTS, 2) for _ in range(rows * TOP_K)], dtype=np.int32).data
        route_rows = (np.arange(rows * TOP_K, dtype=np.int32) // TOP_K).data
        fields = (rng.getrandbits(40), short_fingerprint(self.store.checkpoint.fingerprint), epoch)
        asked = (*fields, rng.choice((1, 2)), rng.randrange(3), rng.choice((0, 10**6)))
        if self.is_local:
            places = (rng.choice((0, 64, 4096)), rng.choice((1 << 20, self.arena.size - 256 * rows)))
            placed = DispatchShm(*asked, torch.bfloat16, rows, HIDDEN, *places, route_rows, experts)
            return encode_dispatch_shm(placed)
        values = torch.randn(rows, HIDDEN).bfloat16()
        return encode_dispatch(Dispatch(*asked, Rows.of(values), route_rows, experts))

    def python_takes(self, frame: bytes) -> Dispatch | None:
        """What Python makes of it, None if it refuses."""
        try:
            found = decode(frame, LIMIT, WIRE_VERSION)
            if isinstance(found, DispatchShm) and self.is_local:
                rows = self.arena.rows(found.rows_at, found.dtype, found.num_rows, found.hidden)
                self.arena.rows(found.results_at, found.dtype, len(found.route_rows), found.hidden)
                found = found.with_rows(rows)
            assert isinstance(found, Dispatch), "another kind"
            self.store.admit(found)
        except (FleetError, AssertionError):
            return None
        return found

    def close(self) -> None:
        self.worker.close()
        self.shard.close()
        self.arena.close()


@pytest.fixture(params=["placed", "dispatch"])
def pair(calls: Calls, store: ExpertStore, request: pytest.FixtureRequest) -> Iterator[Pair]:
    with closing(Pair(calls, store, request.param)) as pair:
        yield pair


def mutated(frame: bytes, rng: random.Random, routes_at: int) -> bytes:
    kind = rng.random()
    if kind < 0.1:
        return frame[: rng.randrange(1, len(frame))]
    if kind < 0.2:
        return frame + rng.randbytes(rng.randint(1, 64))
    changed = bytearray(frame)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(routes_at) if rng.random() < 0.8 else rng.randrange(len(changed))
        changed[place] = rng.choice((0, 1, 2, 255, rng.getrandbits(8)))
    return bytes(changed)


def int32s(address: int, count: int) -> list[int]:
    found: list[int] = tensor_at(address, (count,), torch.int32).tolist()
    return found


def test_what_is_let_in_python_would_let_in_too_with_the_same_meaning(pair: Pair) -> None:
    rng = random.Random()
    num_handled = num_mutated_handled = 0
    for number in range(4000):
        whole = pair.frame(rng)
        frame = mutated(whole, rng, BEFORE_ROUTES[pair.kind]) if number % 2 else whole
        pair.send(frame)
        size = pair.receive()
        wanted = pair.python_takes(frame)
        if size != HANDLED:
            assert pair.received(size) == frame
            if wanted is not None:
                may_wait = wanted.timeout_us == 0 or len(wanted.route_rows) > MOST
                assert may_wait or wanted.rows.count > len(wanted.route_rows)
            continue
        num_handled, num_mutated_handled = num_handled + 1, num_mutated_handled + number % 2
        assert wanted is not None, frame.hex()
        end = pair.end
        assert (end.frame_id, end.layer) == (wanted.frame_id, wanted.layer)
        assert end.size == len(frame)
        assert (end.num_rows, end.num_routes) == (wanted.rows.count, len(wanted.route_rows))
        assert int32s(end.route_rows, end.num_routes) == wanted.route_rows.tolist()
        assert int32s(end.route_experts, end.num_routes) == wanted.route_experts.tolist()
        rows = tensor_at(end.rows, (end.num_rows, HIDDEN), torch.bfloat16)
        assert torch.equal(rows.view(torch.int16), wanted.rows.tensor.view(torch.int16))
        assert EpochId(*wanted.epoch) <= pair.store.newest_epoch
    assert num_handled > 500
    assert num_mutated_handled > 50


def test_a_frame_with_another_behind_it_is_left_to_be_merged(pair: Pair) -> None:
    rng = random.Random()
    frame, asked = b"", None
    while asked is None or asked.timeout_us == 0 or len(asked.route_rows) > MOST:
        frame = pair.frame(rng)
        asked = pair.python_takes(frame)
    pair.send(frame)
    pair.send(encode_cancel(7))
    size = pair.receive()
    left = bytes(pair.buffer[:size])
    if pair.is_local:
        assert left == frame
        assert pair.received(pair.receive()) == encode_cancel(7)
    else:
        assert left == b"".join(len(each).to_bytes(LENGTH, "little") + each for each in (frame, encode_cancel(7)))
    assert pair.receive() == NOTHING
    pair.send(frame)
    assert pair.receive() == HANDLED
    pair.worker.close()
    assert pair.receive() == 0


def test_answers_are_the_frames_that_python_would_send(pair: Pair) -> None:
    rng = random.Random()
    sent = 0
    while sent < 20:
        frame = pair.frame(rng)
        pair.send(frame)
        if pair.receive() != HANDLED:
            continue
        sent += 1
        end, wanted = pair.end, decode(frame, LIMIT)
        if pair.is_local:
            assert pair.calls.send_result_shm(ctypes.addressof(end)) == 0
            said = pair.worker.recv(LIMIT)
            assert said == encode_result_shm(ResultShm(end.frame_id, 0, end.num_routes, end.num_routes))
            continue
        rows = torch.randn(end.num_routes, HIDDEN).bfloat16()
        assert pair.calls.give_result(ctypes.addressof(end), rows.data_ptr()) == 0
        said = pair.worker.recv(LIMIT, socket.MSG_WAITALL | socket.MSG_DONTWAIT)
        assert int.from_bytes(said[:LENGTH], "little") == len(said) - LENGTH
        result = decode(said[LENGTH:], LIMIT)
        assert isinstance(result, Result)
        assert isinstance(wanted, Dispatch)
        assert (result.frame_id, result.first_route, result.num_routes) == (wanted.frame_id, 0, end.num_routes)
        assert torch.equal(result.rows.tensor, rows)


def test_how_much_of_an_answer_waits_is_told(calls: Calls, store: ExpertStore) -> None:
    rng = random.Random()
    with closing(Pair(calls, store, "dispatch")) as pair:
        pair.shard.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        while pair.receive() != HANDLED or pair.end.num_routes < 10:
            pair.send(pair.frame(rng))
        rows = torch.randn(pair.end.num_routes, HIDDEN).bfloat16()
        whole = LENGTH + 40 + rows.nbytes
        left, came = 0, b""
        answers = 0
        while left == 0:
            left = calls.give_result(ctypes.addressof(pair.end), rows.data_ptr())
            answers += 1
        assert 0 < left <= whole
        while len(came) < answers * whole - left:
            came += pair.worker.recv(LIMIT)
        assert len(came) == answers * whole - left
        pair.worker.close()
        with pytest.raises(BrokenPipeError):
            native_lanes.check(calls.give_result(ctypes.addressof(pair.end), rows.data_ptr()))
