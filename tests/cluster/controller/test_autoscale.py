import pytest

from expertfleet.cluster.controller.autoscale import TARGET, WINDOW_S, BusyShares, wanted_shards


@pytest.mark.parametrize(
    ("busy", "wanted"),
    [
        ([TARGET] * 4, 4),
        ([TARGET] * 3 + [TARGET + 0.01], 5),
        ([1.0] * 7, 10),
        ([1.0, 0.4], 2),
        ([0.5, 0.5, 0.5, 0.1], 3),
    ],
)
def test_the_work_spread_over_what_is_wanted_keeps_each_busy_for_the_target(busy: list[float], wanted: int) -> None:
    assert wanted_shards(busy, [0] * len(busy), 100, 1.0) == wanted


@pytest.mark.parametrize(
    ("capacities", "replicas", "wanted"),
    [
        ([0, 0], 1.0, 1),
        ([0, 0], 2.0, 2),
        ([40, 40, 40], 1.0, 3),
        ([40, 40, 50], 1.25, 4),
        ([50, 50], 1.0, 2),
        ([1000, 1000], 1.0, 1),
    ],
)
def test_never_fewer_than_hold_every_copy(capacities: list[int], replicas: float, wanted: int) -> None:
    assert wanted_shards([0.0] * len(capacities), capacities, 100, replicas) == wanted


def test_nothing_is_wanted_of_what_nobody_measured() -> None:
    assert wanted_shards([], [40, 40], 100, 1.0) == 0


def test_a_share_is_what_was_computed_over_the_window() -> None:
    shares = BusyShares()
    for second in range(200):
        shares.note(1, 0.25 * second if second < 100 else 25 + 0.5 * (second - 100), second)
        if second == 99:
            assert shares.shares([1]) == [0.25]
    assert shares.shares([1]) == [0.5]


def test_who_has_not_been_heard_for_long_is_left_out() -> None:
    shares = BusyShares()
    for second in range(int(WINDOW_S)):
        shares.note(1, second, second)
        if second >= WINDOW_S / 2 + 1:
            shares.note(2, second, second)
    assert shares.shares([1, 2, 3]) == [1.0]
    shares.note(2, WINDOW_S * 2, WINDOW_S * 2)
    assert shares.shares([2]) == [], "what was said before the window is forgotten"


def test_a_lease_that_ended_is_forgotten() -> None:
    shares = BusyShares()
    for second in range(int(WINDOW_S)):
        shares.note(1, second, second)
    assert shares.shares([]) == []
    assert shares.shares([1]) == []
