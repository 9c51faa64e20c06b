"""Which row counts a call may use so that a row's bits never depend on the rows beside it; found by test, only here.

Knows nothing of what the call computes. torch's matrix products choose their blocking, and so their order of
summation, by the number of rows. Measured with torch 2.13 on an Intel machine with AMX: bf16 at 7,168 inputs gives one
result for 1 to 32 rows (prepacked weights) and up to five others above; with plain weights one row alone differs as
well; at 33 rows even rows of one call may differ. float32 prepacked: 2 and more rows agree, one alone differs.
1. ``choose_rule`` lets every form of a call compute one row, repeated, once per row count, at every position and from
   an unaligned address; 2. counts whose results are equal bit for bit form a group, and the cheapest group wins (a count
   alone is a group as well: fixed tiles, and at worst row by row); 3. ``RowRule.run`` splits and pads to counts of it.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

RowCall = Callable[[torch.Tensor], torch.Tensor]

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64, 96, 128, 192, 256)
EVERY_SIZES = (*range(1, 18), 31, 32, 33, 63, 64, 65, 128)  # what must agree before all counts are believed to
_GOOD_COST = 1.15
_TYPICAL_COUNTS = (1, 2, 4, 8, 16, 32, 64, 256)
_FIXED_ROWS = 24  # reading the weight costs about as much as this many rows do
_UNALIGNED_UP_TO = 8
_BITS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class RowRule:
    """``form`` names how the call is made; ``sizes`` are the row counts that proved equal, ascending."""

    form: str
    sizes: tuple[int, ...]
    every_count: bool = False  # all counts up to the largest size agree, so nothing is padded

    @property
    def cost(self) -> float:
        """What padding and tiles cost on average over typical row counts, as a factor (1.0 is nothing)."""
        factors = [self._rows_run(count) / (_FIXED_ROWS + count) for count in _TYPICAL_COUNTS]
        return sum(factors) / len(factors)

    def size_for(self, num_rows: int) -> int:
        """The row count to run ``num_rows`` (at most the largest size) with."""
        if self.every_count:
            return num_rows
        return next(size for size in self.sizes if size >= num_rows)

    def _rows_run(self, num_rows: int) -> int:
        tiles, rest = divmod(num_rows, self.sizes[-1])
        last = _FIXED_ROWS + self.size_for(rest) if rest else 0
        return tiles * (_FIXED_ROWS + self.sizes[-1]) + last

    def run(self, call: RowCall, x: torch.Tensor) -> torch.Tensor:
        """``call(x)`` for any number of rows; x is [R, ...], the result [R, ...]."""
        num_rows = x.shape[0]
        if num_rows in self.sizes:
            return call(x)
        largest = self.sizes[-1]
        if num_rows <= largest:
            return self._padded(call, x) if num_rows else call(x.new_zeros((self.sizes[0], *x.shape[1:])))[:0]
        return torch.cat([self._padded(call, x[start : start + largest]) for start in range(0, num_rows, largest)])

    def _padded(self, call: RowCall, x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        size = self.size_for(num_rows)
        if size == num_rows:
            return call(x)
        padded = x.new_zeros((size, *x.shape[1:]))
        padded[:num_rows] = x
        return call(padded)[:num_rows]

    def __str__(self) -> str:
        counts = f"1..{self.sizes[-1]}" if self.every_count else ",".join(map(str, self.sizes))
        return f"{self.form}: rows {counts}"


class RuleCache:
    """The row rules found so far in this process, by what they are for and the number of threads they were found with."""

    def __init__(self) -> None:
        self._rules: dict[tuple[str, int], RowRule] = {}

    def find(self, purpose: str, choose: Callable[[], RowRule]) -> RowRule:
        key = (purpose, torch.get_num_threads())
        if key not in self._rules:
            self._rules[key] = choose()
        return self._rules[key]

    def described(self) -> dict[str, str]:
        """Purpose and threads → rule, for people."""
        return {f"{purpose}, {threads} threads": str(rule) for (purpose, threads), rule in self._rules.items()}


def choose_rule(
    forms: Iterable[tuple[str, RowCall]], row: torch.Tensor, sizes: Sequence[int] = SIZES, *, every: bool = False
) -> RowRule:
    """The cheapest rule among all forms (the first that is good enough ends the search); row is [in] or [heads, in].

    With ``every`` a form whose sizes all agree is taken to be exact for all counts up to the largest.
    """
    best: RowRule | None = None
    for name, call in forms:
        for group in _agreeing_sizes(call, row, sizes):
            rule = RowRule(name, group, every_count=every and len(group) == len(sizes))
            if best is None or rule.cost < best.cost:
                best = rule
        if best is not None and best.cost <= _GOOD_COST:
            break
    assert best is not None, "no form was given"
    return best


def _agreeing_sizes(call: RowCall, row: torch.Tensor, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    groups: dict[bytes, list[int]] = {}
    for size in sizes:
        digest = _digest(call, row, size)
        if digest is not None:
            groups.setdefault(digest, []).append(size)
    return [tuple(group) for group in groups.values()]


def _digest(call: RowCall, row: torch.Tensor, size: int) -> bytes | None:
    """What one row becomes in a batch of ``size``; None if that depends on its position or address."""
    x = row.expand(size, *row.shape).contiguous()
    result = bits_of(call(x))
    if not bool((result == result[:1]).all()):
        return None
    if size <= _UNALIGNED_UP_TO:
        unaligned = x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
        if not torch.equal(bits_of(call(unaligned)), result):
            return None
    return hashlib.sha256(result[0].numpy().tobytes()).digest()


def bits_of(x: torch.Tensor) -> torch.Tensor:
    """The same bytes as integers: equality of these is equality of bits (0.0 and -0.0 differ, equal NaNs agree)."""
    return x.contiguous().view(_BITS[x.element_size()])
