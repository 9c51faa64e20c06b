"""One generation of a pair at one of its ends: transfers in order, kept until they were taken, given back to the lane if not.

Knows nothing of what rows mean. ``offer`` and ``expect`` may be called from any thread and never wait; two threads of its own
wait, one for each direction, and end soon after ``close``.
1. The groups are formed; an end that has formed says ACK_PG 0, and a pair is usable when both have; 2. what is offered is announced
on the lane first, then sent; the other end receives in the order of the announcements and says how many it has ACK_PG; 3. an
operation that fails, or that nobody takes in time, ends the generation: each end says how many it has taken in all, and what
the other one kept beyond those goes over the lane, in order. So each transfer is handed over exactly once.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..proto.errors import Code, FleetError
from ..proto.group_frames import AckPg
from .pair_group import Groups

logger = logging.getLogger(__name__)

# A transfer that is expected to take longer than this is better off on the lane, however much time the frame has.
_LONGEST_S = 5.0
_SHORTEST_S = 0.25
_TICK_S = 0.05
_MOST_KEPT = 1024
_MOST_EXPECTED = 4 * _MOST_KEPT


@dataclass(slots=True)
class _Kept:
    """A transfer that the other end may not have."""

    owner: int
    rows: torch.Tensor
    limit_s: float
    number: int
    resend: Callable[[], None]


@dataclass(slots=True)
class _Expected:
    number: int
    rows: tuple[int, int]
    dtype: torch.dtype
    limit_s: float
    take: Callable[[torch.Tensor], None]


class Pair:
    """``form`` makes the groups, on a thread of this object; ``say`` puts a ACK_PG on the lane, from any thread."""

    def __init__(self, name: str, generation: int, form: Callable[[], Groups], say: Callable[[AckPg], None]) -> None:
        self.generation = generation
        self.ended = False
        self.settled = False  # both ends have ended, and what was kept went over the lane
        self._name = f"{name}, pair {generation}"
        self._form, self._say = form, say
        self._lock = threading.RLock()
        self._groups: Groups | None = None
        self._formed_there = False
        self._silent = False
        self._kept: deque[_Kept] = deque()
        self._num_offered = self._num_expected = self._num_taken = 0
        self._progress_at = time.monotonic()
        self._sends: queue.SimpleQueue[_Kept | None] = queue.SimpleQueue()
        self._receives: queue.SimpleQueue[_Expected | None] = queue.SimpleQueue()
        self._start(self._send_all, "pair-out")

    @property
    def usable(self) -> bool:
        return self._groups is not None and self._formed_there and not self.ended

    def keeps(self, owner: int) -> bool:
        """Whether some transfer of ``owner`` has not been taken; what follows it must not pass it."""
        with self._lock:
            return any(kept.owner == owner for kept in self._kept)

    def offer(
        self,
        owner: int,
        rows: torch.Tensor,
        expires_at: float,
        announce: Callable[[int], None],
        resend: Callable[[], None],
    ) -> bool:
        """Whether rows [R, H] go this way: ``announce`` is called with their number, ``resend`` if they must go another."""
        assert rows.is_contiguous(), rows.stride()
        with self._lock:
            behind_others = self.keeps(owner)
            if not behind_others and (not self.usable or len(self._kept) >= _MOST_KEPT):
                return False
            kept = _Kept(owner, rows, _limit_s(expires_at), self._num_offered, resend)
            if not self._kept:
                self._progress_at = time.monotonic()
            self._kept.append(kept)
            self._num_offered += 1
            if not self.ended:
                announce(kept.number)
                self._sends.put(kept)
            return True

    def expect(
        self,
        number: int,
        shape: tuple[int, int],
        dtype: torch.dtype,
        expires_at: float,
        take: Callable[[torch.Tensor], None],
    ) -> None:
        """``take`` gets the rows that were announced, on another thread. Raises FleetError for one out of order."""
        with self._lock:
            if self.ended:
                return
            if number != self._num_expected:
                raise FleetError(Code.BAD_FRAME, f"transfer {number} was announced where {self._num_expected} is next")
            self._num_expected += 1
            self._receives.put(_Expected(number, shape, dtype, _limit_s(expires_at), take))
            if self._num_expected - self._num_taken > _MOST_EXPECTED:
                self.end(f"more than {_MOST_EXPECTED} transfers were announced and have not come")

    def taken(self, taken: AckPg) -> None:
        """What the other end says of this generation. Raises FleetError for what cannot be."""
        with self._lock:
            first = self._kept[0].number if self._kept else self._num_offered
            if not first <= taken.count <= self._num_offered:
                raise FleetError(Code.BAD_FRAME, f"{taken.count} transfers taken, of {first} to {self._num_offered}")
            self._formed_there = True
            self._progress_at = time.monotonic()
            while self._kept and self._kept[0].number < taken.count:
                self._kept.popleft()
            if taken.ended:
                self.end("the other end has ended it")
                self.settled = True
                while self._kept:
                    self._kept.popleft().resend()

    def end(self, reason: str) -> None:
        """From any thread: nothing more is sent or taken."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
            if not self._silent:
                logger.warning("%s ended: %s", self._name, reason)
                self._say(AckPg(self.generation, self._num_taken, True))
            self._sends.put(None)
            self._receives.put(None)
            if self._groups is not None:
                threading.Thread(target=_abort, args=(self._groups,), name="pair-abort").start()

    def close(self) -> None:
        """The lane is gone: what was kept is forgotten."""
        with self._lock:
            self._silent = True
            self._kept.clear()
            self.end("the lane is gone")

    def _start(self, work: Callable[[], None], name: str) -> None:
        """Not a daemon: a thread that waits inside a transport when the process ends would abort it."""
        threading.Thread(target=self._run, args=(work,), name=name).start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (RuntimeError, OSError) as error:
            self.end(str(error).partition("\n")[0])

    def _send_all(self) -> None:
        groups = self._form()
        with self._lock:
            if self.ended:
                return
            self._groups = groups
            self._start(self._receive_all, "pair-in")
            self._say(AckPg(self.generation, 0, False))
        while True:
            try:
                kept = self._sends.get(timeout=_TICK_S if self._kept else None)
            except queue.Empty:
                self._check_progress()
                continue
            if kept is None or self.ended:
                return
            groups.outgoing.send(kept.rows, kept.number, kept.limit_s)

    def _check_progress(self) -> None:
        with self._lock:
            if self._kept and time.monotonic() - self._progress_at > self._kept[0].limit_s:
                self.end(f"transfer {self._kept[0].number} was not taken in {self._kept[0].limit_s:.3f} s")

    def _receive_all(self) -> None:
        assert self._groups is not None
        while (expected := self._receives.get()) is not None and not self.ended:
            rows = _all_nan(*expected.rows, expected.dtype)
            self._groups.incoming.receive(rows, expected.number, expected.limit_s)
            if rows[-1, -1].isnan():
                raise RuntimeError(f"transfer {expected.number} did not come in full")
            with self._lock:
                if self.ended:  # then the operation may have returned with nothing done
                    return
                self._num_taken += 1
                self._say(AckPg(self.generation, self._num_taken, False))
                expected.take(rows)


def _all_nan(num_rows: int, hidden: int, dtype: torch.dtype) -> torch.Tensor:
    """What does not come stays NaN: an operation that another one's abort has touched may return all the same."""
    memory = bytearray(b"\xff") * (num_rows * hidden * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(num_rows, hidden)


def _limit_s(expires_at: float) -> float:
    """Half of what is left of a frame's time, so that the lane has the other half."""
    return min(_LONGEST_S, max(_SHORTEST_S, (expires_at - time.monotonic()) / 2))


def _abort(groups: Groups) -> None:
    groups.outgoing.abort()
    groups.incoming.abort()
