"""Whether a fleet of some size fits one machine and can ever be whole: the one answer for ``serve``, its ``--dry-run`` and ``scale``.

Knows nothing of processes and of who asks. A refusal names the number that would do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from ...expert_workers.memory import num_experts_in
from .desired_state import MAX_SEATS, DesiredState
from .placement_settings import PlacementSettings

GIB = 1 << 30
WORKER_BYTES = 400 << 20
BESIDES_BYTES = 900 << 20

Number = Literal["expert_shards", "attention_workers", "replicas"]
_NUMBERS: tuple[Number, ...] = ("expert_shards", "attention_workers", "replicas")


@dataclass(frozen=True)
class Size:
    attention_workers: int
    expert_shards: int
    replicas: float

    @staticmethod
    def of(wanted: DesiredState) -> "Size":
        return Size(len(wanted.attention), len(wanted.expert), wanted.replicas)

    def with_number(self, name: Number, value: float) -> "Size":
        if name == "replicas":
            return replace(self, replicas=value)
        return (
            replace(self, expert_shards=int(value))
            if name == "expert_shards"
            else replace(self, attention_workers=int(value))
        )

    def differences(self, other: "Size") -> list[Number]:
        return [name for name in _NUMBERS if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True)
class Budget:
    """What each worker takes. ``num_experts`` are those of all layers; ``available_bytes`` what there was before any of it ran."""

    attention_bytes: int
    num_experts: int
    expert_bytes: int  # in the checkpoint
    memory_gib: float | None  # for each shard's experts; None: not limited beforehand
    placing: PlacementSettings = PlacementSettings()
    available_bytes: int = 0

    @property
    def room(self) -> int:
        """Experts that a shard may hold. Raises ValueError where it is not even one."""
        if self.memory_gib is None:
            return self.num_experts
        return min(self.num_experts, num_experts_in(self.memory_gib, self.expert_bytes))

    def copies(self, size: Size) -> int:
        """Of all experts, those that fill spare memory included."""
        rooms = [self.room] * size.expert_shards
        filled = (
            size.replicas if self.memory_gib is None else self.placing.replicas(size.replicas, rooms, self.num_experts)
        )
        return math.ceil(filled * self.num_experts)

    def shard_bytes(self, size: Size) -> int:
        """Of the one that holds most."""
        return self._bytes_with(math.ceil(self.copies(size) / size.expert_shards))

    def needed_bytes(self, size: Size) -> int:
        each, more = divmod(self.copies(size), size.expert_shards)
        shards = more * self._bytes_with(each + 1) + (size.expert_shards - more) * self._bytes_with(each)
        return size.attention_workers * self.attention_bytes + shards + BESIDES_BYTES

    def _bytes_with(self, num_experts: int) -> int:
        return num_experts * self.expert_bytes + WORKER_BYTES

    def why_too_many(self, size: Size) -> str:
        """Why some shards would have nothing to hold; empty if none would."""
        asked = math.ceil(size.replicas * self.num_experts)
        if size.expert_shards <= asked:
            return ""
        what = f"expert_shards: {size.expert_shards} are more than the {asked} experts, copies included, that there are to hold"
        return f"{what}; at most {asked} can be"

    def why_never(self, size: Size) -> str:
        """Why such a fleet could not be whole on any machine; empty if it could. Raises ValueError for a useless ``memory_gib``."""
        asked = math.ceil(size.replicas * self.num_experts)
        room = size.expert_shards * self.room
        if fault := self.why_too_many(size):
            return fault
        if room < asked:
            enough = math.ceil(asked / size.expert_shards) * self.expert_bytes / GIB
            shards = math.ceil(asked / self.room)
            more = f", or --expert-shards {shards}" if shards <= MAX_SEATS else ""
            return (
                f"memory_gib: {size.expert_shards} expert shards of {self.memory_gib:g} GiB have room for {room} of {asked} experts, "
                f"copies included; give --memory-gib {_up(enough):g}{more}"
            )
        return ""

    def why_not(self, size: Size, before: Size, free_bytes: int) -> str:
        """Why a fleet of ``before`` cannot become one of ``size`` while ``free_bytes`` are free; empty if it can.

        What the shards that are there have room for, they have said themselves.
        """
        names = size.differences(before)
        if not names:
            return ""
        now, needed = self.needed_bytes(before), self.needed_bytes(size)
        limit = min(self.available_bytes, now + free_bytes)
        if needed <= max(now, limit):
            return self.why_too_many(size)
        asked = ", ".join(f"{name} {getattr(size, name):g}" for name in names)
        most = [f"{name} {value:g}" for name, value in self.smaller(size, limit).items() if name in names]
        remedy = f"at most {' or '.join(most)} would fit" if most else "no more than there is fits"
        what = f"{names[0]}: {asked} would take {needed / GIB:.1f} GiB of this machine"
        return f"{what}, {limit / GIB:.1f} GiB are there for the fleet; {remedy}"

    def smaller(self, size: Size, limit_bytes: int) -> dict[Number, float]:
        """Of each number the greatest that needs no more than ``limit_bytes``, the others being as they are; without those that help not."""
        most = {name: self.most(size, name, limit_bytes) for name in _NUMBERS}
        return {name: value for name, value in most.items() if 0 < value < getattr(size, name)}

    def most(self, size: Size, name: Number, limit_bytes: int) -> float:
        """The greatest number below the one of ``size`` that needs no more than ``limit_bytes``, all else being equal; 0: none."""
        scale = 100 if name == "replicas" else 1

        def fits(steps: int) -> bool:
            smaller = size.with_number(name, steps / scale)
            is_sensible = smaller.replicas <= smaller.expert_shards and not self.why_never(smaller)
            return is_sensible and self.needed_bytes(smaller) <= limit_bytes

        held = max(size.replicas, size.replicas * self.num_experts / self.room)
        least = math.ceil(held) if name == "expert_shards" else 1
        return _greatest(fits, least * scale, min(MAX_SEATS * scale, int(getattr(size, name) * scale))) / scale


def _greatest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The greatest number from ``low`` to ``high`` that fits, where all smaller ones fit as well; 0: none."""
    if high < low or not fits(low):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _up(gib: float) -> float:
    return math.ceil(gib * 1000) / 1000
