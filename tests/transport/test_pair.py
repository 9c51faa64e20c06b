"""A pair's transfers arrive once, in order, and what does not arrive is given back to the lane; over a fake and over gloo."""

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from gloo import over_gloo  # noqa: F401 - a fixture for all of this module

from expertfleet.proto.errors import FleetError
from expertfleet.proto.group_frames import AckPg
from expertfleet.transport import pair as module
from expertfleet.transport.pair import Pair
from expertfleet.transport.pair_group import Groups, PairSettings, host_pair, join_pair


class Pipe:
    """A direction in this process that can be clogged, and whose operations may end with nothing done."""

    def __init__(self) -> None:
        self._rows: queue.Queue[torch.Tensor | None] = queue.Queue()
        self.open = threading.Event()
        self.open.set()
        self.aborted = False
        self.numbers: list[int] = []

    def send(self, rows: torch.Tensor, number: int, timeout_s: float) -> None:
        if not self.open.wait(timeout_s):
            raise RuntimeError("clogged")
        self._rows.put(None if self.aborted else rows)

    def receive(self, rows: torch.Tensor, number: int, timeout_s: float) -> None:
        self.numbers.append(number)
        try:
            came = self._rows.get(timeout=timeout_s)
        except queue.Empty:
            raise RuntimeError("nothing came") from None
        if came is not None:
            rows.copy_(came)

    def abort(self) -> None:
        self.aborted = True
        self.open.set()
        self._rows.put(None)


class Ends:
    """Two ends and the lane between them: what each says is heard by the other, unless ``deaf``."""

    def __init__(self, forms: tuple[Callable[[], Groups], Callable[[], Groups]]) -> None:
        self.heard: queue.Queue[tuple[int, AckPg]] = queue.Queue()
        self.deaf = False
        self.came: list[list[float]] = [[], []]  # first values of the rows that came by the pair, at each end
        self.resent: list[list[float]] = [[], []]  # of those that were given back, by each end
        self.pairs = [self._end(number, form) for number, form in enumerate(forms)]
        self.wait(lambda: all(pair.usable for pair in self.pairs))

    def _end(self, number: int, form: Callable[[], Groups]) -> Pair:
        return Pair(f"end-{number}", 1, form, lambda taken: self.heard.put((1 - number, taken)))

    def offer(self, value: float, sender: int = 0, owner: int = 5, seconds: float = 20.0) -> bool:
        receiver = self.pairs[1 - sender]
        expires_at = time.monotonic() + seconds

        def announce(number: int) -> None:
            receiver.expect(
                number, (2, 3), torch.float32, expires_at, lambda x: self.came[1 - sender].append(x[1, 2].item())
            )

        rows = torch.full((2, 3), value)
        resend = self.resent[sender].append
        return self.pairs[sender].offer(owner, rows, expires_at, announce, lambda: resend(value))

    def wait(self, until: Callable[[], bool], timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < end
            while not self.deaf and not self.heard.empty():
                listener, taken = self.heard.get()
                self.pairs[listener].taken(taken)
            time.sleep(0.002)

    def close(self) -> None:
        for pair in self.pairs:
            pair.close()


@pytest.fixture
def pipes() -> tuple[Pipe, Pipe]:
    return Pipe(), Pipe()


@pytest.fixture
def ends(pipes: tuple[Pipe, Pipe]) -> Iterator[Ends]:
    there, back = pipes
    ends = Ends((lambda: Groups(there, back), lambda: Groups(back, there)))
    yield ends
    ends.close()


def test_transfers_of_both_directions_come_in_order_and_nothing_is_kept(ends: Ends, pipes: tuple[Pipe, Pipe]) -> None:
    for value in range(20):
        assert ends.offer(value)
        assert ends.offer(-value, sender=1)
    ends.wait(lambda: not any(pair.keeps(5) for pair in ends.pairs))
    assert ends.came == [[-value for value in range(20)], list(range(20))]
    assert ends.resent == [[], []]
    assert pipes[0].numbers == list(range(20))


def test_what_was_not_taken_is_resent_once_and_in_order(ends: Ends, pipes: tuple[Pipe, Pipe]) -> None:
    assert ends.offer(1)
    ends.wait(lambda: not ends.pairs[0].keeps(5))
    pipes[0].open.clear()
    for value in (2, 3, 4):
        assert ends.offer(value)
    ends.pairs[1].end("test")
    ends.wait(lambda: all(pair.settled for pair in ends.pairs))
    assert ends.came[1] == [1]
    assert ends.resent == [[2, 3, 4], []]
    assert not ends.offer(5)


def test_an_aborted_operation_that_returns_is_not_used(ends: Ends, pipes: tuple[Pipe, Pipe]) -> None:
    pipes[0].open.clear()
    assert ends.offer(2)
    ends.pairs[0].end("test")  # its abort lets the send return, and the receive with nothing in it
    ends.wait(lambda: all(pair.settled for pair in ends.pairs))
    time.sleep(0.1)
    assert (ends.came[1], ends.resent[0]) == ([], [2])


def test_what_was_taken_though_the_word_was_not_heard_is_not_resent(ends: Ends) -> None:
    ends.deaf = True
    assert ends.offer(1)
    ends.wait(lambda: bool(ends.came[1]))
    ends.pairs[0].end("test")
    ends.deaf = False
    ends.wait(lambda: all(pair.settled for pair in ends.pairs))
    assert (ends.came[1], ends.resent[0]) == ([1], [])


def test_what_belongs_behind_a_kept_transfer_waits_there_though_the_generation_has_ended(
    ends: Ends, pipes: tuple[Pipe, Pipe]
) -> None:
    pipes[0].open.clear()
    assert ends.offer(1, owner=5)
    ends.deaf = True
    ends.pairs[0].end("test")
    assert ends.offer(2, owner=5)
    assert not ends.offer(3, owner=6)
    ends.deaf = False
    ends.wait(lambda: ends.pairs[0].settled)
    assert ends.resent[0] == [1, 2]


@pytest.mark.parametrize("clogged", [True, False])
def test_an_end_that_takes_nothing_ends_the_generation_in_half_of_the_frames_time(
    ends: Ends, pipes: tuple[Pipe, Pipe], clogged: bool
) -> None:
    if clogged:
        pipes[0].open.clear()
    ends.deaf = True
    began = time.monotonic()
    assert ends.offer(1, seconds=1.0)
    ends.wait(lambda: ends.pairs[0].ended)
    assert time.monotonic() - began >= 0.45


def test_transfers_out_of_order_are_refused(ends: Ends) -> None:
    with pytest.raises(FleetError, match="transfer 1 was announced where 0 is next"):
        ends.pairs[1].expect(1, (1, 1), torch.float32, 0.0, print)
    for count in (1, 7):
        with pytest.raises(FleetError, match=f"{count} transfers taken, of 0 to 0"):
            ends.pairs[0].taken(AckPg(1, count, False))


def test_more_announcements_than_there_is_room_for_end_the_generation(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_EXPECTED", 3)
    for number in range(5):
        ends.pairs[1].expect(number, (1, 1), torch.float32, float("inf"), print)
    assert ends.pairs[1].ended


def test_a_generation_that_cannot_be_formed_ends() -> None:
    said: list[AckPg] = []

    def fail() -> Groups:
        raise OSError("no route")

    pair = Pair("end", 4, fail, said.append)
    end = time.monotonic() + 10
    while not said:
        assert time.monotonic() < end
        time.sleep(0.002)
    assert pair.ended
    assert said == [AckPg(4, 0, True)]
    pair.taken(AckPg(4, 0, True))
    assert pair.settled


def gloo() -> tuple[Callable[[], Groups], Callable[[], Groups]]:
    """Both ends in this process, as two would."""
    settings = PairSettings("nccl")
    address: queue.Queue[str] = queue.Queue()
    return (
        lambda: host_pair(settings, "127.0.0.1:9", address.put),
        lambda: join_pair(settings, address.get(timeout=20)),
    )


def test_rows_pass_through_gloo_and_an_end_of_one_is_an_end_of_both() -> None:
    ends = Ends(gloo())
    assert ends.offer(1.5)
    assert ends.offer(2.5, sender=1)
    ends.wait(lambda: ends.came == [[2.5], [1.5]])
    ends.pairs[1].end("test")
    ends.wait(lambda: all(pair.settled for pair in ends.pairs))
    ends.close()
    end = time.monotonic() + 20
    while any(thread.name.startswith("pair-") for thread in threading.enumerate()):
        assert time.monotonic() < end, "a thread still waits for an aborted operation"
        time.sleep(0.01)


def test_gloo_groups_share_nothing() -> None:
    """A generation that ends does no harm to another lane's."""
    one, other = Ends(gloo()), Ends(gloo())
    one.pairs[0].end("test")
    one.wait(lambda: all(pair.settled for pair in one.pairs))
    assert other.offer(3.5)
    other.wait(lambda: other.came[1] == [3.5])
    one.close()
    other.close()
