"""How the Triton kernels are cut, per device: tiles, warps, stages, and from how many routes on block lists are used.

Knows nothing of Triton. Every choice here changes speed alone: all of them give the same bits (triton_experts_kernel.py).
``TUNED`` is filled by ``benchmarks/bench_experts_gpu.py --tune`` on the device itself, keyed by torch's name of it.
NOTE: no device has been tuned yet; ``DEFAULT`` was chosen on paper (bytes in flight, registers) and compiled, not timed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

ROWS = (8, 16, 32)  # rows a block may have; at 64 the registers do not suffice


@dataclass(frozen=True)
class Tile:
    """``block_out`` outputs a program; one or two warps, which keeps Triton to one tensor-core instruction."""

    block_out: int
    num_warps: int
    num_stages: int

    def __post_init__(self) -> None:
        if self.num_warps not in (1, 2):
            raise ValueError(f"num_warps: {self.num_warps}, wanted 1 or 2: with more the bits could depend on the tile")
        if self.block_out < 16 * self.num_warps or self.block_out & (self.block_out - 1):
            raise ValueError(f"block_out: {self.block_out}, wanted a power of two of at least {16 * self.num_warps}")
        if self.num_stages < 1:
            raise ValueError(f"num_stages: {self.num_stages}, wanted at least 1")


@dataclass(frozen=True)
class Config:
    """``gate_up`` and ``down`` by rows a block; route-major programs take the entry for 8."""

    most_route_major: int = 64
    gate_up: Mapping[int, Tile] = field(default_factory=lambda: dict.fromkeys(ROWS, Tile(32, 2, 4)))
    down: Mapping[int, Tile] = field(default_factory=lambda: dict.fromkeys(ROWS, Tile(64, 2, 4)))

    def __post_init__(self) -> None:
        for name, tiles in (("gate_up", self.gate_up), ("down", self.down)):
            if tuple(sorted(tiles)) != ROWS:
                raise ValueError(f"{name}: tiles for {sorted(tiles)} rows, wanted {ROWS}")


DEFAULT = Config()
TUNED: Mapping[str, Config] = {}


def config_for(device_name: str) -> Config:
    return TUNED.get(device_name, DEFAULT)


def rows_a_block(num_routes: int, num_slots: int) -> int:
    """The smallest block that holds about 1.3 times the mean number of routes to a slot."""
    wanted = 4 * num_routes / (3 * max(1, num_slots))
    return next((rows for rows in ROWS if rows >= wanted), ROWS[-1])
