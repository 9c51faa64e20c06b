"""Chooses how experts are computed on this machine, by name, and never another way silently.

Knows nothing of experts' numbers or of workers. ``auto`` takes cpu-native where the package was built with a C++ compiler
and the processor and the group size fit. Elsewhere it takes reference, which dequantises an expert for every call, and says
so, and how slow that is. On device cuda there is only ``triton``.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch

from . import native
from .batch_invariant_linear import LinearRule, linear_rule
from .errors import KernelError
from .expert_layer import ExpertLayer, ExpertShape, NativeLayer, ReferenceLayer
from .row_rule import RuleCache
from .triton_layer import TritonLayer, check_triton

BackendName = Literal["cpu-native", "reference", "triton"]
NAMES: tuple[BackendName, ...] = ("cpu-native", "reference", "triton")
_DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class NativeRules:
    """Nothing to find: sums whose order could matter are integers."""

    native: native.Native
    instruction_set: str


@dataclass(frozen=True)
class LinearRules:
    gate_up: LinearRule
    down: LinearRule


@dataclass(frozen=True)
class TritonRules:
    """Nothing to find: one tensor-core instruction and one order of summation serve every number of rows."""

    device: str


@dataclass(frozen=True)
class ExpertBackend:
    """A way of computing experts of one shape in one dtype; ``new_layer`` makes an empty layer for it.

    ``remark`` says why ``auto`` could not take the fastest one.
    """

    name: BackendName
    shape: ExpertShape
    dtype: torch.dtype
    rules: NativeRules | LinearRules | TritonRules
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
        if isinstance(self.rules, TritonRules):
            return TritonLayer(self.shape, self.rules.device)
        return ReferenceLayer(self.shape, self.dtype, self.rules.gate_up, self.rules.down)

    @staticmethod
    def _shown(rule: LinearRule) -> str:
        return str(rule.pieces[0][2])


def make_backend(
    name: str,
    device: str,
    dtype: torch.dtype,
    hidden: int,
    width: int,
    group_size: int,
    *,
    rules: RuleCache | None = None,
    instruction_set: str | None = None,
) -> ExpertBackend:
    """The backend ``name`` (or what ``auto`` means here), its rules tested with these shapes and today's threads.

    ``instruction_set`` is for cpu-native; it takes the best that the processor has if none is given.
    """
    if device != "cpu" and name not in ("auto", "triton"):
        raise KernelError(f"device: {device!r} has no backend {name!r}, only triton (and it only 'cuda')")
    if dtype not in _DTYPES:
        raise KernelError(f"dtype: {dtype} is not served, only bfloat16 and float32")
    shape = ExpertShape(hidden, width, group_size)
    _check_multiples(shape)
    book = RuleCache() if rules is None else rules
    found = _find_native(shape)
    chosen = _resolve(name, device, isinstance(found, native.Native))
    remark = _slow(found) if isinstance(found, str) and name == "auto" else ""
    if chosen == "cpu-native":
        return ExpertBackend(chosen, shape, dtype, _native_rules(found, instruction_set))
    if chosen == "triton":
        check_triton(device, dtype, shape)
        return ExpertBackend(chosen, shape, dtype, TritonRules(device))
    if chosen == "reference":
        gate_up = linear_rule(book, width, hidden, torch.float32, passing=True)
        down = linear_rule(book, hidden, width, torch.float32, passing=True)
        return ExpertBackend(chosen, shape, dtype, LinearRules(gate_up, down), remark)
    assert_never(chosen)


def _resolve(name: str, device: str, has_native: bool) -> BackendName:
    if name == "auto":
        if device != "cpu":
            return "triton"
        return "cpu-native" if has_native else "reference"
    for known in NAMES:
        if name == known:
            return known
    raise KernelError(f"backend: {name!r} is unknown, one of auto, {', '.join(NAMES)}")


def _slow(why: str) -> str:
    """Measured with K2's experts on one thread: 129 times for 1 token, 14 for 16."""
    return f"cpu-native is not used, which takes a token's experts about 100 times as long: {why}"


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
