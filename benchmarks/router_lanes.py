"""A router with lanes of one kind, as an attention worker has it, without an attention worker: what benchmarks drive.

Knows nothing of what experts cost and of what is timed. A run keeps some layers under way, each of a micro-batch of its own: the
first one goes through the first MoE layer, the next one through the next, so that a shard can merge two of them only where the
model has fewer MoE layers. They go on in the order in which their experts answer, as in the engine.
"""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch

from expertfleet.checkpoint.model_config import ModelConfig
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.membership.epoch import Epoch, EpochId, Member
from expertfleet.proto.codec import Hello
from expertfleet.router.dispatch.layer_dispatch import LayerDispatch
from expertfleet.router.router import Router
from expertfleet.settings.heap import keep_large_blocks
from expertfleet.transport.io_thread import IoThread
from expertfleet.transport.reactor import Reactor

KINDS = ("local", "tcp", "grpc")
_LIMIT = 64 << 20
_PATIENCE_S = 60.0
_TICK_S = 0.05

Draw = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows [T, H], ids and weights [T, K] of the top-k


class Lanes:
    """``kind`` is local (sockets and shared memory), tcp (beside gRPC) or grpc; ready when built."""

    def __init__(
        self,
        kind: str,
        checkpoint: Checkpoint,
        members: Sequence[Member],
        io: IoThread,
        spin_us: int = 0,
    ) -> None:
        keep_large_blocks()
        self.kind = kind
        self._layers = checkpoint.config.moe_layers
        self._reactor = Reactor(spin_us / 1e6)
        hello = Hello("attention-0", checkpoint.fingerprint, "bfloat16", _LIMIT)
        allowed = {"local_lanes": kind == "local", "tcp_lanes": kind == "tcp"}
        self.router = Router(io, self._reactor, hello, _PATIENCE_S, **allowed)
        self.router.set_epoch(Epoch(EpochId(1, 1), checkpoint.fingerprint, "bfloat16", tuple(members), (), True))
        ends_at = time.monotonic() + _PATIENCE_S
        while not (self.router.usable and self._beside_usable()):
            assert time.monotonic() < ends_at, f"no {kind} lane to some shard"
            self._reactor.step(_TICK_S)

    def _beside_usable(self) -> bool:
        """Whether all rows go the way that they shall."""
        connections: list[Any] = [lane._connection for lane in self.router._lanes.values() if lane.up]
        if self.kind == "tcp":
            return all(connection._tcp.is_usable for connection in connections)
        return True

    def wait(self, dispatch: LayerDispatch) -> None:
        """Until it is answered."""
        assert self._reactor.run(lambda: dispatch.done, 2 * _PATIENCE_S)
        assert dispatch.error is None, dispatch.error

    def run(self, draws: Sequence[Draw], layers: int, in_flight: int) -> list[float]:
        """Seconds of each layer from dispatch to combine, with so many of them under way at once."""
        finished: deque[tuple[int, float, LayerDispatch]] = deque()
        left = iter([draws[index % len(draws)] for index in range(layers)])

        def start(micro_batch: int) -> None:
            if draw := next(left, None):
                layer, began = self._layers[micro_batch % len(self._layers)], time.perf_counter()
                dispatch = self.router.dispatch(layer, *draw)
                dispatch.when_done(lambda: finished.append((micro_batch, began, dispatch)))

        for micro_batch in range(in_flight):
            start(micro_batch)
        times: list[float] = []
        while len(times) < layers:
            assert self._reactor.run(lambda: bool(finished), 2 * _PATIENCE_S)
            micro_batch, began, dispatch = finished.popleft()
            with closing(dispatch):
                assert dispatch.error is None, dispatch.error
                dispatch.combined()
            times.append(time.perf_counter() - began)
            start(micro_batch)
        return times

    def end(self) -> None:
        self.router.close()


def random_draw(tokens: int, config: ModelConfig) -> Draw:
    """Rows whose experts are as likely as each other."""
    weights, ids = torch.rand(tokens, config.num_experts).topk(config.top_k)
    return torch.randn(tokens, config.hidden_size).bfloat16(), ids, weights
