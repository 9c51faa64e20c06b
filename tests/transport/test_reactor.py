"""A reactor runs what is posted, timed and ready on its owner's thread, and never sleeps over any of it."""

import logging
import random
import socket
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from expertfleet.transport.reactor import Reactor


@pytest.fixture(params=[0.0, 0.001], ids=["sleeps", "spins"])
def reactor(request: pytest.FixtureRequest) -> Iterator[Reactor]:
    reactor = Reactor(request.param)
    yield reactor
    reactor.close()


def test_what_other_threads_post_runs_here_in_order(reactor: Reactor) -> None:
    ran: list[int] = []

    def post() -> None:
        for number in range(500):
            reactor.post(ran.append, number)
            if random.random() < 0.1:
                time.sleep(0.0005)

    poster = threading.Thread(target=post)
    poster.start()
    assert reactor.run(lambda: len(ran) == 500, 10)
    poster.join()
    assert ran == list(range(500))


def test_a_wake_is_never_lost(reactor: Reactor) -> None:
    """Whatever was changed before a wake is seen after the step that it ends or keeps from waiting."""
    given, taken = 0, 0
    done = threading.Event()

    def give() -> None:
        nonlocal given
        for _ in range(2000):
            given += 1
            reactor.wake()
            while taken < given:
                time.sleep(0)
        done.set()

    threading.Thread(target=give, daemon=True).start()
    deadline = time.monotonic() + 30
    while not done.is_set():
        reactor.step(5)
        taken = given
        assert time.monotonic() < deadline


def test_cancelled_timers_do_not_pile_up(reactor: Reactor) -> None:
    ran: list[int] = []
    for number in range(20):
        reactor.call_later(0.001, lambda number=number: ran.append(number))  # type: ignore[misc]
    for _ in range(5000):
        reactor.call_later(3600, lambda: None).cancel()
    assert len(reactor._timers) < 500
    assert reactor.run(lambda: len(ran) == 20, 10)
    assert ran == list(range(20))


def test_timers_run_in_their_order_and_cancelled_ones_do_not(reactor: Reactor) -> None:
    ran: list[str] = []
    reactor.call_later(0.05, lambda: ran.append("second"))
    reactor.call_later(0.02, lambda: ran.append("first"))
    reactor.call_later(0.03, lambda: ran.append("never")).cancel()
    began = time.monotonic()
    assert reactor.run(lambda: len(ran) == 2, 5)
    assert time.monotonic() - began >= 0.05
    assert ran == ["first", "second"]


def test_a_cancelled_timer_lets_go_of_what_it_would_have_called(reactor: Reactor) -> None:
    class Heavy:
        def expire(self) -> None: ...

    heavy = Heavy()
    alive = weakref.ref(heavy)
    reactor.call_later(3600, heavy.expire).cancel()
    del heavy
    assert alive() is None


def test_sockets_are_read_and_written_when_they_can_be(reactor: Reactor) -> None:
    here, there = socket.socketpair()
    with here, there:
        seen: list[str] = []
        reactor.watch(here, lambda: seen.append("read"))
        reactor.step(0)
        assert not seen
        there.send(b"x")
        reactor.step(5)
        assert seen == ["read"]
        reactor.watch(here, lambda: here.recv(1), lambda: seen.append("write"))
        reactor.step(5)
        assert seen == ["read", "write"]
        reactor.unwatch(here)
        reactor.unwatch(here)
        reactor.step(0)
        assert seen == ["read", "write"]


def test_a_call_that_fails_is_logged_and_the_others_run(reactor: Reactor, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []
    reactor.post(lambda: 1 / 0)
    reactor.post(ran.append, 1)
    with caplog.at_level(logging.ERROR):
        reactor.step(5)
    assert ran == [1]
    assert "ZeroDivisionError" in caplog.text


def test_posting_to_a_closed_reactor_does_nothing() -> None:
    reactor = Reactor()
    reactor.close()
    reactor.post(print)
    reactor.wake()
