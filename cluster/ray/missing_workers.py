"""Seats of the desired state that no worker has taken for so long that Ray must have lost sight of their actors, as after a full disk.

This file knows nothing of Ray. A seat that was named once is given twice as long the next time: a start may just be slow.
"""

from collections.abc import Iterable

PATIENCE_S = 60.0
_MOST_S = 3600.0


class MissingWorkers:
    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._patience_s: dict[str, float] = {}

    def look(self, absent: Iterable[str], now: float) -> list[str]:
        """Seats that have been absent for too long; from then on their time begins anew."""
        self._since = {seat: self._since.get(seat, now) for seat in absent}
        due = [seat for seat, since in self._since.items() if now - since >= self._patience_s.get(seat, PATIENCE_S)]
        for seat in due:
            self._since[seat] = now
            self._patience_s[seat] = min(_MOST_S, 2 * self._patience_s.get(seat, PATIENCE_S))
        return due

    def forgive(self, seats: Iterable[str]) -> None:
        """A worker holds each seat."""
        for seat in seats:
            self._patience_s.pop(seat, None)
