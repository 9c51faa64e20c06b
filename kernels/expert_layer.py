"""The experts of one layer that a shard holds, ready for one way of computing them.

Knows nothing of frames or files: it takes the checkpoint's tensors of one expert after another and applies experts to
routes. ``NativeLayer`` keeps them as the compiled kernel wants them, ``ReferenceLayer`` as they come.
"""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass

import torch

from . import int4
from .activation import silu_mul
from .batch_invariant_linear import BatchInvariantLinear, LinearRule
from .errors import KernelError
from .native import Blocks, Native, tensor_at
from .native_layout import unpack_to_checkpoint

Projection = tuple[torch.Tensor, torch.Tensor]  # words int32 [out, in / 8], scales bf16 [out, in / group]
ExpertWeights = tuple[Projection, Projection, Projection]  # gate, up, down


@dataclass(frozen=True)
class ExpertShape:
    hidden: int
    width: int
    group_size: int


class ExpertLayer(ABC):
    """``add`` experts, then ``apply`` them to routes; a route's result never depends on the routes beside it."""

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

    def remove(self, expert_id: int) -> None:
        """Gives its memory back; on the thread that applies experts."""
        if not self.holds(expert_id):
            raise KernelError(f"expert {expert_id} is not held")
        self._drop(expert_id)

    def weights(self, expert_id: int) -> ExpertWeights:
        """The checkpoint's own gate, up and down, turned back from how they are kept; also while others apply experts.

        Raises KernelError for an expert that is not held, and where they cannot be turned back.
        """
        try:
            return self._unpack_to_checkpoint(expert_id)
        except KeyError:
            raise KernelError(f"expert {expert_id} is not held") from None

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
    def _drop(self, expert_id: int) -> None: ...

    @abstractmethod
    def _unpack_to_checkpoint(self, expert_id: int) -> ExpertWeights:
        """Finds what is kept in one step, as another thread may drop it at any time. Raises KeyError for what is not held."""

    @abstractmethod
    def holds(self, expert_id: int) -> bool: ...

    @property
    @abstractmethod
    def bytes_held(self) -> int: ...

    def check_routes(self, num_rows: int, route_rows: torch.Tensor, route_experts: torch.Tensor) -> None:
        """Raises KernelError for a row that there is not and an expert that is not held."""
        routes = route_rows.numpy()
        if routes.min() < 0 or routes.max() >= num_rows:
            raise KernelError(f"route rows {routes.tolist()}, but there are {num_rows} rows")
        for expert_id in set(route_experts.tolist()):
            if not self.holds(expert_id):
                raise KernelError(f"expert {expert_id} is not held")

    @abstractmethod
    def apply(self, x: torch.Tensor, route_rows: torch.Tensor, route_experts: torch.Tensor, out: torch.Tensor) -> None:
        """x [R, H], at least one route of rows and held experts, both int64 [N] → out [N, H] in the routes' order."""

    def apply_at(self, x: int, num_rows: int, route_rows: int, route_experts: int, num_routes: int, out: int) -> None:
        """The same for whoever has them in memory, whose addresses are given: x and out in the layer's dtype, routes int32.

        Raises KernelError for a row that there is not and an expert that is not held.
        """
        hidden = self.shape.hidden
        rows, experts = (tensor_at(routes, (num_routes,), torch.int32).long() for routes in (route_rows, route_experts))
        self.check_routes(num_rows, rows, experts)
        results = tensor_at(out, (num_routes, hidden), self.dtype)
        self.apply(tensor_at(x, (num_rows, hidden), self.dtype), rows, experts, results)


class NativeLayer(ExpertLayer):
    """The checkpoint's own bytes in another order, and a page or two for their places."""

    def __init__(self, shape: ExpertShape, dtype: torch.dtype, native: Native, instruction_set: str) -> None:
        super().__init__(shape, dtype)
        self._native = native
        self._instruction_set = instruction_set
        self._blocks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by expert
        self._places = Blocks(0)
        self._changing = threading.Lock()  # experts may come while others go

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        blocks = self._native.pack_gate_up(gate, up), self._native.pack_down(down)
        with self._changing:
            self._places = self._places.with_expert(expert_id, *blocks)  # another thread may be applying the old ones
            self._blocks[expert_id] = blocks  # last, as this is what says that it is held

    def _drop(self, expert_id: int) -> None:
        with self._changing:
            self._places.forget(expert_id)  # this is the thread that applies
            del self._blocks[expert_id]

    def _unpack_to_checkpoint(self, expert_id: int) -> ExpertWeights:
        gate_up, down = self._blocks[expert_id]
        return unpack_to_checkpoint(gate_up, down, self.shape.width, self.shape.hidden, self.shape.group_size)

    def holds(self, expert_id: int) -> bool:
        return expert_id in self._blocks

    @property
    def bytes_held(self) -> int:
        return sum(block.nbytes for blocks in list(self._blocks.values()) for block in blocks)

    def apply(self, x: torch.Tensor, route_rows: torch.Tensor, route_experts: torch.Tensor, out: torch.Tensor) -> None:
        assert out.is_contiguous(), f"out has strides {out.stride()}"
        assert x.dtype is out.dtype is self.dtype, f"x is {x.dtype}, out {out.dtype}, the layer {self.dtype}"
        assert x.shape[1] == self.shape.hidden, f"x is {tuple(x.shape)}, the layer takes {self.shape.hidden} values"
        x, rows, experts = x.contiguous(), route_rows.int().contiguous(), route_experts.int().contiguous()
        num_routes = route_rows.shape[0]
        assert experts.shape == (num_routes,), f"{num_routes} rows, {tuple(experts.shape)} experts"
        assert out.shape == (num_routes, self.shape.hidden), f"out is {tuple(out.shape)} for {num_routes} routes"
        self.apply_at(x.data_ptr(), x.shape[0], rows.data_ptr(), experts.data_ptr(), num_routes, out.data_ptr())

    def apply_at(self, x: int, num_rows: int, route_rows: int, route_experts: int, num_routes: int, out: int) -> None:
        shape = self.shape
        self._native.apply(
            x, self.dtype is torch.float32, num_rows, shape.hidden, route_rows, route_experts, num_routes, self._places,
            shape.width, shape.group_size, self._instruction_set, out,
        )  # fmt: skip


class ByExpertLayer(ExpertLayer):
    """1. The routes are sorted by expert and their rows gathered; 2. each expert runs once over its stretch; 3. the
    results go to their routes' places."""

    def apply(self, x: torch.Tensor, route_rows: torch.Tensor, route_experts: torch.Tensor, out: torch.Tensor) -> None:
        counts = sorted(Counter(route_experts.tolist()).items())
        order = torch.argsort(route_experts, stable=True)
        rows = x[route_rows[order]].split_with_sizes([count for _, count in counts])  # [N, H] by expert
        out.index_copy_(0, order, self._apply_each([expert_id for expert_id, _ in counts], rows))

    @abstractmethod
    def _apply_each(self, expert_ids: list[int], rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Each expert, which is held, on its rows [R, H] → all results one below the other [N, H]."""


class ReferenceLayer(ByExpertLayer):
    """Exact weights, all arithmetic in float32, one rounding at the end; a call costs a whole dequantisation."""

    def __init__(self, shape: ExpertShape, dtype: torch.dtype, gate_up_rule: LinearRule, down_rule: LinearRule) -> None:
        super().__init__(shape, dtype)
        self._gate_up_rule = gate_up_rule
        self._down_rule = down_rule
        self._experts: dict[int, ExpertWeights] = {}

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        self._experts[expert_id] = (gate, up, down)

    def _drop(self, expert_id: int) -> None:
        del self._experts[expert_id]

    def _unpack_to_checkpoint(self, expert_id: int) -> ExpertWeights:
        return self._experts[expert_id]

    def holds(self, expert_id: int) -> bool:
        return expert_id in self._experts

    @property
    def bytes_held(self) -> int:
        return sum(part.nbytes for three in list(self._experts.values()) for projection in three for part in projection)

    def _apply_each(self, expert_ids: list[int], rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
        pairs = zip(expert_ids, rows, strict=True)
        return torch.cat([self._apply_one(self._experts[expert_id], x) for expert_id, x in pairs])

    def _apply_one(self, expert: ExpertWeights, x: torch.Tensor) -> torch.Tensor:
        """[R, H] → [R, H]."""
        gate, up, down = expert
        x32 = x.float()
        first = BatchInvariantLinear(int4.dequantize(*gate), self._gate_up_rule)(x32)
        second = BatchInvariantLinear(int4.dequantize(*up), self._gate_up_rule)(x32)
        return BatchInvariantLinear(int4.dequantize(*down), self._down_rule)(silu_mul(first, second)).to(x.dtype)
