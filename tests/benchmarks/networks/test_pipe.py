"""A pipe is told the time, so its arithmetic can be checked to the packet."""

import pytest

from expertfleet.benchmarks.networks.link import BURST_BYTES, QUEUE_S, Link
from expertfleet.benchmarks.networks.pipe import Pipe

MANY = 2000


def pipe(seed: str = "s", **values: float) -> Pipe:
    made = Pipe(seed)
    made.link = Link(**values)
    return made


def kept(made: Pipe) -> list[int]:
    for number in range(MANY):
        made.put(number.to_bytes(4), 0.0)
    return [int.from_bytes(packet) for packet in made.take(0.0)]


def test_without_anything_a_packet_leaves_at_once() -> None:
    made = pipe()
    made.put(b"a", 5.0)
    assert made.next_at == 5.0
    assert made.take(5.0) == [b"a"]
    assert made.next_at == float("inf")


def test_a_delay_holds_each_packet_for_its_time() -> None:
    made = pipe(delay_ms=200)
    made.put(b"a", 1.0)
    made.put(b"b", 1.1)
    assert made.next_at == pytest.approx(1.2)
    assert made.take(1.19) == []
    assert made.take(1.25) == [b"a"]
    assert made.take(1.31) == [b"b"]


def test_jitter_stays_within_its_bounds_and_keeps_the_order() -> None:
    made, left = pipe(delay_ms=100, jitter_ms=50), []
    for number in range(MANY):
        now = float(number)
        made.put(number.to_bytes(4), now)
        left.append(made.next_at - now)
        assert made.take(now + 1) == [number.to_bytes(4)]
    assert 0.05 <= min(left) < 0.06
    assert 0.14 < max(left) <= 0.15
    for number in range(MANY):
        made.put(number.to_bytes(4), MANY + number / 1e6)
    assert made.take(2.0 * MANY) == [number.to_bytes(4) for number in range(MANY)]


def test_when_a_delay_ends_no_packet_overtakes_what_is_held() -> None:
    made = pipe(delay_ms=200)
    made.put(b"a", 1.0)
    made.link = Link()
    made.put(b"b", 1.1)
    assert made.take(1.19) == []
    assert made.take(1.2) == [b"a", b"b"]


def test_loss_is_drawn_by_the_seed() -> None:
    once, again, other = (kept(pipe(seed, loss_percent=5)) for seed in ("one", "one", "two"))
    assert once == again != other
    assert 0.03 * MANY < MANY - len(once) < 0.07 * MANY
    assert len(kept(pipe())) == MANY
    assert kept(pipe(loss_percent=100)) == []


def test_one_bit_of_what_a_packet_carries_is_turned_over() -> None:
    made = pipe(corrupt_percent=100)
    made.put(bytes(1000), 1.0)
    made.put(bytes(128), 1.0)
    spoiled, bare = made.take(1.0)
    assert bare == bytes(128), "a packet that carries nothing is left alone"
    assert len(spoiled) == 1000
    assert spoiled[:128] == bytes(128), "headers are left alone"
    assert sum(byte.bit_count() for byte in spoiled) == 1
    several = kept(pipe(corrupt_percent=5))
    assert len(several) == MANY


def test_a_rate_is_kept_after_a_burst() -> None:
    made = pipe(gbit=0.008)  # a byte takes a microsecond
    made.put(bytes(BURST_BYTES), 10.0)
    assert made.take(10.0), "what was saved up"
    made.put(bytes(1000), 10.0)
    made.put(bytes(1000), 10.0)
    assert made.next_at == pytest.approx(10.001)
    assert made.take(10.0015) == [bytes(1000)]
    assert made.next_at == pytest.approx(10.002)


def test_what_would_wait_too_long_for_its_turn_is_dropped() -> None:
    made = pipe(gbit=0.008)
    for _ in range(1000):
        made.put(bytes(1000), 10.0)
    assert len(made.take(10.0 + QUEUE_S)) == (BURST_BYTES + QUEUE_S * 1e6) // 1000


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gbit": -1}, "gbit: -1 is not within 0 to 1000"),
        ({"delay_ms": 10_001}, "delay_ms: 10001 is not within 0 to 10000"),
        ({"delay_ms": 1, "jitter_ms": 2}, "jitter_ms: 2 is not within 0 to 1"),
        ({"loss_percent": 101}, "loss_percent: 101 is not within 0 to 100"),
        ({"corrupt_percent": -1}, "corrupt_percent: -1 is not within 0 to 100"),
    ],
)
def test_a_link_that_cannot_be_names_field_value_and_limit(values: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Link(**values)


def test_tc_is_told_every_field() -> None:
    assert Link(gbit=2.5).tbf == ("tbf", "rate", "2500000000bit", "burst", "262144b", "latency", "100ms")
    told = " ".join(Link(gbit=10, delay_ms=0.025, jitter_ms=0.01, loss_percent=0.5).netem)
    assert told == "netem limit 100000 delay 25us 10us loss 0.5% rate 10000000000bit"
    assert "rate" not in Link(delay_ms=1).netem
    assert "loss 0% corrupt 2%" in " ".join(Link(corrupt_percent=2).netem)
