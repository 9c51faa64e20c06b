import math

import pytest

from expertfleet.demo.evaluate import Score, wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    # Newcombe (1998), table I: 81/263 and 0/20; the last by the formula at a rate of one.
    [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0)],
)
def test_the_interval_is_wilsons(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_nothing_asked_is_nothing_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_bound_nearer_to_failure_decides() -> None:
    good = Score("due", 0.95, outcomes=[True] * 490 + [False] * 10)
    assert good.met
    assert good.interval[0] >= 0.95
    assert not Score("due", 0.95, outcomes=[True] * 480 + [False] * 20).met
    assert Score("none due", 0.02, at_most=True, outcomes=[False] * 500).met
    assert not Score("none due", 0.02, at_most=True, outcomes=[False] * 490 + [True] * 10).met
    assert not Score("due", 0.95).met
    assert Score("told only").met


def test_a_line_tells_rate_interval_and_verdict() -> None:
    line = Score("due", 0.95, outcomes=[True] * 9 + [False]).line()
    assert "90.00 % of   10" in line
    assert "MISSED" in line
    assert math.isclose(float(line.split("of   10")[1].split("to")[0]), 59.58, abs_tol=0.01)
