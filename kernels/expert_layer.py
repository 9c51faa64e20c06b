"""The experts of one layer that a shard holds, ready for one way of computing them.

Knows nothing of routes, frames or files: it takes the checkpoint's tensors of one expert after another and applies
experts to rows. ``Int4PackLayer`` keeps them as torch's CPU operator wants them; ``ReferenceLayer`` keeps the checkpoint's
own words and scales and dequantises them in every call.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import int4
from .activation import silu_mul
from .errors import KernelError
from .exact_linear import ExactLinear, LinearRule
from .int4pack import Int4Packer, int4_call
from .row_rule import RowCall, RowRule

Projection = tuple[torch.Tensor, torch.Tensor]  # words int32 [out, in / 8], scales bf16 [out, in / group]


@dataclass(frozen=True)
class ExpertShape:
    hidden: int
    width: int
    group_size: int


class ExpertLayer(ABC):
    """``add`` experts, then ``apply`` them to rows; a row's result never depends on the rows beside it."""

    def __init__(self, shape: ExpertShape, dtype: torch.dtype) -> None:
        self.shape = shape
        self.dtype = dtype

    def add(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        """gate and up: words [F, H/8], scales [F, H/g]; down: words [H, F/8], scales [H, F/g]."""
        if self.holds(expert_id):
            raise KernelError(f"expert {expert_id} is held already")
        hidden, width = self.shape.hidden, self.shape.width
        for name, projection, num_out, num_in in (
            ("gate", gate, width, hidden),
            ("up", up, width, hidden),
            ("down", down, hidden, width),
        ):
            self._check(f"expert {expert_id}: {name}", projection, num_out, num_in)
        self._keep(expert_id, gate, up, down)

    def _check(self, what: str, projection: Projection, num_out: int, num_in: int) -> None:
        words, scales = projection
        group_size = self.shape.group_size
        for part, tensor, dtype, wanted in (
            ("words", words, torch.int32, (num_out, num_in // 8)),
            ("scales", scales, torch.bfloat16, (num_out, num_in // group_size)),
        ):
            if tensor.dtype is not dtype or tuple(tensor.shape) != wanted:
                found = f"{tensor.dtype} {tuple(tensor.shape)}"
                raise KernelError(f"{what} {part}: {found}, wanted {dtype} {wanted}")

    @abstractmethod
    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None: ...

    @abstractmethod
    def holds(self, expert_id: int) -> bool: ...

    @property
    @abstractmethod
    def bytes_held(self) -> int: ...

    @abstractmethod
    def apply(self, expert_ids: Sequence[int], rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Each expert, which is held, on its rows [R, H] → all results one below the other [N, H]."""


class Int4PackLayer(ExpertLayer):
    """Gate and up lie in one packed matrix; the intermediate is one float32 step between two bf16 roundings."""

    def __init__(
        self, shape: ExpertShape, dtype: torch.dtype, packer: Int4Packer, gate_up_rule: RowRule, down_rule: RowRule
    ) -> None:
        super().__init__(shape, dtype)
        self._packer = packer
        self._gate_up_rule = gate_up_rule
        self._down_rule = down_rule
        self._calls: dict[int, tuple[RowCall, RowCall]] = {}
        self._bytes_held = 0

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        first, second = self._packer.pack((gate, up), self.dtype), self._packer.pack((down,), self.dtype)
        self._calls[expert_id] = int4_call(first), int4_call(second)
        self._bytes_held += first.nbytes + second.nbytes

    def holds(self, expert_id: int) -> bool:
        return expert_id in self._calls

    @property
    def bytes_held(self) -> int:
        return self._bytes_held

    def apply(self, expert_ids: Sequence[int], rows: Sequence[torch.Tensor]) -> torch.Tensor:
        calls = [self._calls[expert_id] for expert_id in expert_ids]
        both = torch.cat([self._gate_up_rule.run(call, x) for (call, _), x in zip(calls, rows, strict=True)])  # [N, 2F]
        width = self.shape.width
        inner = silu_mul(both[:, :width], both[:, width:]).split_with_sizes([len(x) for x in rows])
        return torch.cat([self._down_rule.run(call, x) for (_, call), x in zip(calls, inner, strict=True)])


class ReferenceLayer(ExpertLayer):
    """Exact weights, all arithmetic in float32, one rounding at the end; a call costs a whole dequantisation."""

    def __init__(self, shape: ExpertShape, dtype: torch.dtype, gate_up_rule: LinearRule, down_rule: LinearRule) -> None:
        super().__init__(shape, dtype)
        self._gate_up_rule = gate_up_rule
        self._down_rule = down_rule
        self._experts: dict[int, tuple[Projection, Projection, Projection]] = {}

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        self._experts[expert_id] = (gate, up, down)

    def holds(self, expert_id: int) -> bool:
        return expert_id in self._experts

    @property
    def bytes_held(self) -> int:
        return sum(part.nbytes for three in self._experts.values() for projection in three for part in projection)

    def apply(self, expert_ids: Sequence[int], rows: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([self._apply_one(expert_id, x) for expert_id, x in zip(expert_ids, rows, strict=True)])

    def _apply_one(self, expert_id: int, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = self._experts[expert_id]
        x32 = x.float()
        first = ExactLinear(int4.dequantize(*gate), self._gate_up_rule)(x32)
        second = ExactLinear(int4.dequantize(*up), self._gate_up_rule)(x32)
        return ExactLinear(int4.dequantize(*down), self._down_rule)(silu_mul(first, second)).to(x.dtype)
