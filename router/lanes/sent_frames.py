"""The frames that one connection of a lane has carried, by id: whether an answer may still come.

Knows nothing of connections and dispatches. A frame is one of four: *open*, and the shard answers its routes in their order, each once,
or with one error; *ended*, as the shard has said all of that; *given up* by the router before that, and late answers are passed over,
but in order and once as well; or never sent. Whatever else a shard says of a frame is a fault.
"""

from .frame_in_flight import FrameInFlight

_MOST_GIVEN_UP = 4096


class SentFrames:
    """Ids grow."""

    def __init__(self) -> None:
        self.open: dict[int, FrameInFlight] = {}  # or ended, but still of use
        self._given_up: dict[int, FrameInFlight] = {}
        self._forgotten_to = 0  # of older frames it may not be known that they were given up

    def __getitem__(self, frame_id: int) -> FrameInFlight | None:
        """None for a frame of which the shard must say nothing, or that is too old to know; ``is_too_old`` tells."""
        return self.open.get(frame_id) or self._given_up.get(frame_id)

    def is_too_old(self, frame_id: int) -> bool:
        """Whether the frame may be one of very many that were given up after it."""
        return 0 < frame_id <= self._forgotten_to

    def end(self, frame_id: int) -> None:
        """The shard has said all, and no dispatch needs it."""
        self.open.pop(frame_id, None)
        self._given_up.pop(frame_id, None)

    def give_up(self, frame_id: int) -> None:
        """The shard may still answer, or not."""
        self._given_up[frame_id] = frame = self.open.pop(frame_id)
        frame.let_go()
        frame.all_counted = False
        if len(self._given_up) > _MOST_GIVEN_UP:
            oldest = next(iter(self._given_up))
            del self._given_up[oldest]
            self._forgotten_to = max(self._forgotten_to, oldest)
