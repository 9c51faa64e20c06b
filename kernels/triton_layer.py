"""The experts of one layer in the memory of an NVIDIA GPU, for the Triton kernels.

Knows nothing of routes' origin. Imports without Triton; only ``apply`` needs it. Rows may lie on the CPU: they are copied
there and back. Each expert is one block of its own, so experts come and go without moving the others.
"""

import importlib.util
from typing import TYPE_CHECKING

import torch

from .errors import KernelError
from .expert_layer import ExpertLayer, ExpertShape, Projection, Three
from .triton_layout import ExpertLayout, lay_out, turn_back

if TYPE_CHECKING:
    from .triton_experts import ExpertTable


class Slots:
    """A number for each expert, small and given again once its expert is gone."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._free: list[int] = []

    def __contains__(self, expert_id: int) -> bool:
        return expert_id in self._slots

    def take(self, expert_id: int) -> None:
        self._slots[expert_id] = self._free.pop() if self._free else len(self._slots)

    def release(self, expert_id: int) -> int:
        slot = self._slots.pop(expert_id)
        self._free.append(slot)
        return slot

    def of(self, expert_ids: torch.Tensor) -> list[int]:
        return [self._slots[expert_id] for expert_id in expert_ids.tolist()]


class TritonLayer(ExpertLayer):
    """Exact weights in the checkpoint's own bits, float32 sums, a rounding to bf16 after SwiGLU and one at the end."""

    def __init__(self, shape: ExpertShape, device: str) -> None:
        super().__init__(shape, torch.bfloat16)
        self._layout = ExpertLayout(shape)
        self._device = device
        self._slots = Slots()
        self._blocks: dict[int, torch.Tensor] = {}  # by expert
        self._table: ExpertTable | None = None

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        gate, up, down = ((words.to(self._device), scales.to(self._device)) for words, scales in (gate, up, down))
        self._blocks[expert_id] = lay_out(self._layout, gate, up, down)
        self._slots.take(expert_id)
        self._table = None

    def _drop(self, expert_id: int) -> None:
        self._slots.release(expert_id)
        del self._blocks[expert_id]
        self._table = None

    def _turn_back(self, expert_id: int) -> Three:
        return turn_back(self._layout, self._blocks[expert_id].cpu())

    def holds(self, expert_id: int) -> bool:
        return expert_id in self._slots

    @property
    def bytes_held(self) -> int:
        return sum(block.nbytes for block in list(self._blocks.values()))

    @property
    def table(self) -> "ExpertTable":
        from .triton_experts import ExpertTable  # NOTE: Triton is an optional extra, and this module imports without it

        if self._table is None:
            blocks = list(self._blocks.items())
            slots = self._slots.of(torch.tensor([expert_id for expert_id, _ in blocks]))
            addresses = torch.zeros(max(slots) + 1, dtype=torch.int64)
            for slot, (_, block) in zip(slots, blocks, strict=True):
                addresses[slot] = block.data_ptr()
            self._table = ExpertTable(self._layout, addresses.to(self._device))
        return self._table

    def apply(self, x: torch.Tensor, route_rows: torch.Tensor, route_experts: torch.Tensor, out: torch.Tensor) -> None:
        from .triton_experts import grouped_experts

        slots = torch.tensor(self._slots.of(route_experts), dtype=torch.int32)
        rows, slots = (each.to(self._device, torch.int32) for each in (route_rows, slots))
        out.copy_(grouped_experts(x.to(self._device), rows, slots, self.table))


def check_triton(device: str, dtype: torch.dtype, shape: ExpertShape) -> None:
    """KernelError with what is missing, if this machine cannot run the kernels for this shape."""
    if device.split(":")[0] != "cuda":
        raise KernelError(f"device: backend triton runs on 'cuda', not on {device!r}")
    if dtype is not torch.bfloat16:
        raise KernelError(f"dtype: backend triton takes bfloat16, not {dtype}")
    ExpertLayout(shape)
    if not torch.cuda.is_available():
        raise KernelError(f"device: {device!r} is wanted, but torch {torch.__version__} sees no CUDA device here")
    if importlib.util.find_spec("triton") is None:
        raise KernelError("backend: triton needs the package of that name: pip install 'expertfleet[gpu]'")
