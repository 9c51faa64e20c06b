import pytest
from harness.growth import find_growth, find_replaced, growth_failures
from harness.plan import Expect
from harness.processes import Process

BEFORE = {
    "controller": Process(1, 10, 20, 1000, 0),
    "expert-0": Process(2, 10, 20, 1024, 1 << 20),
    "expert-1": Process(3, 10, 20, 1000, 0),
    "expert-2": Process(4, 10, 20, 1000, 0),
}
AFTER = {
    "controller": Process(1, 99, 5, 10, 0),  # the pid again, but another process
    "expert-0": Process(2, 10, 23, 1536, 3 << 20),
    "expert-1": Process(9, 12, 90, 9000, 9 << 20),
}


def test_only_a_process_that_stayed_can_have_grown() -> None:
    (one,) = find_growth(BEFORE, AFTER)
    assert (one.seat, one.fds, one.rss_mib, one.rss_percent, one.read_mib) == ("expert-0", (20, 23), (1, 1.5), 50, 2)


def test_replaced_is_whom_no_step_ended() -> None:
    assert find_replaced(BEFORE, AFTER, ended=()) == ("controller", "expert-1", "expert-2")
    assert find_replaced(BEFORE, AFTER, ended=(1, 3)) == ("expert-2",)
    assert find_replaced(BEFORE, BEFORE, ended=()) == ()


@pytest.mark.parametrize(
    ("limits", "failures"),
    [
        ({}, []),
        ({"fd_growth": 3, "rss_growth_percent": 50, "read_mib": 2, "replaced": 2}, []),
        ({"fd_growth": 2}, ["expert-0: 3 more open files, at most 2 tolerated"]),
        ({"rss_growth_percent": 1.0}, ["expert-0: its memory grew by 50.00 %, at most 1 % tolerated"]),
        ({"read_mib": 1.0}, ["expert-0: it read 2.00 MiB, at most 1 tolerated"]),
        ({"replaced": 0}, ["controller, expert-1: another process, at most 0 tolerated"]),
    ],
)
def test_what_the_plan_does_not_tolerate_is_a_failure(limits: dict[str, float], failures: list[str]) -> None:
    expect = Expect(0, 0, **limits)  # type: ignore[arg-type]
    assert growth_failures(expect, find_growth(BEFORE, AFTER), ("controller", "expert-1")) == failures


def test_what_others_than_shards_read_is_not_limited() -> None:
    grown = find_growth({"gateway-0": BEFORE["expert-0"]}, {"gateway-0": AFTER["expert-0"]})
    assert growth_failures(Expect(0, 0, read_mib=0), grown, ()) == []
