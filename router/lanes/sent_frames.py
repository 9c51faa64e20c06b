"""The frames that one connection of a lane has carried, and what the shard owes to each: whether an answer may come.

Knows nothing of connections and dispatches. A frame is one of four: *open*, and the shard answers its routes in their order, each once,
or with one error; *ended*, as the shard has said all of that; *given up* by this end before, and what comes late is passed over, but
in order and once as well; or never sent. Whatever else a shard says of a frame is a fault.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...proto.codec import Result
from ...proto.errors import FleetError

Sink = Callable[[Result | FleetError], None]
_MOST_GIVEN_UP = 4096


@dataclass(slots=True)
class SentFrame:
    """Its memory is free when the shard has ended it and nobody needs its answers."""

    sink: Sink | None  # None where nobody needs its answers any more
    num_routes: int
    width: int
    dtype: torch.dtype
    on_noted: Callable[[int], None] | None = None  # hears of that many more routes
    num_answered: int = 0
    failed: bool = False  # the shard has answered with an error
    all_counted: bool = True  # False where some that came were perhaps not looked at, and not counted

    @property
    def num_left(self) -> int:
        """Routes without an answer; 0 also after an error."""
        return 0 if self.failed else self.num_routes - self.num_answered

    def take(self, result: Result) -> bool:
        """Whether it answers the next routes, with rows as they were asked for; they are answered then."""
        first, count, rows = result.first_route, result.rows.count, result.rows
        is_next = first == self.num_answered or (first > self.num_answered and not self.all_counted)
        if not is_next or result.num_routes != self.num_routes or first + count > self.num_routes:
            return False
        if (rows.width, rows.dtype) != (self.width, self.dtype):
            return False
        self.num_answered = first + count
        return True

    def __str__(self) -> str:
        return f"{self.num_answered} of {self.num_routes} answered, rows {self.width} wide, {self.dtype}"


class SentFrames:
    """By their ids, which grow."""

    def __init__(self) -> None:
        self.open: dict[int, SentFrame] = {}  # or ended, but still of use
        self._given_up: dict[int, SentFrame] = {}
        self._forgotten_to = 0  # of older ones it may not be known that they were given up

    def __getitem__(self, frame_id: int) -> SentFrame | None:
        """None for one of which the shard must say nothing, or that is too old to know; ``is_too_old`` tells."""
        return self.open.get(frame_id) or self._given_up.get(frame_id)

    def is_too_old(self, frame_id: int) -> bool:
        """Whether it may be one of very many that were given up after it."""
        return 0 < frame_id <= self._forgotten_to

    def end(self, frame_id: int) -> None:
        """The shard has said all, and nobody needs it."""
        self.open.pop(frame_id, None)
        self._given_up.pop(frame_id, None)

    def give_up(self, frame_id: int) -> None:
        """The shard may still answer, or not."""
        self._given_up[frame_id] = frame = self.open.pop(frame_id)
        frame.sink = frame.on_noted = None
        frame.all_counted = False
        if len(self._given_up) > _MOST_GIVEN_UP:
            oldest = next(iter(self._given_up))
            del self._given_up[oldest]
            self._forgotten_to = max(self._forgotten_to, oldest)
