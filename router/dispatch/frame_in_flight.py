"""One frame of a dispatch that is in flight, and its state."""

import torch

from ...proto.codec import Dispatch as Frame
from ..lanes.connection import Sent
from ..lanes.lane import Lane
from .shard_requests import Routes


class FrameInFlight:
    """The routes of one frame to one shard, in the frame's order (sorted by expert): a ``frame`` to be posted, with the rows ``row_ids`` of
    its own or all, or one that was ``sent`` by a compiled call."""

    __slots__ = (
        "deadline",
        "due_at",
        "frame",
        "frame_id",
        "given_up",
        "hedge_of",
        "hedges",
        "lane",
        "num_answered",
        "num_experts",
        "routes",
        "row_ids",
        "sent",
        "sent_at",
    )

    def __init__(
        self,
        lane: Lane,
        frame_id: int,
        routes: Routes,
        num_experts: int,
        frame: Frame | None = None,
        row_ids: torch.Tensor | None = None,
        sent: Sent | None = None,
    ) -> None:
        self.lane = lane
        self.frame_id = frame_id
        self.frame = frame
        self.row_ids = row_ids
        self.sent = sent  # keeps what the answers lie in
        self.routes = routes
        self.num_experts = num_experts  # that it activates
        self.num_answered = 0
        self.sent_at = 0.0
        self.deadline = 0.0  # the layer's at that time, which is what the shard was told of
        self.due_at: float | None = None  # then the wait is unusual; None until somebody asks
        self.hedges: list[FrameInFlight] = []  # the same routes asked of others, as this one is slow
        self.hedge_of: FrameInFlight | None = None
        self.given_up = False
