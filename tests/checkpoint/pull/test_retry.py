import email.utils
import threading
import time

import pytest

from expertfleet.checkpoint.pull.errors import PullError, TransientError
from expertfleet.checkpoint.pull.retry import Retries, RetryPolicy
from expertfleet.checkpoint.pull.source import _retry_after


class Stop(threading.Event):
    """Notes the pauses and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        return self.is_set()


def fail(pause_s: float = 0.0) -> None:
    raise TransientError("http://x/y: HTTP 503", pause_s)


def test_pauses_double_until_the_tries_are_used_up() -> None:
    stop, said = Stop(), list[str]()
    with pytest.raises(PullError, match="http://x/y: HTTP 503; given up after 6 tries"):
        Retries(RetryPolicy(), stop, said.append).run(fail)
    assert len(stop.pauses) == 5
    for pause, longest in zip(stop.pauses, (1, 2, 4, 8, 16), strict=True):
        assert longest / 2 <= pause <= longest
    assert said[4].startswith("http://x/y: HTTP 503; try 6 of 6 in ")


def test_a_server_may_ask_for_longer_but_not_for_ever() -> None:
    stop = Stop()
    with pytest.raises(PullError):
        Retries(RetryPolicy(tries=2), stop, print).run(lambda: fail(30.0))
    with pytest.raises(PullError):
        Retries(RetryPolicy(tries=2), stop, print).run(lambda: fail(1e9))
    assert stop.pauses == [30.0, 300.0]


def test_progress_forgets_the_failures() -> None:
    retries, calls = Retries(RetryPolicy(tries=2), Stop(), print), 0

    def attempt() -> int:
        nonlocal calls
        calls += 1
        if calls < 10:
            retries.progressed()
            fail()
        return calls

    assert retries.run(attempt) == 10


def test_a_pause_ends_when_all_is_stopped() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(PullError, match="stopped"):
        Retries(RetryPolicy(first_pause_s=60), stop, print).run(fail)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert _retry_after("7") == 7
    assert _retry_after("") == _retry_after("soon") == _retry_after("-1") == 0
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 90 < _retry_after(later) <= 100
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
