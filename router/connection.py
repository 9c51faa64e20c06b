"""What a lane asks of its connection, of either kind, and what a connection asks of its lane.

Knows nothing of sockets and streams. A connection is made on the IO loop and used on the reactor's thread.
"""

import asyncio
from typing import Protocol

import torch

from ..proto.codec import Dispatch, Hello, Result
from ..proto.errors import FleetError
from ..proto.layout import Buffer
from ..proto.pair_frames import PairFrame


class Owner(Protocol):
    """The lane that a connection belongs to."""

    seat: str
    address: str

    def received(self, connection: "Connection", data: Buffer) -> None: ...

    def answered(self, connection: "Connection", result: Result) -> None: ...


class Connection(Protocol):
    """What differs between the kinds of lanes; ``ended`` is the IO loop's."""

    ended: "asyncio.Future[FleetError]"

    def open(self, hello: bytes) -> None: ...

    def greeted(self, hello: Hello, version: int) -> None:
        """The shard has greeted as well; from now on frames are of this wire version."""
        ...

    def max_rows(self, hello: Hello, row_bytes: int, top_k: int) -> int: ...

    def post(self, frame: Dispatch, row_ids: torch.Tensor | None) -> None: ...

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
