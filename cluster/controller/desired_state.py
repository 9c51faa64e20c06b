"""The desired state of a fleet: which seats, and how many replicas of each expert. An immutable value that a file can keep.

Knows nothing of the processes. Growing takes the lowest free ordinals, shrinking gives up the highest, as a StatefulSet does.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from ...proto.errors import Code, FleetError, shown
from ..atomic_file import write_whole

MAX_SEATS = 4096
SeatRole = Literal["expert", "attention"]


@dataclass(frozen=True)
class DesiredState:
    """Ordinals in ascending order."""

    attention: tuple[int, ...]
    expert: tuple[int, ...]
    replicas: float = 1.0

    @staticmethod
    def first(attention_workers: int, expert_shards: int, replicas: float) -> "DesiredState":
        return DesiredState(tuple(range(attention_workers)), tuple(range(expert_shards)), replicas)

    def seats(self, role: SeatRole) -> tuple[str, ...]:
        return tuple(f"{role}-{ordinal}" for ordinal in getattr(self, role))

    def has(self, seat: str) -> bool:
        role, ordinal = split_seat(seat)
        return role in ("attention", "expert") and ordinal in getattr(self, role)

    def scaled(self, role: SeatRole, count: int) -> "DesiredState":
        """Raises FleetError BAD_REQUEST."""
        if not 1 <= count <= MAX_SEATS:
            name = "expert_shards" if role == "expert" else "attention_workers"
            raise FleetError(Code.BAD_REQUEST, f"{name}: {count} is not within 1 to {MAX_SEATS}")
        now: tuple[int, ...] = getattr(self, role)
        free = (ordinal for ordinal in range(MAX_SEATS) if ordinal not in now)
        more = tuple(ordinal for ordinal, _ in zip(free, range(count - len(now)), strict=False))
        return self._with(role, tuple(sorted((*now[:count], *more))))

    def without(self, seat: str, name: str = "drain") -> "DesiredState":
        """``name`` is what the request calls it. Raises FleetError BAD_REQUEST for a seat that is not wanted, or the last of its role."""
        if not self.has(seat):
            raise FleetError(Code.BAD_REQUEST, f"{name}: {shown(seat)} is no seat of this fleet, or leaves already")
        role, ordinal = split_seat(seat)
        left = tuple(each for each in getattr(self, role) if each != ordinal)
        if not left:
            raise FleetError(Code.BAD_REQUEST, f"{name}: {seat} is the last of its kind; add another one first")
        return self._with(role, left)

    def offered(self, seats: Iterable[str]) -> "DesiredState":
        """With ``seats``, whose nodes have come. Raises FleetError BAD_REQUEST for what is no worker's seat."""
        more = self
        for seat in seats:
            role, ordinal = split_seat(seat)
            if role not in ("attention", "expert") or not 0 <= ordinal < MAX_SEATS:
                wish = f"is neither attention-N nor expert-N, N from 0 to {MAX_SEATS - 1}"
                raise FleetError(Code.BAD_REQUEST, f"seat: {shown(seat)} {wish}")
            more = more._with(role, tuple(sorted({*getattr(more, role), ordinal})))
        return more

    def forgotten(self, seats: Iterable[str]) -> "DesiredState":
        """Without ``seats``, whose nodes are gone for good, even if they are the last."""
        gone = set(seats)
        attention = tuple(ordinal for ordinal in self.attention if f"attention-{ordinal}" not in gone)
        return replace(
            self, attention=attention, expert=tuple(each for each in self.expert if f"expert-{each}" not in gone)
        )

    def with_replicas(self, replicas: float) -> "DesiredState":
        """Raises FleetError BAD_REQUEST."""
        if not 1 <= replicas <= MAX_SEATS:
            raise FleetError(Code.BAD_REQUEST, f"replicas: {replicas:g} is not within 1 to {MAX_SEATS}")
        return replace(self, replicas=replicas)

    def save(self, path: Path) -> None:
        """Whole or not at all, whatever happens meanwhile."""
        write_whole(path, json.dumps(asdict(self)))

    @staticmethod
    def load(path: Path) -> "DesiredState | None":
        """None where nothing was saved. Raises ValueError for a file that is not one of ours."""
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        try:
            fields = json.loads(text)
            return DesiredState(tuple(fields["attention"]), tuple(fields["expert"]), float(fields["replicas"]))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: is not the state of a fleet ({error!r})") from error

    def _with(self, role: str, ordinals: tuple[int, ...]) -> "DesiredState":
        return replace(self, expert=ordinals) if role == "expert" else replace(self, attention=ordinals)


def split_seat(seat: str) -> tuple[str, int]:
    """Role and ordinal; the ordinal is -1 where there is none. A seat has one name: ``expert-07`` and other scripts' digits are none."""
    role, _, ordinal = seat.rpartition("-")
    is_number = ordinal.isdecimal() and len(ordinal) < 10 and ordinal == str(int(ordinal))
    return (role, int(ordinal)) if is_number else (seat, -1)
