"""The runtime answers every job of a batch, and nobody pays for a neighbour."""

import dataclasses
import queue
import time

import numpy as np
import torch

from expertfleet.expert_workers import handler
from expertfleet.expert_workers import runtime as module
from expertfleet.expert_workers.handler import GrpcLaneServer
from expertfleet.expert_workers.pool import Job, Pool
from expertfleet.expert_workers.runtime import Runtime
from expertfleet.kernels.expert_layer import ExpertShape
from expertfleet.kernels.native import tensor_at
from expertfleet.proto.codec import MAX_PIECE_BYTES, Dispatch, Error, Result, decode
from expertfleet.proto.errors import Code
from expertfleet.proto.frame_prefix import WIRE_VERSION
from expertfleet.proto.rows import Rows
from expertfleet.transport.reactor import Reactor

H = 256


def answering(answers: "queue.Queue[bytes]") -> GrpcLaneServer:
    """Only ``deliver`` and ``send`` are called."""
    lane = GrpcLaneServer(None, answers.put)  # type: ignore[arg-type]
    lane.version = WIRE_VERSION
    return lane


def make_job(answers: "queue.Queue[bytes]", frame_id: int, value: float, num_routes: int = 2) -> Job:
    rows = Rows.of(torch.full((num_routes, H), value).bfloat16())
    route_rows = np.arange(num_routes, dtype=np.int32).data
    experts = np.zeros(num_routes, dtype=np.int32).data
    frame = Dispatch(frame_id, b"\0" * 8, (1, 1), 1, 0, 10**6, rows, route_rows, experts)
    return Job(frame, answering(answers), expires_at=time.monotonic() + 30)


class Echo:
    """Experts that change nothing."""

    shape, dtype = ExpertShape(H, 32, 32), torch.bfloat16

    def apply_at(self, x: int, num_rows: int, route_rows: int, route_experts: int, num_routes: int, out: int) -> None:
        rows = tensor_at(route_rows, (num_routes,), torch.int32)
        tensor_at(out, (num_routes, H), torch.bfloat16)[:] = tensor_at(x, (num_rows, H), torch.bfloat16)[rows]


def run(jobs: list[Job], route_ms: float = 0.001) -> None:
    """All jobs through a runtime."""
    reactor = Reactor()
    pool = Pool(100, reactor.wake)
    for job in jobs:
        pool.put(job)
    pool.close()
    runtime = Runtime(reactor, pool, {1: Echo()}, 1, route_ms)  # type: ignore[dict-item]
    runtime.start()
    assert runtime.join(20)


def test_what_is_not_finite_is_answered_as_it_is_and_its_neighbours_too() -> None:
    answers: queue.Queue[bytes] = queue.Queue()
    run([make_job(answers, 1, 1.0), make_job(answers, 2, float("nan")), make_job(answers, 3, 3.0)])
    first, second, third = (decode(answers.get_nowait(), 1 << 20) for _ in range(3))
    assert isinstance(first, Result)
    assert isinstance(second, Result)
    assert second.rows.tensor.isnan().all()
    assert isinstance(third, Result)
    assert third.rows.tensor.tolist() == [[3.0] * H] * 2


def test_a_piece_with_its_header_fits_the_smallest_frame_limit(monkeypatch) -> None:
    answers: queue.Queue[bytes] = queue.Queue()
    num_routes = MAX_PIECE_BYTES // (2 * H) + 10
    monkeypatch.setattr(module, "MIN_SLICE_ROUTES", 2 * num_routes)
    run([make_job(answers, 1, 1.0, num_routes)])
    assert answers.qsize() == 2
    assert max(len(answers.get_nowait()) for _ in range(2)) <= MAX_PIECE_BYTES


def test_an_answer_that_cannot_be_made_is_an_error_and_the_loop_lives(monkeypatch, caplog) -> None:
    answers: queue.Queue[bytes] = queue.Queue()
    monkeypatch.setattr(handler, "result_parts", lambda *fields: 1 / 0)
    jobs = [make_job(answers, 1, 1.0), make_job(answers, 2, 1.0)]
    jobs[1].frame = dataclasses.replace(jobs[1].frame, layer=2)
    run(jobs)
    for frame_id in (1, 2):
        error = decode(answers.get_nowait(), 1 << 20)
        assert isinstance(error, Error)
        assert (error.frame_id, error.code) == (frame_id, Code.INTERNAL)


def test_an_expert_is_given_back_only_when_no_queued_frame_asks_for_it(monkeypatch) -> None:
    computed: list[int] = []
    removed_after: list[int] = []

    class Layer(Echo):
        def apply_at(self, *call: int) -> None:
            computed.append(1)
            time.sleep(0.2)
            super().apply_at(*call)

        def remove(self, expert: int) -> None:
            assert expert == 0
            removed_after.append(len(computed))

    answers: queue.Queue[bytes] = queue.Queue()
    reactor = Reactor()
    pool = Pool(100, reactor.wake)
    runtime = Runtime(reactor, pool, {1: Layer()}, 1, 0.001)  # type: ignore[dict-item]
    monkeypatch.setattr(module, "MIN_SLICE_ROUTES", 1)
    for frame_id in range(3):
        pool.put(make_job(answers, frame_id, 1.0, num_routes=1))
    runtime.start()
    assert runtime.remove(1, [0]).wait(10)
    assert removed_after == [3]
    pool.close()
    assert runtime.join(10)
