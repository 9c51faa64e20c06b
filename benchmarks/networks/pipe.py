"""One direction of an emulated link: packets go in, and come out later, in their order, or never.

Knows nothing of devices and clocks: who calls says what time it is, in seconds.
"""

import random
from collections import deque

from .link import BURST_BYTES, QUEUE_S, Link

_MOST_HELD = 256 << 20
_HEADERS = 128  # bytes, or a little less: those of the kernel, of Ethernet, IP and TCP


class Pipe:
    """``link`` may be changed at any time; a packet keeps the moment of leaving that it was given."""

    def __init__(self, seed: str) -> None:
        self.link = Link()
        self._rng = random.Random(seed)
        self._held: deque[tuple[float, bytes]] = deque()
        self._num_bytes = 0
        self._sent_at = 0.0  # when the rate will have carried all that came
        self._last = 0.0

    @property
    def next_at(self) -> float:
        """When the next packet leaves."""
        return self._held[0][0] if self._held else float("inf")

    def put(self, packet: bytes, now: float) -> None:
        if self._is_lost() or self._num_bytes + len(packet) > _MOST_HELD:
            return
        sent_at = self._carried(len(packet), now)
        if sent_at > now + QUEUE_S:
            return
        self._sent_at = sent_at
        self._last = max(self._last, max(sent_at, now) + self._delay_s())  # no packet overtakes another
        self._held.append((self._last, self._perhaps_corrupt(packet)))
        self._num_bytes += len(packet)

    def take(self, now: float) -> list[bytes]:
        """The packets that have to leave."""
        packets = []
        while self.next_at <= now:
            packets.append(self._held.popleft()[1])
            self._num_bytes -= len(packets[-1])
        return packets

    def _perhaps_corrupt(self, packet: bytes) -> bytes:
        """Only packets that carry something, and in what they carry, so that it arrives."""
        spoils = self.link.corrupt_percent > 0 and 100 * self._rng.random() < self.link.corrupt_percent
        if not spoils or len(packet) <= _HEADERS:
            return packet
        place = self._rng.randrange(_HEADERS, len(packet))
        return packet[:place] + bytes([packet[place] ^ 1 << self._rng.randrange(8)]) + packet[place + 1 :]

    def _is_lost(self) -> bool:
        return self.link.loss_percent > 0 and 100 * self._rng.random() < self.link.loss_percent

    def _carried(self, num_bytes: int, now: float) -> float:
        """When the token bucket has enough: what has passed of a burst's time is saved up."""
        if not self.link.gbit:
            return now
        seconds_per_byte = 8 / (1e9 * self.link.gbit)
        return max(self._sent_at, now - BURST_BYTES * seconds_per_byte) + num_bytes * seconds_per_byte

    def _delay_s(self) -> float:
        return (self.link.delay_ms + self._rng.uniform(-self.link.jitter_ms, self.link.jitter_ms)) / 1e3
