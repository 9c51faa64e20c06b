import random

import pytest

from expertfleet.router.lanes.latency import ExpertCost, LatencyTracker


def test_the_limit_follows_what_was_seen() -> None:
    pace = LatencyTracker()
    for _ in range(300):
        pace.observe(64, random.uniform(0.9, 1.1))
    assert 1.25 * 1.05 < pace.limit_s(64) < 1.25 * 1.1
    for _ in range(300):
        pace.observe(64, random.uniform(0.18, 0.22))
    assert 1.25 * 0.21 < pace.limit_s(64) < 1.25 * 0.22


def test_what_is_slow_now_and_then_stays_unusual_and_what_is_slow_often_does_not() -> None:
    pace = LatencyTracker()
    for number in range(1000):
        pace.observe(8, 2.0 if number % 25 == 0 else 0.1)
    assert pace.limit_s(8) == pytest.approx(0.125)
    for number in range(1000):
        pace.observe(8, 2.0 if number % 10 == 0 else 0.1)
    assert pace.limit_s(8) == pytest.approx(2.5)


def test_of_any_steady_history_few_waits_are_unusual() -> None:
    for draw in (
        lambda: random.expovariate(10.0),
        lambda: random.lognormvariate(-2, 1),
        lambda: random.gauss(0.2, 0.03),
    ):
        pace, unusual = LatencyTracker(), 0
        for _ in range(4000):
            seconds = draw()
            unusual += seconds > pace.limit_s(8)
            pace.observe(8, seconds)
        assert unusual <= 0.05 * 4000


def test_unknown_sizes_are_scaled_from_smaller_ones_and_nothing_known_is_a_second() -> None:
    pace = LatencyTracker()
    assert pace.limit_s(8) == 1.0
    for _ in range(100):
        pace.observe(8, 0.1)
    known = pace.limit_s(8)
    assert known == pytest.approx(0.125)
    assert pace.limit_s(80) == pytest.approx(8 * known)
    assert pace.limit_s(4) == 1.0


def test_no_limit_is_shorter_than_a_machines_hiccup() -> None:
    pace = LatencyTracker()
    for _ in range(50):
        pace.observe(1, 1e-4)
    assert pace.limit_s(1) == 0.05


def test_the_time_for_an_expert_is_smoothed_over_frames_of_all_sizes() -> None:
    pace = ExpertCost()
    assert pace.seconds(0.0) is None
    pace.observe(4, 0.4, 0.0)
    assert pace.seconds(0.0) == pytest.approx(0.1)
    pace.observe(1, 100.0, 0.5)
    assert pace.seconds(0.5) < 1.0
    for _ in range(500):
        size = random.choice([1, 8, 100])
        pace.observe(size, 0.02 * size, 1.0)
    assert pace.seconds(1.0) == pytest.approx(0.02, rel=0.2)


def test_a_shard_that_nobody_asks_has_no_time() -> None:
    pace = ExpertCost()
    pace.observe(2, 0.2, 5.0)
    assert pace.seconds(14.9) is not None
    assert pace.seconds(15.1) is None
