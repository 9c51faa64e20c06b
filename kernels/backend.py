"""Chooses how experts are computed on this machine, by name, and never another way silently.

Knows nothing of experts' numbers or of workers. ``auto`` takes cpu-native where the package was built with a C++ compiler
and the processor and the group size fit, and says so where not: then it takes cpu-int4pack for bfloat16 and reference for
float32, where torch's int4 operator is scalar code (1 GFLOP/s a core, against 100 for a dequantised product). On device cuda
there is only ``triton``.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch

from . import native
from .errors import KernelError
from .exact_linear import LinearRule, linear_rule
from .expert_layer import ExpertLayer, ExpertShape, Int4PackLayer, NativeLayer, ReferenceLayer
from .int4pack import Int4Packer, check_shape, int4_rule
from .row_rule import RowRule, RuleBook
from .triton_layer import TritonLayer, check_triton

BackendName = Literal["cpu-native", "cpu-int4pack", "reference", "triton"]
NAMES: tuple[BackendName, ...] = ("cpu-native", "cpu-int4pack", "reference", "triton")
_DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class NativeRules:
    """Nothing to find: sums whose order could matter are integers."""

    native: native.Native
    instruction_set: str


@dataclass(frozen=True)
class Int4Rules:
    packer: Int4Packer
    gate_up: RowRule
    down: RowRule


@dataclass(frozen=True)
class LinearRules:
    gate_up: LinearRule
    down: LinearRule


@dataclass(frozen=True)
class TritonRules:
    """Nothing to find: one tensor-core instruction and one order of summation serve every number of rows."""

    device: str


@dataclass(frozen=True)
class Backend:
    """A way of computing experts of one shape in one dtype; ``new_layer`` makes an empty layer for it.

    ``remark`` says why ``auto`` could not take the fastest one.
    """

    name: BackendName
    shape: ExpertShape
    dtype: torch.dtype
    rules: NativeRules | Int4Rules | LinearRules | TritonRules
    remark: str = ""

    @property
    def description(self) -> str:
        """One line for people: the name, the dtype, the shape, and how rows are kept exact."""
        shape, dtype = self.shape, str(self.dtype).removeprefix("torch.")
        if isinstance(self.rules, NativeRules):
            exact = f"any number of rows, {self.rules.instruction_set}"
        elif isinstance(self.rules, TritonRules):
            exact = f"any number of rows on {torch.cuda.get_device_name(self.rules.device)}"
        else:
            exact = f"gate_up {self._shown(self.rules.gate_up)}; down {self._shown(self.rules.down)}"
        described = (
            f"{self.name} {dtype}, {shape.hidden}→{shape.width}→{shape.hidden} group {shape.group_size}; {exact}"
        )
        return f"{described}; {self.remark}" if self.remark else described

    def new_layer(self) -> ExpertLayer:
        if isinstance(self.rules, NativeRules):
            return NativeLayer(self.shape, self.dtype, self.rules.native, self.rules.instruction_set)
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
    instruction_set: str | None = None,
) -> Backend:
    """The backend ``name`` (or what ``auto`` means here), its rules tested with these shapes and today's threads.

    ``instruction_set`` is for cpu-native; it takes the best that the processor has if none is given.
    """
    if device != "cpu" and name not in ("auto", "triton"):
        raise KernelError(f"device: {device!r} has no backend {name!r}, only triton (and it only 'cuda')")
    if dtype not in _DTYPES:
        raise KernelError(f"dtype: {dtype} is not served, only bfloat16 and float32")
    shape = ExpertShape(hidden, width, group_size)
    _check_multiples(shape)
    book = RuleBook() if rules is None else rules
    found = _find_native(shape)
    chosen = _resolve(name, device, dtype, isinstance(found, native.Native))
    remark = f"cpu-native is not used: {found}" if isinstance(found, str) and name == "auto" else ""
    if chosen == "cpu-native":
        return Backend(chosen, shape, dtype, _native_rules(found, instruction_set))
    if chosen == "triton":
        check_triton(device, dtype, shape)
        return Backend(chosen, shape, dtype, TritonRules(device))
    if chosen == "cpu-int4pack":
        return Backend(chosen, shape, dtype, _int4_rules(book, shape, dtype), remark)
    if chosen == "reference":
        gate_up = linear_rule(book, width, hidden, torch.float32, passing=True)
        down = linear_rule(book, hidden, width, torch.float32, passing=True)
        return Backend(chosen, shape, dtype, LinearRules(gate_up, down), remark)
    assert_never(chosen)


def _resolve(name: str, device: str, dtype: torch.dtype, has_native: bool) -> BackendName:
    if name == "auto":
        if device != "cpu":
            return "triton"
        if has_native:
            return "cpu-native"
        return "cpu-int4pack" if dtype is torch.bfloat16 else "reference"
    for known in NAMES:
        if name == known:
            return known
    raise KernelError(f"backend: {name!r} is unknown, one of auto, {', '.join(NAMES)}")


def _find_native(shape: ExpertShape) -> native.Native | str:
    """The library, or why it cannot compute experts of this shape."""
    return native.unsupported(shape.group_size) or native.load()


def _native_rules(found: native.Native | str, instruction_set: str | None) -> NativeRules:
    if isinstance(found, str):
        raise KernelError(f"backend: cpu-native cannot be used: {found}")
    if instruction_set not in (None, *found.instruction_sets):
        known = ", ".join(found.instruction_sets)
        raise KernelError(f"instruction_set: {instruction_set!r} is not there, this processor has {known}")
    return NativeRules(found, instruction_set or found.instruction_sets[0])


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
