"""The thread that owns the device: takes batches from the pool, applies the layer's experts, answers every job.

Knows nothing of lanes beyond "deliver these rows". Between batches it steps its reactor, which reads the local lanes. A batch that
fails answers its own jobs and the loop lives.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..kernels.grouped_gemm import ExpertLayer
from ..kernels.native_lanes import ShardEnd
from ..proto.codec import encode_error
from ..proto.dispatch_header import Indices
from ..proto.errors import Code, FleetError
from ..proto.rows import Rows, address_of
from ..transport.reactor import Reactor
from .pool import Pool, Slice

logger = logging.getLogger(__name__)

MIN_SLICE_ROUTES = 64
_ASK_AGAIN_S = 0.05


@dataclass(slots=True)
class Counters:
    """What the shard has done since it started; written by the runtime thread alone."""

    routes: int = 0
    batches: int = 0
    merged_frames: int = 0
    failed_routes: int = 0
    expired_frames: int = 0
    compute_s: float = 0.0


class Runtime:
    """Owns torch on one thread; ``layers`` maps a layer index to the experts held of it. ``pool`` wakes ``reactor``."""

    def __init__(
        self, reactor: Reactor, pool: Pool, layers: dict[int, ExpertLayer], threads: int, slice_ms: float
    ) -> None:
        self.counters = Counters()
        self._reactor = reactor
        self._pool = pool
        self._layers = layers
        self._threads = threads
        self._slice_s = slice_ms / 1000
        self._route_s = 0.0
        self._thread = threading.Thread(target=self._run, name="expert-runtime", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Whether the loop, whose pool must have been closed, ended within ``timeout_s``."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def at_once(self, asked: ShardEnd, results: int, answer: Callable[[], None]) -> bool:
        """Computes a usual frame, its results [N, H] to an address, and calls ``answer``, if nothing else waits that it should be merged
        with or stand back for; whether that was done. On the runtime's thread, in a step of its reactor."""
        if self._reactor.num_events > 1 or self._pool.closed or self._pool.num_queued():
            return False
        started = time.perf_counter()
        try:
            routes = asked.route_rows, asked.route_experts, asked.num_routes
            self._layers[asked.layer].apply_at(asked.rows, asked.num_rows, *routes, results)
        except Exception:
            logger.exception("a frame of layer %d failed, and is tried again", asked.layer)
            return False
        ended = time.perf_counter()
        answer()
        self._account(asked.num_routes, 1, ended - started)
        return True

    def remove(self, layer: int, experts: list[int]) -> threading.Event:
        """Experts that no new job asks for are given back between two batches, when no queued one does either; then the event is
        set. From another thread."""
        removed = threading.Event()
        self._reactor.post(self._remove, layer, experts, removed)
        return removed

    def _remove(self, layer: int, experts: list[int], removed: threading.Event) -> None:
        if self._pool.asks_for(layer, experts):
            self._reactor.call_later(_ASK_AGAIN_S, lambda: self._remove(layer, experts, removed))
            return
        for expert in experts:
            self._layers[layer].remove(expert)
        removed.set()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while True:
                self._reactor.step(0 if self._pool.closed or self._pool.num_queued() else None)
                if batch := self._pool.take(self._max_routes()):
                    self._answer(batch)
                elif self._pool.closed and not self._pool.num_queued():
                    return

    def _max_routes(self) -> int:
        """As many routes as fit the slice time, by the mean time per route of large batches so far."""
        if not self._route_s:
            return MIN_SLICE_ROUTES
        return max(MIN_SLICE_ROUTES, int(self._slice_s / self._route_s))

    def _answer(self, batch: list[Slice]) -> None:
        live = [piece for piece in batch if not self._expired(piece)]
        if not live:
            return
        try:
            started = time.perf_counter()
            rows = self._compute(live)
            ended = time.perf_counter()
            self._deliver(live, rows)
            self._account(rows.count, len(live), ended - started)
        except Exception:
            logger.exception("a batch of layer %d failed", live[0].job.frame.layer)
            self._refuse(
                live, FleetError(Code.INTERNAL, f"layer {live[0].job.frame.layer} failed; see the shard's log")
            )

    def _compute(self, batch: list[Slice]) -> Rows:
        """[N, H] in the order of the slices."""
        layer = self._layers[batch[0].job.frame.layer]
        x, route_rows, route_experts = _merge(batch)
        assert (x.width, x.dtype) == (layer.shape.hidden, layer.dtype), f"{x!r} for a layer of {layer.shape}"
        results = batch[0].place if len(batch) == 1 else None
        if results is None:
            results = Rows.new(len(route_rows), x.width, x.dtype)
        routes = address_of(route_rows), address_of(route_experts), results.count
        layer.apply_at(x.address, x.count, *routes, results.address)
        return results

    def _account(self, num_routes: int, num_frames: int, seconds: float) -> None:
        counters = self.counters
        counters.routes += num_routes
        counters.batches += 1
        counters.merged_frames += num_frames
        counters.compute_s += seconds
        if num_routes >= MIN_SLICE_ROUTES:
            sample = seconds / num_routes
            self._route_s = 0.8 * self._route_s + 0.2 * sample if self._route_s else sample

    def _deliver(self, batch: list[Slice], rows: Rows) -> None:
        """Every slice gets its rows, finite or not: whoever asked knows what the row was, and can ask a replica."""
        first = 0
        for piece in batch:
            piece.job.lane.deliver(piece.job, piece.first, rows.part(first, piece.count))
            first += piece.count

    def _expired(self, piece: Slice) -> bool:
        job = piece.job
        if job.cancelled:
            return True
        if time.monotonic() < job.expires_at:
            return False
        self.counters.expired_frames += 1
        self._refuse([piece], FleetError(Code.EXPIRED, "the frame's time was over before it was computed"))
        return True

    def _refuse(self, batch: list[Slice], error: FleetError) -> None:
        for job in {id(piece.job): piece.job for piece in batch}.values():
            job.cancelled = True
            self.counters.failed_routes += job.num_routes
            job.lane.send(encode_error(job.frame.frame_id, error, job.lane.version))


def _merge(batch: list[Slice]) -> tuple[Rows, Indices, Indices]:
    """Rows [R, H], route_rows [N] and route_experts [N] of all slices together."""
    if len(batch) == 1:
        piece, frame = batch[0], batch[0].job.frame
        mine = slice(piece.first, piece.first + piece.count)
        return frame.rows, frame.route_rows[mine], frame.route_experts[mine]
    route_rows, route_experts = np.empty((2, sum(piece.count for piece in batch)), dtype=np.int32)
    base = at = 0
    for piece in batch:
        frame, mine = piece.job.frame, slice(piece.first, piece.first + piece.count)
        np.add(frame.route_rows[mine], base, out=route_rows[at : at + piece.count])
        route_experts[at : at + piece.count] = frame.route_experts[mine]
        base, at = base + frame.rows.count, at + piece.count
    rows = torch.cat([piece.job.frame.rows.tensor for piece in batch])
    return Rows.of(rows), route_rows.data, route_experts.data
