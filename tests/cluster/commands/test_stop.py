import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from expertfleet.cluster.commands.stop import Stop, StopAsked
from expertfleet.cluster.errors import ClusterError


@pytest.fixture
def stop() -> Iterator[Stop]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    installed = Stop()
    installed.install()
    yield installed
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_ends_waiting(stop: Stop) -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(StopAsked):
        stop.wait_until(lambda: False, 10)


def test_a_tolerated_signal_does_not_but_the_next_one_does(stop: Stop) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    stop.tolerated = 1
    assert stop.wait_until(lambda: True, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StopAsked):
        stop.wait_until(lambda: True, 1)


def test_waiting_ends_with_the_condition_or_the_time(stop: Stop) -> None:
    began = time.monotonic()
    assert not stop.wait_until(lambda: False, 0.2)
    assert stop.wait_until(lambda: time.monotonic() - began > 0.3, 5)


def test_work_aside_answers_fails_or_takes_too_long(stop: Stop) -> None:
    def fail() -> None:
        raise ClusterError("broken")

    assert stop.run(lambda: 7, 5) == 7
    assert stop.run(lambda: time.sleep(1), 0.1) is None
    with pytest.raises(ClusterError, match="broken"):
        stop.run(fail, 5)


def test_a_signal_need_not_wait_for_work_aside(stop: Stop) -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    with pytest.raises(StopAsked):
        stop.run(lambda: time.sleep(2), 10)
    assert time.monotonic() - began < 1.5
