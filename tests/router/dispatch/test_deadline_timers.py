"""Whoever waits hears of its time once, and nobody does who ended before."""

import random
import time
from collections.abc import Iterator

import pytest

from expertfleet.router.dispatch.deadline_timers import DeadlineTimers
from expertfleet.transport.reactor import Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    yield reactor
    reactor.close()


def test_all_hear_once_in_time_whatever_the_order(reactor: Reactor) -> None:
    heard: dict[int, float] = {}
    waits: DeadlineTimers[int] = DeadlineTimers(reactor, lambda number: heard.setdefault(number, time.monotonic()))
    now = time.monotonic()
    ends = {number: now + random.uniform(0, 0.3) for number in range(50)}
    for number, at in ends.items():
        waits.end_at(number, at)
    for number in range(0, 50, 5):
        waits.forget(number)
    assert reactor.run(lambda: len(heard) == 40, 5)
    assert not waits
    reactor.run(lambda: False, 0.05)
    assert set(heard) == {number for number in ends if number % 5}
    assert all(0 <= heard[number] - ends[number] < 0.2 for number in heard)


def test_who_waits_again_from_within_is_heard_again_at_its_new_time(reactor: Reactor) -> None:
    heard: list[int] = []

    def call(number: int) -> None:
        heard.append(number)
        if heard.count(number) < 3:
            waits.end_at(number, time.monotonic() + 0.01)
        if number == 1:
            waits.forget(2)

    waits: DeadlineTimers[int] = DeadlineTimers(reactor, call)
    now = time.monotonic()
    waits.end_at(1, now)
    waits.end_at(2, now)
    waits.end_at(3, now + 0.001)
    assert reactor.run(lambda: len(heard) == 6, 5)
    assert sorted(heard) == [1, 1, 1, 3, 3, 3]
    assert not waits


def test_one_that_fails_takes_nobody_else_s_time(reactor: Reactor) -> None:
    heard: list[int] = []

    def call(number: int) -> None:
        heard.append(number)
        if number == 1:
            raise RuntimeError("on purpose")

    waits: DeadlineTimers[int] = DeadlineTimers(reactor, call)
    now = time.monotonic()
    for number in (1, 2):
        waits.end_at(number, now)
    waits.end_at(3, now + 0.01)
    assert reactor.run(lambda: heard == [1, 2, 3], 5)


def test_who_is_given_more_time_by_another_s_call_has_it(reactor: Reactor) -> None:
    heard: list[tuple[int, float]] = []
    later = time.monotonic() + 0.05

    def call(number: int) -> None:
        heard.append((number, time.monotonic()))
        if number == 1:
            waits.end_at(2, later)

    waits: DeadlineTimers[int] = DeadlineTimers(reactor, call)
    waits.end_at(1, later - 0.05)
    waits.end_at(2, later - 0.05)
    assert reactor.run(lambda: len(heard) == 2, 5)
    assert heard[1][1] >= later


def test_of_a_later_time_that_is_said_instead_only_that_one_counts(reactor: Reactor) -> None:
    heard: list[str] = []
    waits: DeadlineTimers[str] = DeadlineTimers(reactor, heard.append)
    waits.end_at("a", time.monotonic() + 0.01)
    waits.end_at("a", time.monotonic() + 0.1)
    reactor.run(lambda: False, 0.05)
    assert not heard
    assert reactor.run(lambda: heard == ["a"], 5)
