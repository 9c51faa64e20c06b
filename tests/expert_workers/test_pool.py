"""Batches: one layer at a time, urgent before bulk, nothing lost, nothing twice."""

import random
import time

import numpy as np
import pytest
import torch

from expertfleet.expert_workers.pool import Job, Pool
from expertfleet.proto.codec import Dispatch
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.rows import Rows


def make_pool(max_queued_per_lane: int) -> Pool:
    return Pool(max_queued_per_lane, lambda: None)


def make_job(num_routes: int, layer: int = 1, priority: int = 0, lane: object = None, frame_id: int = 1) -> Job:
    rows = Rows.of(torch.zeros(num_routes, 4))
    routes = np.zeros(num_routes, dtype=np.int32).data
    frame = Dispatch(frame_id, b"\0" * 8, (1, 1), layer, priority, 10**6, rows, routes, routes)
    return Job(frame, lane, expires_at=float("inf"))  # type: ignore[arg-type]


def test_frames_of_one_layer_become_one_batch() -> None:
    pool = make_pool(100)
    for layer in (3, 4, 3, 3):
        pool.put(make_job(5, layer))
    batch = pool.take(100)
    assert [piece.job.frame.layer for piece in batch] == [3, 3, 3]
    assert [piece.count for piece in batch] == [5, 5, 5]
    assert [piece.job.frame.layer for piece in pool.take(100)] == [4]


def test_small_frames_overtake_a_bulk_frame_between_its_slices() -> None:
    pool = make_pool(100)
    bulk, small = make_job(1000), make_job(8, layer=2)
    pool.put(bulk)
    assert [(piece.first, piece.count) for piece in pool.take(64)] == [(0, 64)]
    pool.put(small)
    assert pool.take(64)[0].job is small
    assert [(piece.first, piece.count) for piece in pool.take(64)] == [(64, 64)]


def test_priority_comes_before_arrival() -> None:
    pool = make_pool(100)
    late, early = make_job(4, priority=0), make_job(4, layer=2, priority=1)
    pool.put(early)
    pool.put(late)
    assert pool.take(64)[0].job is late


def test_every_route_is_handed_out_exactly_once() -> None:
    rng = random.Random()
    pool = make_pool(1000)
    jobs = [make_job(rng.randint(1, 300), rng.randrange(4), rng.randrange(3)) for _ in range(60)]
    for job in jobs:
        pool.put(job)
    pool.close()
    seen: dict[int, list[int]] = {id(job): [] for job in jobs}
    while batch := pool.take(rng.randint(1, 200)):
        assert len({piece.job.frame.layer for piece in batch}) == 1
        for piece in batch:
            seen[id(piece.job)] += range(piece.first, piece.first + piece.count)
    assert all(seen[id(job)] == list(range(job.num_routes)) for job in jobs)


def test_cancelled_work_is_not_computed() -> None:
    pool = make_pool(100)
    lane = object()
    pool.put(make_job(4, lane=lane, frame_id=7))
    pool.put(make_job(4, layer=2, lane=lane, frame_id=8))
    assert pool.cancel(lane, 7)
    assert not pool.cancel(lane, 7)
    assert pool.take(64)[0].job.frame.frame_id == 8
    pool.put(make_job(4, lane=lane))
    pool.cancel(lane)
    pool.close()
    assert pool.take(64) == []


def test_a_lane_cannot_flood_the_shard() -> None:
    pool = make_pool(3)
    lane, other = object(), object()
    for _ in range(3):
        pool.put(make_job(1, lane=lane))
    with pytest.raises(FleetError, match="3 frames of this lane") as caught:
        pool.put(make_job(1, lane=lane))
    assert caught.value.code is Code.OVERLOADED
    pool.put(make_job(1, lane=other))


def test_work_and_the_end_wake_the_taker_and_a_closed_pool_refuses_more() -> None:
    woken: list[int] = []
    pool = Pool(3, lambda: woken.append(pool.num_queued()))
    assert pool.take(10) == []
    pool.put(make_job(1))
    pool.close()
    assert woken == [1, 1]
    with pytest.raises(FleetError) as caught:
        pool.put(make_job(1))
    assert caught.value.code is Code.DRAINING
    assert len(pool.take(10)) == 1
    assert pool.closed


def test_a_bulk_frame_is_not_starved_by_endless_small_ones() -> None:
    pool = make_pool(100)
    bulk = make_job(1000)
    pool.put(bulk)
    deadline = time.monotonic() + 10
    while not bulk.num_done:
        pool.put(make_job(8, layer=2))
        pool.take(64)
        assert time.monotonic() < deadline


def test_cancelled_frames_leave_room_at_once() -> None:
    pool = make_pool(1)
    lane = object()
    pool.put(make_job(4, lane=lane))
    pool.cancel(lane, 1)
    assert pool.num_queued() == 0
    pool.put(make_job(4, lane=lane))
