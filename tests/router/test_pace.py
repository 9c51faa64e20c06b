import random

import pytest

from expertfleet.router.pace import ExpertPace, Pace


def test_the_limit_follows_what_was_seen() -> None:
    pace = Pace()
    for _ in range(200):
        pace.observe(64, random.uniform(0.9, 1.1))
    assert 1.0 < pace.limit_s(64) < 1.6
    for _ in range(200):
        pace.observe(64, random.uniform(0.18, 0.22))
    assert 0.2 < pace.limit_s(64) < 0.35


def test_unknown_sizes_are_scaled_from_smaller_ones_and_nothing_known_is_a_second() -> None:
    pace = Pace()
    assert pace.limit_s(8) == 1.0
    for _ in range(100):
        pace.observe(8, 0.1)
    known = pace.limit_s(8)
    assert known == pytest.approx(0.1, rel=0.05)
    assert pace.limit_s(80) == pytest.approx(8 * known)
    assert pace.limit_s(4) == 1.0


def test_no_limit_is_shorter_than_a_machines_hiccup() -> None:
    pace = Pace()
    for _ in range(50):
        pace.observe(1, 1e-4)
    assert pace.limit_s(1) == 0.05


def test_the_time_for_an_expert_is_smoothed_over_frames_of_all_sizes() -> None:
    pace = ExpertPace()
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
    pace = ExpertPace()
    pace.observe(2, 0.2, 5.0)
    assert pace.seconds(14.9) is not None
    assert pace.seconds(15.1) is None
