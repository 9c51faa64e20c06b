"""What a lane asks of its connection, of either kind, and what a connection asks of its lane.

Knows nothing of sockets and streams. A connection is made on the IO loop and used on the reactor's thread.
"""

import asyncio
from typing import Protocol

import torch

from ...kernels.native_lanes import WorkerEnd
from ...proto.codec import Dispatch, Hello, Result
from ...proto.errors import FleetError
from ...proto.frame_prefix import Buffer
from ...proto.group_frames import GroupFrame
from .frame_in_flight import FrameInFlight


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

    def sent(self, frame: FrameInFlight) -> None:
        """As ``post``, for a frame that a compiled call has sent by the lane's ``end``; gives it the memory that the answers lie in."""
        ...

    def ignore(self, frame_id: int) -> None:
        """Nobody writes down any more where the frame's rows are."""
        ...

    def answer(self, frame: object) -> Result | None: ...

    def on_pair(self, frame: GroupFrame) -> None:
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


class SideChannel(Protocol):
    """A way beside the lane's stream, which the stream announces; rows that do not come by it go over the stream."""

    def post(self, frame: Dispatch) -> bool:
        """Whether the frame goes this way; where not, the next way or the stream carries it."""
        ...

    def cancel(self, frame_id: int) -> bool:
        """Whether the frame went this way, as now its cancel does."""
        ...

    def free(self, frame_id: int) -> None: ...

    def close(self) -> None: ...


def settle(future: "asyncio.Future[FleetError]", error: FleetError) -> None:
    if not future.done():
        future.set_result(error)
