"""A shard that speaks the lane's protocol and computes ``row × (expert + 1)``; misbehaves when told to."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np
import torch

from expertfleet.proto.codec import Cancel, Dispatch, Hello, decode, encode_error, encode_hello, encode_result
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.rows import Rows
from expertfleet.transport.lane import server_options, stream_handler

LIMIT = 1 << 22


class FakeShard:
    """Lives on one loop; ``refuse``, ``pause`` and ``piece_routes`` change what it does from then on."""

    def __init__(self, seat: str) -> None:
        self.seat = seat
        self.address = ""
        self.refuse: FleetError | None = None
        self.pause = asyncio.Event()
        self.pause.set()
        self.piece_routes = 1000
        self.break_after_piece = False
        self.broken_experts: set[int] = set()  # answer what is not finite
        self.frames: list[Dispatch] = []
        self.cancelled: list[int] = []
        self._expires_after: int | None = None

    def expire_first(self, num_answered: int) -> None:
        """The next answer is that so many routes were answered when the frame's time was over."""
        self._expires_after = num_answered

    async def start(self, port: int = 0) -> None:
        self.server = grpc.aio.server(options=server_options(LIMIT))
        self.server.add_generic_rpc_handlers((stream_handler(self.stream),))
        port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()
        self.address = f"127.0.0.1:{port}"

    async def stop(self) -> None:
        await self.server.stop(grace=0)

    async def stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        async for data in requests:
            frame = decode(data, LIMIT)
            if isinstance(frame, Hello):
                await context.write(encode_hello(Hello(self.seat, frame.fingerprint, frame.dtype, LIMIT)))
            elif isinstance(frame, Cancel):
                self.cancelled.append(frame.frame_id)
            elif isinstance(frame, Dispatch):
                self.frames.append(frame)
                await self.answer(frame, context)

    async def answer(self, frame: Dispatch, context: grpc.aio.ServicerContext) -> None:
        await self.pause.wait()
        if self.refuse is not None:
            await context.write(encode_error(frame.frame_id, self.refuse))
            return
        rows = expected_rows(frame.rows.tensor[frame.route_rows.tolist()], torch.tensor(frame.route_experts.tolist()))
        rows[np.isin(frame.route_experts, list(self.broken_experts))] = float("inf")
        if (count := self._expires_after) is not None:
            self._expires_after = None
            if count:
                await context.write(encode_result(frame.frame_id, 0, len(rows), Rows.of(rows[:count].contiguous())))
            await context.write(encode_error(frame.frame_id, FleetError(Code.EXPIRED, "the frame's time was over")))
            return
        for first in range(0, len(rows), self.piece_routes):
            piece = Rows.of(rows[first : first + self.piece_routes].contiguous())
            await context.write(encode_result(frame.frame_id, first, len(rows), piece))
            if self.break_after_piece:
                await context.abort(grpc.StatusCode.UNAVAILABLE, f"{Code.LANE_LOST.name}: cut")


def expected_rows(rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """[N, H], [N] -> [N, H]: what an expert answers."""
    return (rows.float() * (experts + 1).unsqueeze(1)).to(rows.dtype)
