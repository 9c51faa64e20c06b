"""What a lane asks of its connection, of either kind, and what a connection asks of its lane.

Knows nothing of sockets and streams. A connection is made on the IO loop and used on the reactor's thread.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...kernels.native_lanes import Calls, WorkerEnd
from ...proto.codec import Dispatch, Hello, Result
from ...proto.errors import FleetError
from ...proto.frame_prefix import DTYPE_CODES, Buffer
from ...proto.pair_frames import PairFrame
from ...proto.rows import Rows


@dataclass(slots=True)
class Sent:
    """A frame whose sending a compiled call has begun (``fanout.py``), and where its answers' addresses are to be written down."""

    frame_id: int
    rows: Rows  # of the layer; the frame has some of them
    num_rows: int
    num_routes: int
    routes: int  # address of int64 [N]
    unsent: tuple[Sequence[Buffer], int] | None = (
        None  # the frame's parts, and how many of its bytes the kernel did not take
    )
    places: int = 0  # address of int64 [T·K]: of each route's row
    memory: object = None  # what the answers lie in stays as long as this is kept, whatever becomes of the connection

    def expect(self, calls: Calls, end: int, results: int) -> None:
        """From now on the end at this address takes its answers, [N, H] to the address ``results``, for usual."""
        rows = self.rows
        calls.expect(
            end, self.frame_id, self.num_routes, rows.width, rows.row_bytes, DTYPE_CODES[rows.dtype],
            results, self.routes, self.places,
        )  # fmt: skip


class Owner(Protocol):
    """The lane that a connection belongs to; ``end`` is what compiled calls know of the connection."""

    seat: str
    address: str
    end: WorkerEnd
    limits: Hello
    version: int

    def received(self, connection: "Connection", data: Buffer) -> None: ...

    def answered(self, connection: "Connection", result: Result) -> None: ...

    def noted(self, frame_id: int, count: int) -> None:
        """A compiled call has read the next results of a frame and written down where they are."""
        ...


class Connection(Protocol):
    """What differs between the kinds of lanes; ``ended`` is the IO loop's."""

    ended: "asyncio.Future[FleetError]"

    @property
    def keeps_order(self) -> bool:
        """Whether results never come after an error that has overtaken them, as rows travel no other way than errors do."""
        ...

    def open(self, hello: bytes) -> None: ...

    def greeted(self, hello: Hello, version: int) -> None:
        """The shard has greeted as well; from now on frames are of this wire version."""
        ...

    def max_rows(self, hello: Hello, row_bytes: int, top_k: int) -> int: ...

    def post(self, frame: Dispatch, row_ids: torch.Tensor | None) -> None: ...

    def sent(self, sent: Sent) -> None:
        """As ``post``, for what a compiled call has sent by the lane's ``end``; says in it what the answers lie in."""
        ...

    def ignore(self, frame_id: int) -> None:
        """Nobody writes down any more where the frame's rows are."""
        ...

    def answer(self, frame: object) -> Result | None: ...

    def on_pair(self, frame: PairFrame) -> None:
        """Raises FleetError for what does not fit."""
        ...

    def cancel(self, frame_id: int) -> bool:
        """Whether the shard still has to say that it has ended the frame."""
        ...

    def free(self, frame_id: int) -> None: ...

    def end(self, error: FleetError) -> None: ...

    def discard(self) -> None:
        """On the IO loop: nobody will open it any more, if it is not open yet."""
        ...


def settle(future: "asyncio.Future[FleetError]", error: FleetError) -> None:
    if not future.done():
        future.set_result(error)
