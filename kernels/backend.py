"""Chooses how experts are computed on this machine, by name, and never another way silently.

Knows nothing of experts' numbers or of workers. ``auto`` takes cpu-int4pack for bfloat16 and reference for float32,
where torch's int4 operator is scalar code (1 GFLOP/s a core, against 100 for a dequantised product). ``triton`` is the
only one for device cuda and is never chosen by itself: its bits have been proved in Triton's interpreter alone so far.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch

from .errors import KernelError
from .exact_linear import LinearRule, linear_rule
from .expert_layer import ExpertLayer, ExpertShape, Int4PackLayer, ReferenceLayer
from .int4pack import Int4Packer, check_shape, int4_rule
from .row_rule import RowRule, RuleBook
from .triton_layer import TritonLayer, check_triton

BackendName = Literal["cpu-int4pack", "reference", "triton"]
NAMES: tuple[BackendName, ...] = ("cpu-int4pack", "reference", "triton")
_DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Int4Rules:
    packer: Int4Packer
    gate_up: RowRule
    down: RowRule


@dataclass(frozen=True)
class ReferenceRules:
    gate_up: LinearRule
    down: LinearRule


@dataclass(frozen=True)
class TritonRules:
    """Nothing to find: one tensor-core instruction and one order of summation serve every number of rows."""

    device: str


@dataclass(frozen=True)
class Backend:
    """A way of computing experts of one shape in one dtype; ``new_layer`` makes an empty layer for it."""

    name: BackendName
    shape: ExpertShape
    dtype: torch.dtype
    rules: Int4Rules | ReferenceRules | TritonRules

    @property
    def description(self) -> str:
        """One line for people: the name, the dtype, the shape, and how rows are kept exact."""
        shape, dtype = self.shape, str(self.dtype).removeprefix("torch.")
        if isinstance(self.rules, TritonRules):
            exact = f"any number of rows on {torch.cuda.get_device_name(self.rules.device)}"
        else:
            exact = f"gate_up {self._shown(self.rules.gate_up)}; down {self._shown(self.rules.down)}"
        return f"{self.name} {dtype}, {shape.hidden}→{shape.width}→{shape.hidden} group {shape.group_size}; {exact}"

    def new_layer(self) -> ExpertLayer:
        if isinstance(self.rules, Int4Rules):
            return Int4PackLayer(self.shape, self.dtype, self.rules.packer, self.rules.gate_up, self.rules.down)
        if isinstance(self.rules, TritonRules):
            return TritonLayer(self.shape, self.rules.device)
        return ReferenceLayer(self.shape, self.dtype, self.rules.gate_up, self.rules.down)

    @staticmethod
    def _shown(rule: RowRule | LinearRule) -> str:
        return str(rule) if isinstance(rule, RowRule) else str(rule.pieces[0][2])


def make_backend(
    name: str,
    device: str,
    dtype: torch.dtype,
    hidden: int,
    width: int,
    group_size: int,
    *,
    rules: RuleBook | None = None,
) -> Backend:
    """The backend ``name`` (or what ``auto`` means here), its rules tested with these shapes and today's threads."""
    if device != "cpu" and name != "triton":
        raise KernelError(f"device: {device!r} has no backend {name!r}, only triton (and it only 'cuda')")
    if dtype not in _DTYPES:
        raise KernelError(f"dtype: {dtype} is not served, only bfloat16 and float32")
    shape = ExpertShape(hidden, width, group_size)
    _check_multiples(shape)
    book = RuleBook() if rules is None else rules
    chosen = _resolve(name, dtype)
    if chosen == "triton":
        check_triton(device, dtype, shape)
        return Backend(chosen, shape, dtype, TritonRules(device))
    if chosen == "cpu-int4pack":
        return Backend(chosen, shape, dtype, _int4_rules(book, shape, dtype))
    if chosen == "reference":
        gate_up = linear_rule(book, width, hidden, torch.float32, passing=True)
        down = linear_rule(book, hidden, width, torch.float32, passing=True)
        return Backend(chosen, shape, dtype, ReferenceRules(gate_up, down))
    assert_never(chosen)


def _resolve(name: str, dtype: torch.dtype) -> BackendName:
    if name == "auto":
        return "cpu-int4pack" if dtype is torch.bfloat16 else "reference"
    for known in NAMES:
        if name == known:
            return known
    raise KernelError(f"backend: {name!r} is unknown, one of auto, {', '.join(NAMES)}")


def _check_multiples(shape: ExpertShape) -> None:
    for field, value in (("hidden", shape.hidden), ("width", shape.width)):
        for what, unit in (("the group size", shape.group_size), ("the eight codes of a word", 8)):
            if value < 1 or unit < 1 or value % unit:
                raise KernelError(f"{field}: {value} is not a multiple of {what}, {unit}")


def _int4_rules(book: RuleBook, shape: ExpertShape, dtype: torch.dtype) -> Int4Rules:
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        raise KernelError("backend: cpu-int4pack needs torch's operator _weight_int4pack_mm_for_cpu, which is missing")
    check_shape(2 * shape.width, shape.hidden, shape.group_size)
    check_shape(shape.hidden, shape.width, shape.group_size)
    packer = Int4Packer()
    gate_up = int4_rule(book, packer, 2 * shape.width, shape.hidden, shape.group_size, dtype)
    return Int4Rules(packer, gate_up, int4_rule(book, packer, shape.hidden, shape.width, shape.group_size, dtype))
