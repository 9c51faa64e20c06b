"""The tables of failover: what follows when a worker fails a sequence, and when a sequence runs alone.

Knows nothing of workers and calls. ``failover.py`` does what the rows say and nothing else; a case without a row is an error.
"""

from enum import Enum

from ...proto.errors import Code


class Stage(Enum):
    """How far a sequence is."""

    OFFERED = "no worker has taken it"
    TAKEN = "a worker has taken it; no token has come"
    STARTED = "tokens have come"


class Verdict(Enum):
    """What a failure says of its worker. It stands for as long as the sequence runs, unless noted."""

    FAILED = "the sequence does not ask it again"
    FULL = "it has too many requests; until a worker takes the sequence"
    NOT_READY = "it has no experts to ask yet; until the sequence has waited"
    OTHER_CLASS = "it would continue with other last bits; until the answer's numerics class changes"


class Next(Enum):
    OTHER = "another worker goes on"
    ONE_OTHER = "another worker goes on if this is the first failure; else the sequence ends with this error"
    END = "the sequence ends with this error"


_STAGES = tuple(Stage)
_LIES_IN_THE_REQUEST = frozenset(Code) - {
    *(
        Code.LANE_LOST,
        Code.DRAINING,
        Code.NOT_READY,
        Code.OVERLOADED,
        Code.NO_REPLICA,
        Code.INTERNAL,
        Code.WRONG_NUMERICS,
    )
}

# (stage, error of the worker): (verdict on the worker, what the sequence does)
ON_FAILURE: dict[tuple[Stage, Code], tuple[Verdict | None, Next]] = {
    # The worker has gone or goes.
    **{(stage, Code.LANE_LOST): (Verdict.FAILED, Next.OTHER) for stage in _STAGES},
    **{(stage, Code.DRAINING): (Verdict.FAILED, Next.OTHER) for stage in _STAGES},
    # The worker will serve.
    **{(stage, Code.NOT_READY): (Verdict.NOT_READY, Next.OTHER) for stage in _STAGES},
    # The worker serves others.
    (Stage.OFFERED, Code.OVERLOADED): (Verdict.FULL, Next.OTHER),
    (Stage.TAKEN, Code.OVERLOADED): (Verdict.FAILED, Next.ONE_OTHER),
    (Stage.STARTED, Code.OVERLOADED): (Verdict.FAILED, Next.OTHER),
    # The worker, or the sequence: without a token one other worker tells.
    (Stage.OFFERED, Code.NO_REPLICA): (Verdict.FAILED, Next.ONE_OTHER),
    (Stage.TAKEN, Code.NO_REPLICA): (Verdict.FAILED, Next.ONE_OTHER),
    (Stage.STARTED, Code.NO_REPLICA): (Verdict.FAILED, Next.OTHER),
    (Stage.OFFERED, Code.INTERNAL): (Verdict.FAILED, Next.ONE_OTHER),
    (Stage.TAKEN, Code.INTERNAL): (Verdict.FAILED, Next.ONE_OTHER),
    (Stage.STARTED, Code.INTERNAL): (Verdict.FAILED, Next.OTHER),
    # The worker came to another numerics class.
    (Stage.OFFERED, Code.WRONG_NUMERICS): (None, Next.ONE_OTHER),
    (Stage.TAKEN, Code.WRONG_NUMERICS): (None, Next.ONE_OTHER),
    (Stage.STARTED, Code.WRONG_NUMERICS): (Verdict.OTHER_CLASS, Next.OTHER),
    **{(stage, code): (Verdict.FAILED, Next.END) for stage in _STAGES for code in _LIES_IN_THE_REQUEST},
}


class Isolation(Enum):
    """Whether a sequence that may kill its workers runs alone among the suspects."""

    NONE = "it runs as every other sequence"
    WANTED = "it waits for its turn"
    RUNNING = "it runs; other suspects wait"


class Event(Enum):
    SHARED_DEATHS = "as many workers died under it as may, and under other sequences too"
    TURN = "no other suspect runs"
    CLEARED = "another sequence is to blame, or it is well beyond the place"
    DEATH = "its worker died"
    END = "the sequence has ended"


# (isolation, event): isolation
ON_EVENT: dict[tuple[Isolation, Event], Isolation] = {
    (Isolation.NONE, Event.SHARED_DEATHS): Isolation.WANTED,
    (Isolation.NONE, Event.DEATH): Isolation.NONE,
    (Isolation.NONE, Event.END): Isolation.NONE,
    (Isolation.WANTED, Event.TURN): Isolation.RUNNING,
    (Isolation.WANTED, Event.END): Isolation.NONE,
    (Isolation.RUNNING, Event.CLEARED): Isolation.NONE,
    (Isolation.RUNNING, Event.DEATH): Isolation.NONE,
    (Isolation.RUNNING, Event.END): Isolation.NONE,
}


def isolation_after(isolation: Isolation, event: Event) -> Isolation:
    """Raises RuntimeError for an event that cannot come in that state."""
    if (isolation, event) not in ON_EVENT:
        raise RuntimeError(
            f"isolation is {isolation.name} and {event.name} came: no row of the table says what follows"
        )
    return ON_EVENT[isolation, event]
