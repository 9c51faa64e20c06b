import pytest

from expertfleet.checkpoint.pull.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_now_and_then_with_bytes_rate_and_time_left() -> None:
    clock, said = Clock(), list[str]()
    progress = Progress(said.append, clock)
    progress.expect(10_000_000_000)
    progress.keep(4_000_000_000)
    for _ in range(20):
        clock.now += 1.0
        progress.receive(100_000_000)
    assert said == [
        "5.00 of 10.00 GB, 100.0 MB/s, 0 min 50 s left",
        "6.00 of 10.00 GB, 100.0 MB/s, 0 min 40 s left",
    ]
    assert progress.received == 2_000_000_000


def test_bytes_given_up_are_not_done_and_were_received_all_the_same() -> None:
    clock, said = Clock(), list[str]()
    progress = Progress(said.append, clock)
    progress.expect(1_000_000_000)
    progress.receive(500_000_000)
    clock.now += 10.0
    progress.receive(-500_000_000)
    assert said == ["0.00 of 1.00 GB, 50.0 MB/s, 0 min 20 s left"]
    assert progress.received == 500_000_000


def test_without_a_total_no_time_is_guessed() -> None:
    clock, said = Clock(), list[str]()
    progress = Progress(said.append, clock)
    clock.now += 10.0
    progress.receive(1_000_000_000)
    assert said == ["1.00 GB, 100.0 MB/s"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.6, "1 min 00 s"), (5, "0 min 05 s"), (3600, "1 h 00 min"), (7 * 3600 + 125, "7 h 02 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
