"""The shard's end of a lane's pairs: large rows come and results go beside the stream instead of on it.

Knows nothing of how rows travel. ``deliver`` belongs to the runtime's thread, the rest to the IO loop. The worker's end decides
when a generation begins; either end may end it.
"""

import asyncio
import time
from collections.abc import Callable

import torch

from ..proto.codec import Dispatch
from ..proto.errors import Code, FleetError
from ..proto.group_frames import AckPg, DispatchPg, GroupFrame, GroupOffer, ResultPg, encode_ack_pg, encode_result_pg
from ..proto.rows import Rows
from ..transport.pair import Pair
from ..transport.pair_group import PairSettings, join_pair
from .pool import Job

Piece = Callable[[Job, int, Rows], None]


class ShardPairs:
    """``send`` puts a frame on the stream and ``over_stream`` a result, both from any thread; ``admit`` takes a dispatch."""

    def __init__(
        self,
        settings: PairSettings,
        worker: str,
        max_frame_bytes: int,
        version: int,
        send: Callable[[bytes], None],
        over_stream: Piece,
        admit: Callable[[Dispatch], None],
    ) -> None:
        self._settings, self._worker, self._max_frame_bytes, self._version = settings, worker, max_frame_bytes, version
        self._send, self._over_stream, self._admit = send, over_stream, admit
        self._loop = asyncio.get_running_loop()
        self._announced: set[int] = set()  # frames whose rows have not come and are still wanted
        self.pair: Pair | None = None

    def deliver(self, job: Job, first_route: int, rows: Rows) -> None:
        """In pieces that fit the worker's limit; a frame's pieces arrive in their order, whichever way each goes."""
        step = max(1, self._max_frame_bytes // rows.row_bytes)
        for start in range(0, rows.count, step):
            piece = rows.part(start, min(step, rows.count - start))
            if not self._offer(job, first_route + start, piece):
                self._over_stream(job, first_route + start, piece)

    def received(self, frame: GroupFrame) -> None:
        """Raises FleetError for what does not fit."""
        current = 0 if self.pair is None else self.pair.generation
        match frame:
            case GroupOffer() if frame.generation > current:
                self._begin(frame)
            case DispatchPg() if self.pair is not None and frame.generation == current:
                self._expect(self.pair, frame)
            case AckPg() if self.pair is not None and frame.generation == current:
                self.pair.taken(frame)
            case AckPg() if frame.ended and frame.generation > current:
                self._say(AckPg(frame.generation, 0, True))  # it ended before it was told of
            case AckPg() | DispatchPg() if frame.generation < current:
                pass  # both ends have ended it; what it had comes over the stream
            case _:
                raise FleetError(Code.BAD_FRAME, f"a misfit {type(frame).__name__} frame")

    def cancel(self, frame_id: int) -> None:
        self._announced.discard(frame_id)

    def close(self) -> None:
        self._announced.clear()
        if self.pair is not None:
            self.pair.close()

    def _begin(self, at: GroupOffer) -> None:
        if self.pair is not None:
            self.pair.close()
        self._announced.clear()
        self.pair = Pair(self._worker, at.generation, lambda: join_pair(self._settings, at.address), self._say)

    def _say(self, taken: AckPg) -> None:
        self._send(encode_ack_pg(taken, self._version))

    def _offer(self, job: Job, first_route: int, piece: Rows) -> bool:
        pair, frame_id = self.pair, job.frame.frame_id
        if pair is None or (piece.nbytes < self._settings.least_bytes and not pair.keeps(frame_id)):
            return False

        def announce(number: int) -> None:
            transfer = (piece.dtype, piece.count, piece.width, pair.generation, number)
            result = ResultPg(frame_id, first_route, job.num_routes, *transfer)
            self._send(encode_result_pg(result, self._version))

        def over_stream() -> None:
            self._over_stream(job, first_route, piece)

        return pair.offer(frame_id, piece.tensor, job.expires_at, announce, over_stream)

    def _expect(self, pair: Pair, frame: DispatchPg) -> None:
        expires_at = time.monotonic() + frame.timeout_us / 1e6

        def take(rows: torch.Tensor) -> None:
            self._loop.call_soon_threadsafe(self._arrive, frame, expires_at, rows)

        self._announced.add(frame.frame_id)
        pair.expect(frame.number, (frame.num_rows, frame.hidden), frame.dtype, expires_at, take)

    def _arrive(self, frame: DispatchPg, expires_at: float, rows: torch.Tensor) -> None:
        if frame.frame_id not in self._announced:
            return
        self._announced.discard(frame.frame_id)
        left_us = max(0, int((expires_at - time.monotonic()) * 1e6))
        dispatch = Dispatch(
            frame.frame_id, frame.fingerprint, frame.epoch, frame.layer, frame.priority, left_us,
            Rows.of(rows), frame.route_rows, frame.route_experts,
        )  # fmt: skip
        self._admit(dispatch)
