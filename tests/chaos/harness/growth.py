"""Holds a fleet's processes late against the same processes earlier: who was replaced, what grew, what was read again.

Knows nothing of ``/proc`` and of requests.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .plan import Expect
from .processes import Process


@dataclass(frozen=True)
class Growth:
    """One process that was there all the time, its files and memory at both moments."""

    seat: str
    pid: int
    fds: tuple[int, int]
    rss_mib: tuple[float, float]
    read_mib: float

    @property
    def rss_percent(self) -> float:
        before, after = self.rss_mib
        return 100 * (after - before) / before


def find_growth(before: Mapping[str, Process], after: Mapping[str, Process]) -> tuple[Growth, ...]:
    pairs = {seat: (before[seat], after[seat]) for seat in sorted(before.keys() & after.keys())}
    return tuple(_growth(seat, *pair) for seat, pair in pairs.items() if pair[0].identity == pair[1].identity)


def find_replaced(
    before: Mapping[str, Process], after: Mapping[str, Process], ended: Collection[int]
) -> tuple[str, ...]:
    """Seats that have another process, or none, although nobody ended the first one."""
    changed = (seat for seat in before if seat not in after or after[seat].identity != before[seat].identity)
    return tuple(sorted(seat for seat in changed if before[seat].pid not in ended))


def growth_failures(expect: Expect, growths: Collection[Growth], replaced: Collection[str]) -> list[str]:
    failures = []
    for one in growths:
        opened = one.fds[1] - one.fds[0]
        if expect.fd_growth is not None and opened > expect.fd_growth:
            failures.append(f"{one.seat}: {opened} more open files, at most {expect.fd_growth} tolerated")
        if expect.rss_growth_percent is not None and one.rss_percent > expect.rss_growth_percent:
            limit = f"at most {expect.rss_growth_percent:g} % tolerated"
            failures.append(f"{one.seat}: its memory grew by {one.rss_percent:.2f} %, {limit}")
        if expect.read_mib is not None and one.seat.startswith("expert-") and one.read_mib > expect.read_mib:
            failures.append(f"{one.seat}: it read {one.read_mib:.2f} MiB, at most {expect.read_mib:g} tolerated")
    if expect.replaced is not None and len(replaced) > expect.replaced:
        failures.append(f"{', '.join(replaced)}: another process, at most {expect.replaced} tolerated")
    return failures


def _growth(seat: str, before: Process, after: Process) -> Growth:
    return Growth(
        seat,
        before.pid,
        (before.num_fds, after.num_fds),
        (before.rss_kib / 1024, after.rss_kib / 1024),
        (after.read_bytes - before.read_bytes) / (1 << 20),
    )
