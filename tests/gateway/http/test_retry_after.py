"""When a client that was sent away may ask again."""

from collections import deque
from collections.abc import Sequence

import pytest

from expertfleet.gateway.http.errors import ApiError, from_fleet, shutting_down
from expertfleet.gateway.http.retry_after import MOST_S, RetryAfter
from expertfleet.proto.errors import Code, FleetError

FULL = from_fleet(FleetError(Code.OVERLOADED, "no room"))


@pytest.mark.parametrize(
    ("waits", "least", "most"),
    [
        ((), 2, 4),
        ((0.1, 0.2), 2, 4),
        ((4.0, 6.5, 7.5), 6, 12),
        ((40.0,), 40, MOST_S),
        ((700.0,), MOST_S, MOST_S),
    ],
)
def test_whoever_finds_all_workers_full_waits_as_long_as_others_did_or_up_to_twice_as_long(
    waits: Sequence[float], least: int, most: int
) -> None:
    found = {RetryAfter(2, deque(waits)).seconds(FULL) for _ in range(2000)}
    assert (min(found), max(found)) == (least, most)


@pytest.mark.parametrize("code", [Code.NOT_READY, Code.NO_REPLICA, Code.LANE_LOST, Code.DRAINING])
def test_whoever_misses_something_else_waits_as_the_setting_says(code: Code) -> None:
    assert RetryAfter(3, deque([50.0])).seconds(from_fleet(FleetError(code, "no"))) == 3


def test_a_setting_longer_than_that_counts() -> None:
    assert RetryAfter(90, deque([1.0])).seconds(FULL) == 90


def test_only_what_passes_may_be_asked_again() -> None:
    assert FULL.is_passing
    assert shutting_down().is_passing
    assert not ApiError("invalid_value", "no").is_passing
    assert not from_fleet(FleetError(Code.DEADLINE, "late")).is_passing
