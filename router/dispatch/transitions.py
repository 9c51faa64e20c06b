"""The tables of a dispatch: what follows from each event of a frame, and from each event of the layer.

Knows nothing of lanes, rows and clocks. ``layer_dispatch.py`` does what the rows say and nothing else. An event that has no row in a state
cannot come, and is an error.
"""

from enum import IntEnum

from ...proto.errors import Code, FleetError
from ..lanes.frame_in_flight import FrameInFlight, FrameState

# Refusals after which a replica may answer the same routes.
RETRYABLE = frozenset(
    {
        Code.LANE_LOST,
        Code.DRAINING,
        Code.NOT_HELD,
        Code.STALE_EPOCH,
        Code.OVERLOADED,
        Code.INTERNAL,
        Code.FOREIGN_CHECKPOINT,
    }
)


class FrameEvent(IntEnum):
    ANSWER = 0  # the shard has answered some routes
    LAST_ANSWER = 1  # the shard has answered the last of them
    REFUSED = 2  # with an error after which a replica may answer
    OUT_OF_TIME = 3  # the shard was given less time than the layer has by now
    FATAL = 4  # with any other error
    OVERDUE = 5  # the wait is unusually long, and replicas were asked as well
    REPLACED = 6  # a hedge has answered first
    OUTRUN = 7  # the slow frame has answered first, or has failed with a fatal error
    HEDGES_LOST = 8  # a hedge was refused: all of them are given up
    PROMOTED = 9  # the slow frame has failed or was replaced; the hedge is the one frame for its routes


class FrameAction(IntEnum):
    NOTHING = 0
    TAKE = 1
    TAKE_AND_DROP_HEDGES = 2
    TAKE_AND_REPLACE_SLOW = 3
    ASK_REPLICA = 4
    ASK_AGAIN = 5
    PROMOTE_HEDGES = 6  # they are the frames for its routes
    DROP_HEDGES_OF_SLOW = 7
    RECHECK_ELSEWHERE = 8
    END = 9
    DROP = 10
    RELEASE = 11
    AVOID_AND_PROMOTE = 12  # the shard is not asked for these routes again


_S, _E, _A = FrameState, FrameEvent, FrameAction

# (state, event): (state, action)
ON_FRAME: dict[tuple[FrameState, FrameEvent], tuple[FrameState, FrameAction]] = {
    # The one frame for its routes.
    (_S.SENT, _E.ANSWER): (_S.SENT, _A.TAKE),
    (_S.SENT, _E.LAST_ANSWER): (_S.ANSWERED, _A.TAKE),
    (_S.SENT, _E.REFUSED): (_S.FAILED, _A.ASK_REPLICA),
    (_S.SENT, _E.OUT_OF_TIME): (_S.FAILED, _A.ASK_AGAIN),
    (_S.SENT, _E.FATAL): (_S.FAILED, _A.END),
    (_S.SENT, _E.OVERDUE): (_S.SLOW, _A.NOTHING),
    # A frame whose routes were asked of replicas as well.
    (_S.SLOW, _E.ANSWER): (_S.SENT, _A.TAKE_AND_DROP_HEDGES),
    (_S.SLOW, _E.LAST_ANSWER): (_S.ANSWERED, _A.TAKE_AND_DROP_HEDGES),
    (_S.SLOW, _E.REFUSED): (_S.FAILED, _A.AVOID_AND_PROMOTE),
    (_S.SLOW, _E.OUT_OF_TIME): (_S.FAILED, _A.PROMOTE_HEDGES),
    (_S.SLOW, _E.FATAL): (_S.FAILED, _A.END),
    (_S.SLOW, _E.REPLACED): (_S.GIVEN_UP, _A.RELEASE),
    (_S.SLOW, _E.HEDGES_LOST): (_S.SENT, _A.NOTHING),
    # A frame to a replica, for routes of a slow one.
    (_S.HEDGE, _E.ANSWER): (_S.SENT, _A.TAKE_AND_REPLACE_SLOW),
    (_S.HEDGE, _E.LAST_ANSWER): (_S.ANSWERED, _A.TAKE_AND_REPLACE_SLOW),
    (_S.HEDGE, _E.REFUSED): (_S.FAILED, _A.DROP_HEDGES_OF_SLOW),
    (_S.HEDGE, _E.OUT_OF_TIME): (_S.FAILED, _A.DROP_HEDGES_OF_SLOW),
    (_S.HEDGE, _E.FATAL): (_S.FAILED, _A.DROP_HEDGES_OF_SLOW),
    (_S.HEDGE, _E.OUTRUN): (_S.GIVEN_UP, _A.DROP),
    (_S.HEDGE, _E.HEDGES_LOST): (_S.GIVEN_UP, _A.DROP),
    (_S.HEDGE, _E.PROMOTED): (_S.SENT, _A.NOTHING),
    # A frame that asks a second replica for answers which were not finite.
    (_S.RECHECK, _E.ANSWER): (_S.RECHECK, _A.TAKE),
    (_S.RECHECK, _E.LAST_ANSWER): (_S.ANSWERED, _A.TAKE),
    (_S.RECHECK, _E.REFUSED): (_S.FAILED, _A.RECHECK_ELSEWHERE),
    (_S.RECHECK, _E.OUT_OF_TIME): (_S.FAILED, _A.RECHECK_ELSEWHERE),
    (_S.RECHECK, _E.FATAL): (_S.FAILED, _A.RECHECK_ELSEWHERE),
}


class Phase(IntEnum):
    ASKING = 0  # for first answers
    RECHECKING = 1  # second replicas are asked for what was not finite
    DONE = 2


class LayerEvent(IntEnum):
    FINITE = 0  # every route has an answer, and the sum is finite
    NOT_FINITE = 1  # every route has an answer, and the sum is not finite
    DEADLINE = 2
    DEADLINE_WITH_PATIENCE = 3  # nothing is under way, no shard holds an expert, and the router waits for one to come
    ERROR = 4  # of a frame
    CLOSED = 5  # by the engine


class LayerAction(IntEnum):
    CONCLUDE = 0
    RECHECK = 1
    EXTEND = 2
    FAIL_LATE = 3
    CONCLUDE_UNCONFIRMED = 4
    FAIL = 5


ON_LAYER: dict[tuple[Phase, LayerEvent], tuple[Phase, LayerAction]] = {
    (Phase.ASKING, LayerEvent.FINITE): (Phase.DONE, LayerAction.CONCLUDE),
    (Phase.ASKING, LayerEvent.NOT_FINITE): (Phase.RECHECKING, LayerAction.RECHECK),
    (Phase.ASKING, LayerEvent.DEADLINE): (Phase.DONE, LayerAction.FAIL_LATE),
    (Phase.ASKING, LayerEvent.DEADLINE_WITH_PATIENCE): (Phase.ASKING, LayerAction.EXTEND),
    (Phase.ASKING, LayerEvent.ERROR): (Phase.DONE, LayerAction.FAIL),
    (Phase.ASKING, LayerEvent.CLOSED): (Phase.DONE, LayerAction.FAIL),
    (Phase.RECHECKING, LayerEvent.FINITE): (Phase.DONE, LayerAction.CONCLUDE),
    (Phase.RECHECKING, LayerEvent.NOT_FINITE): (Phase.DONE, LayerAction.CONCLUDE),
    (Phase.RECHECKING, LayerEvent.DEADLINE): (Phase.DONE, LayerAction.CONCLUDE_UNCONFIRMED),
    (Phase.RECHECKING, LayerEvent.CLOSED): (Phase.DONE, LayerAction.FAIL),
}


def event_of(frame: FrameInFlight, error: FleetError, deadline: float) -> FrameEvent:
    """What an error of its shard is to a frame of a layer that has until ``deadline``."""
    if error.code is Code.EXPIRED and frame.deadline < deadline:
        return FrameEvent.OUT_OF_TIME
    return FrameEvent.REFUSED if error.code in RETRYABLE else FrameEvent.FATAL
