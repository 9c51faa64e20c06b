"""Batch-invariant matrix products: a row's bits never depend on the rows beside it. For weights that stay.

Knows nothing of layers or models. A rule says in which form the weight is kept and which row counts are run
(row_rule.py finds it with the real shape, see there for what was measured).
Forms: ``packed32``/``packed1`` are oneDNN's prepacked weights (one row of 2048×7168 in bf16: 22 GB/s against 12 GB/s
unpacked), ``left`` has the weight as the left operand, ``linear`` is torch's own. ``native`` is the compiled kernel, which
reads a bf16 weight as it is; it alone is tried where the processor has no instructions for bf16 (AVX2, one thread: 1, 16
and 256 rows of 2048×7168 at 10, 39 and 49 GFLOP/s, torch's own 5, 10 and 10; of 64 heads of 512×128 at 15, 26 and 30,
torch's own 3). A weight with more than 8,192 outputs is cut into pieces, which bounds the time that finding a rule takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from .native import Native, load
from .processor import bf16_instructions
from .row_rule import EVERY_SIZES, SIZES, RowCall, RowRule, RuleCache, choose_rule
from .self_test_inputs import cancelling

_PIECE = 8192
_PACKED = {"packed32": 32, "packed1": 1}
_PLAIN = ("left", "linear")
_FLOAT32_SIZES = tuple(size for size in SIZES if size <= 128)


@dataclass(frozen=True)
class LinearRule:
    """Where the outputs are cut, and the rule of each piece: (start, stop, rule)."""

    pieces: tuple[tuple[int, int, RowRule], ...]


class BatchInvariantLinear:
    """x [R, in] → [R, out] in the weight's dtype; any R, also 0. The weight may be freed once this is built."""

    def __init__(self, weight: torch.Tensor, rule: LinearRule) -> None:
        self.num_out, self.num_in = weight.shape
        assert rule.pieces[-1][1] == self.num_out, f"rule for {rule.pieces[-1][1]} outputs, weight has {self.num_out}"
        self.dtype = weight.dtype
        self._pieces = [(piece, _form_call(piece.form, weight[start:stop])) for start, stop, piece in rule.pieces]

    @property
    def bytes_held(self) -> int:
        return self.num_out * self.num_in * self.dtype.itemsize

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (self.num_in,), f"x is {tuple(x.shape)}, wanted [R, {self.num_in}]"
        assert x.dtype is self.dtype, f"x is {x.dtype}, wanted {self.dtype}"
        x = x.contiguous()
        results = [rule.run(call, x) for rule, call in self._pieces]
        return results[0] if len(results) == 1 else torch.cat(results, dim=1)


class BatchInvariantScores:
    """A gate's products: x [R, in] times a weight [out, in], both bf16 or float32, summed in float32 → [R, out] float32.

    The compiled kernel reads a bf16 weight as it is; otherwise it is kept in float32 under a rule of its own.
    """

    def __init__(self, weight: torch.Tensor, book: RuleCache) -> None:
        native = native_kernel(weight.shape[1]) if weight.dtype is torch.bfloat16 else None
        self.weight: torch.Tensor | None = None  # as the compiled kernel reads it
        if native is not None:
            self.weight = native.in_large_pages(weight.shape, weight.dtype).copy_(weight)
            self._call = _native_call(native, self.weight, torch.float32)
        else:
            num_out, num_in = weight.shape
            linear = BatchInvariantLinear(weight.float(), linear_rule(book, num_out, num_in, torch.float32))
            self._call = lambda x: linear(x.float())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._call(x)


def native_kernel(num_in: int) -> Native | None:
    """The compiled kernel, where it is there and takes rows of this width."""
    loaded = load()
    return loaded if isinstance(loaded, Native) and num_in % 16 == 0 else None


class BatchInvariantHeads:
    """One small product per head: x [R, heads, in] → [R, heads, out]; the weight is [heads, in, out]."""

    def __init__(self, weight: torch.Tensor, rule: RowRule) -> None:
        self.num_heads, self.num_in, self.num_out = weight.shape
        self._rule = rule
        self._call = _heads_call(rule.form, weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        wanted = (self.num_heads, self.num_in)
        assert x.shape[1:] == wanted, f"x is {tuple(x.shape)}, wanted [R, {self.num_heads}, {self.num_in}]"
        return self._rule.run(self._call, x)


def linear_rule(book: RuleCache, num_out: int, num_in: int, dtype: torch.dtype, *, passing: bool = False) -> LinearRule:
    """The rule for a weight [out, in]; ``passing`` weights live for one call and are not worth packing."""
    pieces = []
    for start, stop in _cuts(num_out):
        kind = "passing linear" if passing else "linear"
        purpose = f"{kind} {stop - start}x{num_in} {_short(dtype)}"
        rule = book.find(purpose, partial(_choose_linear, stop - start, num_in, dtype, passing))
        pieces.append((start, stop, rule))
    return LinearRule(tuple(pieces))


def heads_rule(book: RuleCache, num_heads: int, num_in: int, num_out: int, dtype: torch.dtype) -> RowRule:
    """The rule for a weight [heads, in, out]."""

    def choose() -> RowRule:
        row, flat = cancelling(num_heads * num_out, num_in, dtype)
        weight = flat.view(num_heads, num_out, num_in).transpose(1, 2)
        if _is_native(num_in, dtype):
            return _native_rule(_heads_call("native", weight), row.expand(num_heads, num_in))
        forms = ((form, _heads_call(form, weight)) for form in ("left", "right", "right_rows"))
        return choose_rule(forms, row.expand(num_heads, num_in))

    return book.find(f"heads {num_heads}x{num_in}x{num_out} {_short(dtype)}", choose)


def _cuts(num_out: int) -> list[tuple[int, int]]:
    num_pieces = -(-num_out // _PIECE)
    step = -(-num_out // num_pieces // 64) * 64 if num_pieces > 1 else num_out
    return [(start, min(start + step, num_out)) for start in range(0, num_out, step)]


def _choose_linear(num_out: int, num_in: int, dtype: torch.dtype, passing: bool) -> RowRule:
    row, weight = cancelling(num_out, num_in, dtype)
    if _is_native(num_in, dtype):
        return _native_rule(_form_call("native", weight), row)
    sizes = SIZES if dtype is torch.bfloat16 else _FLOAT32_SIZES
    return choose_rule(_forms(weight, passing), row, sizes)


def _is_native(num_in: int, dtype: torch.dtype) -> bool:
    return dtype is torch.bfloat16 and not bf16_instructions() and native_kernel(num_in) is not None


def _native_rule(call: RowCall, row: torch.Tensor) -> RowRule:
    return choose_rule([("native", call)], row, EVERY_SIZES, every=True)


def _native_call(native: Native, weight: torch.Tensor, dtype: torch.dtype) -> RowCall:
    """x [R, in] → [R, out] in ``dtype``, the weight being [out, in], or all of that with heads."""
    return lambda x: native.multiply(x, weight, dtype, native.instruction_sets[0])


def _forms(weight: torch.Tensor, passing: bool) -> Iterator[tuple[str, RowCall]]:
    for form in _PLAIN if passing else (*_PACKED, *_PLAIN):
        try:
            call = _form_call(form, weight)
        except RuntimeError:  # oneDNN has no packed form of this dtype on this processor
            continue
        yield form, call


def _form_call(form: str, weight: torch.Tensor) -> RowCall:
    if form == "native":
        native = native_kernel(weight.shape[1])
        assert native is not None
        return _native_call(native, weight.contiguous(), weight.dtype)
    if form in _PACKED:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED[form])
        linear = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: linear(x, packed, None, "none", [], "")
    if form == "left":
        return lambda x: torch.mm(weight, x.t()).t().contiguous()
    assert form == "linear", form
    return lambda x: torch.nn.functional.linear(x, weight)


def _heads_call(form: str, weight: torch.Tensor) -> RowCall:
    """x [R, heads, in] → [R, heads, out]."""
    if form == "right":
        kept = weight.contiguous()
        return lambda x: torch.bmm(x.transpose(0, 1).contiguous(), kept).transpose(0, 1).contiguous()
    turned = weight.transpose(1, 2).contiguous()  # [heads, out, in]
    if form == "native":
        native = native_kernel(turned.shape[2])
        assert native is not None
        return _native_call(native, turned, turned.dtype)
    if form == "right_rows":
        return lambda x: torch.bmm(x.transpose(0, 1).contiguous(), turned.transpose(1, 2)).transpose(0, 1).contiguous()
    assert form == "left", form
    return lambda x: torch.bmm(turned, x.permute(1, 2, 0)).permute(2, 0, 1).contiguous()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
