"""What a link does to packets, in each direction alike.

Knows nothing of how it is done, but for the words in which ``tc`` is told.
"""

from dataclasses import dataclass

from expertfleet.settings.option import within

BURST_BYTES = 256 << 10
QUEUE_S = 0.1
_NETEM_PACKETS = 100_000


@dataclass(frozen=True)
class Link:
    """``delay_ms``, up to ``jitter_ms`` more or less, for every packet; 0 Gbit/s is no limit.

    ``corrupt_percent`` of the packets have one bit turned over. A rate lets BURST_BYTES through at once and drops what would wait for longer than QUEUE_S.
    """

    gbit: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss_percent: float = 0.0
    corrupt_percent: float = 0.0

    def __post_init__(self) -> None:
        within("gbit", self.gbit, 0, 1000)
        within("delay_ms", self.delay_ms, 0, 10_000)
        within("jitter_ms", self.jitter_ms, 0, self.delay_ms)
        within("loss_percent", self.loss_percent, 0, 100)
        within("corrupt_percent", self.corrupt_percent, 0, 100)

    @property
    def is_late(self) -> bool:
        """Whether more is asked than a rate."""
        return bool(self.delay_ms or self.loss_percent or self.corrupt_percent)

    @property
    def tbf(self) -> tuple[str, ...]:
        return ("tbf", "rate", _bits(self.gbit), "burst", f"{BURST_BYTES}b", "latency", f"{QUEUE_S * 1e3:g}ms")

    @property
    def netem(self) -> tuple[str, ...]:
        delay = ("delay", _microseconds(self.delay_ms), _microseconds(self.jitter_ms))
        rate = ("rate", _bits(self.gbit)) if self.gbit else ()
        corrupt = ("corrupt", f"{self.corrupt_percent:g}%") if self.corrupt_percent else ()
        return ("netem", "limit", str(_NETEM_PACKETS), *delay, "loss", f"{self.loss_percent:g}%", *corrupt, *rate)


def _bits(gbit: float) -> str:
    return f"{gbit * 1e9:.0f}bit"


def _microseconds(milliseconds: float) -> str:
    return f"{milliseconds * 1e3:.0f}us"
