"""Answers that compiled calls read lie where they belong, however they come; all else reaches the lane whole and in order."""

import contextlib
import ctypes
import itertools
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, cast

import pytest
import torch

from expertfleet.kernels import native_lanes
from expertfleet.kernels.native import tensor_at
from expertfleet.kernels.native_lanes import HANDLED, Calls, WorkerEnd
from expertfleet.proto.codec import Hello, Result, ResultShm, decode, encode_error, encode_result, encode_result_shm
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.frame_prefix import DTYPE_CODES, WIRE_VERSION, Buffer
from expertfleet.proto.rows import Rows, address_of
from expertfleet.router.lanes.frame_in_flight import FrameInFlight
from expertfleet.router.lanes.tcp_side_channel import TcpSideChannel, _SideConnection
from expertfleet.transport.io_thread import IoThread
from expertfleet.transport.reactor import Reactor
from expertfleet.transport.tcp_lane import TcpSocket

H, ROUTES = 512, 40
LIMIT = 4 << 20
ENOUGH = FleetError(Code.LANE_LOST, "enough")


class Lane:
    """What a connection asks of its lane; ``heard`` are frames, ``num_noted`` counts routes by frame.

    Results of the ``waits`` that came behind another frame in one reading are left to Python, which takes them as a lane does.
    """

    def __init__(self) -> None:
        self.seat, self.address = "expert-0", "127.0.0.1:1"
        self.end = WorkerEnd()
        self.limits, self.version = Hello("expert-0", "", "bfloat16", LIMIT), WIRE_VERSION
        self.heard: list[bytes] = []
        self.num_noted: dict[int, int] = {}
        self.waits: dict[int, Wait] = {}
        self.by_python: list[Result] = []  # kept, as a dispatch keeps them
        self.ignore: Callable[[int], None] = lambda frame_id: None

    def received(self, connection: object, data: Buffer) -> None:
        with contextlib.suppress(FleetError):
            result = decode(data, LIMIT)
            if isinstance(result, Result) and (wait := self.waits.get(result.frame_id)) is not None:
                assert result.first_route == self.num_noted.get(result.frame_id, 0)
                for number in range(result.rows.count):
                    at = result.rows.address + number * result.rows.row_bytes
                    wait.places[wait.routes[result.first_route + number]] = at
                self.by_python.append(result)
                self.ignore(result.frame_id)  # as a lane does
                self.noted(result.frame_id, result.rows.count)
                return
        self.heard.append(bytes(data))

    def noted(self, frame_id: int, count: int) -> None:
        self.num_noted[frame_id] = self.num_noted.get(frame_id, 0) + count


class Wait:
    """A frame of ``ROUTES`` routes, a shuffled third of a dispatch's, whose answers are awaited."""

    def __init__(self, frame_id: int) -> None:
        self.frame_id = frame_id
        self.routes = torch.randperm(3 * ROUTES)[:ROUTES].contiguous()
        self.places = torch.zeros(3 * ROUTES, dtype=torch.int64)
        self.values = torch.randn(ROUTES, H).bfloat16()

    def sent(self) -> FrameInFlight:
        rows, lane = Rows.of(torch.zeros(1, H).bfloat16()), cast(Any, None)
        frame = FrameInFlight(None, lane, self.frame_id, self.routes.numpy(), rows, 1, ROUTES)
        frame.routes_at, frame.places = self.routes.data_ptr(), self.places.data_ptr()
        return frame

    def frames(self, rng: random.Random) -> list[bytes]:
        cuts = [0, *sorted(rng.sample(range(1, ROUTES), rng.choice((0, 0, 3)))), ROUTES]
        return [
            encode_result(self.frame_id, first, ROUTES, Rows.of(self.values[first:last]))
            for first, last in itertools.pairwise(cuts)
        ]

    def check(self, num_answered: int = ROUTES) -> None:
        for number, route in enumerate(self.routes.tolist()):
            address = int(self.places[route])
            assert (address != 0) == (number < num_answered)
            if address:
                assert torch.equal(tensor_at(address, (H,), torch.bfloat16), self.values[number])
        assert int((self.places != 0).sum()) == num_answered


class Beside:
    def __init__(self, calls: Calls) -> None:
        self.io, self.reactor, self.lane = IoThread("test-io"), Reactor(), Lane()
        listening = socket.create_server(("127.0.0.1", 0))
        self.shard = socket.create_connection(listening.getsockname())
        near, _ = listening.accept()
        listening.close()
        self.beside = TcpSideChannel(self.lane, None, self.io, self.reactor, LIMIT)  # type: ignore[arg-type]
        self.socket = TcpSocket(
            near, self.reactor, self.io, LIMIT, lambda data: self.lane.received(None, data), lambda error: None
        )
        self.way = self.beside._small = _SideConnection(self.socket)
        self.way.usable = True
        self.beside._enable_fast_path(calls, self.socket)
        self.lane.ignore = self.beside.ignore

    def send(self, frames: list[bytes], rng: random.Random) -> None:
        data = b"".join(len(frame).to_bytes(8, "little") + frame for frame in frames)
        at = 0
        while at < len(data):
            size = rng.choice((1, 7, 39, 48, 49, 1000, 20_000, 300_000))
            self.shard.sendall(data[at : at + size])
            at += size
            if rng.random() < 0.7:
                self.reactor.step(0.01)

    def hear(self, num_routes: int, num_others: int) -> None:
        def has_come() -> bool:
            return sum(self.lane.num_noted.values()) == num_routes and len(self.lane.heard) == num_others

        assert self.reactor.run(has_come, 10)

    def close(self) -> None:
        self.socket.end(ENOUGH)
        self.shard.close()
        self.io.stop()
        self.reactor.close()


@pytest.fixture
def beside(calls: Calls) -> Iterator[Beside]:
    with closing(Beside(calls)) as beside:
        yield beside


def test_results_lie_where_they_belong_and_other_frames_come_whole(beside: Beside) -> None:
    rng, wanted = random.Random(), []
    num_by_python = num_routes = 0
    for first_id in range(1, 120, 6):
        waits = [Wait(first_id + number) for number in range(rng.randint(1, 6))]
        queues = [wait.frames(rng) for wait in waits]
        frames = []
        while any(queues):
            frames.append(rng.choice([queue for queue in queues if queue]).pop(0))
            if rng.random() < 0.3:
                other = rng.choice(
                    (
                        encode_error(0, ENOUGH),
                        encode_result(10_000, 0, 4, Rows.of(torch.randn(4, H).bfloat16())),
                        rng.randbytes(rng.choice((1, 40, 60_000))),
                    )
                )
                frames.append(other)
                wanted.append(other)
        lane = beside.lane
        lane.waits = {wait.frame_id: wait for wait in waits}
        for wait in waits:
            beside.beside.sent(wait.sent())
        beside.send(frames, rng)
        beside.hear(ROUTES * len(waits), len(wanted))
        assert lane.heard == wanted
        assert lane.end.num_expected == 0
        for wait in waits:
            wait.check()
            beside.beside.free(wait.frame_id)
        num_by_python += sum(result.rows.count for result in lane.by_python)
        num_routes += sum(lane.num_noted.values())
        lane.num_noted.clear()
        lane.by_python.clear()
    assert 0 < num_by_python < num_routes


@pytest.mark.parametrize("spoil", ["order", "count", "hidden", "dtype", "length", "version"])
def test_a_result_that_does_not_fit_is_pythons_to_judge(beside: Beside, spoil: str) -> None:
    wait = Wait(1)
    (frame,) = wait.frames(random.Random(4)) if spoil != "order" else (wait_piece(wait, 1, ROUTES),)
    changed = bytearray(frame)
    if spoil == "count":
        changed[24] += 1
    elif spoil == "hidden":
        changed[28:32] = (H // 2).to_bytes(4, "little")
    elif spoil == "dtype":
        changed[32] = DTYPE_CODES[torch.float32]
    elif spoil == "version":
        changed[4] += 1
    elif spoil == "length":
        changed += b"\0"
    beside.beside.sent(wait.sent())
    beside.send([bytes(changed)], random.Random())
    assert beside.reactor.run(lambda: beside.lane.heard == [bytes(changed)], 10)
    assert not beside.lane.num_noted
    wait.check(0)


def wait_piece(wait: Wait, first: int, last: int) -> bytes:
    return encode_result(wait.frame_id, first, ROUTES, Rows.of(wait.values[first:last]))


def test_what_is_dropped_halfway_goes_nowhere_and_the_next_frame_is_read(beside: Beside) -> None:
    first, second, rng = Wait(1), Wait(2), random.Random()
    beside.lane.waits = {2: second}
    beside.beside.sent(first.sent())
    beside.beside.sent(second.sent())
    whole = b"".join(
        len(frame).to_bytes(8, "little") + frame
        for frame in (wait_piece(first, 0, 10), wait_piece(first, 10, 30), wait_piece(first, 30, 40))
    )
    beside.shard.sendall(whole[: len(whole) // 2])
    assert beside.reactor.run(lambda: beside.lane.num_noted == {1: 10}, 10)
    assert beside.lane.end.body_left > 0
    results = beside.beside._results[1].tensor.clone()
    kept = beside.beside._results[1]
    beside.beside.ignore(1)
    beside.beside.free(1)
    beside.shard.sendall(whole[len(whole) // 2 :])
    beside.send(second.frames(rng), rng)
    assert beside.reactor.run(lambda: beside.lane.num_noted == {1: 10, 2: ROUTES}, 10)
    second.check()
    first.check(10)
    assert torch.equal(kept.tensor.view(torch.int16), results.view(torch.int16))
    assert beside.lane.heard == [wait_piece(first, 30, 40)]


def test_the_end_of_a_connection_in_the_middle_of_a_result_is_told(calls: Calls) -> None:
    with closing(Beside(calls)) as beside:
        ended: list[FleetError] = []
        beside.socket.on_end = ended.append
        wait = Wait(1)
        beside.beside.sent(wait.sent())
        frame = wait_piece(wait, 0, ROUTES)
        beside.shard.sendall(len(frame).to_bytes(8, "little") + frame[:1000])
        assert beside.reactor.run(lambda: beside.lane.end.body_left > 0, 10)
        beside.shard.close()
        assert beside.reactor.run(lambda: bool(ended), 10)
        assert ended[0].code is Code.LANE_LOST


def test_more_frames_than_are_remembered_are_pythons(calls: Calls) -> None:
    end = WorkerEnd()
    for frame_id in range(1, 33):
        assert calls.expect(ctypes.addressof(end), frame_id, 1, H, 2 * H, 1, None, None, None)
    assert not calls.expect(ctypes.addressof(end), 33, 1, H, 2 * H, 1, None, None, None)
    calls.forget(ctypes.addressof(end), 7)
    assert calls.expect(ctypes.addressof(end), 33, 1, H, 2 * H, 1, None, None, None)


def test_over_shared_memory_only_the_next_routes_of_an_awaited_frame_are_usual(calls: Calls) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        end, clear, wait, buffer = WorkerEnd(), ctypes.c_int64(1), Wait(5), bytearray(1 << 17)
        native_lanes.open_end(end, near.fileno(), WIRE_VERSION, clear)
        end_at, dtype = ctypes.addressof(end), DTYPE_CODES[torch.bfloat16]
        calls.expect(
            end_at, 5, ROUTES, H, 2 * H, dtype, wait.values.data_ptr(), wait.routes.data_ptr(), wait.places.data_ptr()
        )

        def take() -> tuple[int, list[tuple[int, int]]]:
            heard: list[tuple[int, int]] = []
            size = calls.take_result_shm(end_at, address_of(buffer), len(buffer))
            native_lanes.each_that_came(end, lambda frame_id, count: heard.append((frame_id, count)))
            return size, heard

        far.send(encode_result_shm(ResultShm(5, 0, 8, ROUTES)))
        far.send(encode_result_shm(ResultShm(5, 8, 2, ROUTES)))
        wrong = [
            ResultShm(5, 8, 2, ROUTES),
            ResultShm(5, 11, 2, ROUTES),
            ResultShm(5, 10, 31, ROUTES),
            ResultShm(5, 10, 2, 41),
            ResultShm(6, 0, 2, 2),
        ]
        for filled in wrong:
            far.send(encode_result_shm(filled))
        far.send(encode_result_shm(ResultShm(5, 10, 30, ROUTES)))
        size, heard = take()
        assert heard == [(5, 8), (5, 2)]
        assert buffer[:size] == encode_result_shm(wrong[0])
        wait.check(10)
        for filled in wrong[1:]:
            size, heard = take()
            assert not heard
            assert buffer[:size] == encode_result_shm(filled)
        assert take() == (native_lanes.NOTHING, [(5, 30)])
        wait.check()
        far.send(encode_result_shm(ResultShm(5, 0, 8, ROUTES)))
        assert take() == (32, [])
        for number in range(20):
            calls.expect(
                end_at,
                100 + number,
                1,
                H,
                2 * H,
                dtype,
                wait.values.data_ptr(),
                wait.routes.data_ptr(),
                wait.places.data_ptr(),
            )
            far.send(encode_result_shm(ResultShm(100 + number, 0, 1, 1)))
        size, heard = take()
        assert (size, len(heard)) == (HANDLED, 16)
        assert take() == (native_lanes.NOTHING, [(116 + number, 1) for number in range(4)])
        far.close()
        assert take() == (0, [])
