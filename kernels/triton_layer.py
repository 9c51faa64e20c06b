"""The experts of one layer in the memory of an NVIDIA GPU, for the Triton kernels.

Knows nothing of routes' origin. Imports without Triton; only ``apply`` needs it. Rows may lie on the CPU: they are copied
there and back. Each expert is one block of its own, so experts come and go without moving the others, on any thread while another
one applies them.
"""

import importlib.util
import threading
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from .errors import KernelError
from .expert_layer import ExpertLayer, ExpertShape, ExpertWeights, Projection
from .triton_layout import ExpertLayout, lay_out, unpack_to_checkpoint

if TYPE_CHECKING:
    from .triton_experts import ExpertTable


class Held:
    """The experts at one moment, which nobody changes: another set takes its place. An expert's slot is its place among them."""

    def __init__(self, layout: ExpertLayout, blocks: dict[int, torch.Tensor]) -> None:
        self.blocks = blocks  # by expert
        self._layout = layout
        self._slots = {expert_id: slot for slot, expert_id in enumerate(blocks)}

    def with_expert(self, expert_id: int, block: torch.Tensor) -> "Held":
        return Held(self._layout, self.blocks | {expert_id: block})

    def without(self, expert_id: int) -> "Held":
        return Held(self._layout, {other: block for other, block in self.blocks.items() if other != expert_id})

    def slots_of(self, expert_ids: torch.Tensor) -> torch.Tensor:
        """[N] int32."""
        return torch.tensor([self._slots[expert_id] for expert_id in expert_ids.tolist()], dtype=torch.int32)

    @cached_property
    def table(self) -> "ExpertTable":
        """Made by whoever applies experts, once."""
        from .triton_experts import ExpertTable  # NOTE: Triton is an optional extra, and this module imports without it

        blocks = list(self.blocks.values())
        addresses = torch.tensor([block.data_ptr() for block in blocks], dtype=torch.int64)
        return ExpertTable(self._layout, addresses.to(blocks[0].device))


class TritonLayer(ExpertLayer):
    """Exact weights in the checkpoint's own bits, float32 sums, a rounding to bf16 after SwiGLU and one at the end."""

    def __init__(self, shape: ExpertShape, device: str) -> None:
        super().__init__(shape, torch.bfloat16)
        self._layout = ExpertLayout(shape)
        self._device = device
        self._held = Held(self._layout, {})  # read once by whoever needs it: another thread may replace it at any time
        self._changing = threading.Lock()  # experts may come while others go

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        gate, up, down = ((words.to(self._device), scales.to(self._device)) for words, scales in (gate, up, down))
        block = lay_out(self._layout, gate, up, down)
        with self._changing:
            self._held = self._held.with_expert(expert_id, block)

    def _drop(self, expert_id: int) -> None:
        with self._changing:
            self._held = self._held.without(expert_id)

    def _unpack_to_checkpoint(self, expert_id: int) -> ExpertWeights:
        return unpack_to_checkpoint(self._layout, self._held.blocks[expert_id].cpu())

    def holds(self, expert_id: int) -> bool:
        return expert_id in self._held.blocks

    @property
    def bytes_held(self) -> int:
        return sum(block.nbytes for block in self._held.blocks.values())

    @property
    def table(self) -> "ExpertTable":
        return self._held.table

    def apply(self, x: torch.Tensor, route_rows: torch.Tensor, route_experts: torch.Tensor, out: torch.Tensor) -> None:
        from .triton_experts import grouped_experts

        held = self._held
        rows, slots = (each.to(self._device, torch.int32) for each in (route_rows, held.slots_of(route_experts)))
        out.copy_(grouped_experts(x.to(self._device), rows, slots, held.table))


def check_device(device: str) -> None:
    """KernelError if torch sees no such GPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise KernelError(f"device: {device!r} is wanted, but torch {torch.__version__} sees no CUDA device here")
    _, _, index = device.partition(":")
    if index and int(index) >= count:
        raise KernelError(f"device: {device!r} is wanted, but torch sees {count} here, the last is 'cuda:{count - 1}'")


def check_triton(device: str, dtype: torch.dtype, shape: ExpertShape) -> None:
    """KernelError with what is missing, if this machine cannot run the kernels for this shape."""
    if device.split(":")[0] != "cuda":
        raise KernelError(f"device: backend triton runs on 'cuda', not on {device!r}")
    if dtype is not torch.bfloat16:
        raise KernelError(f"dtype: backend triton takes bfloat16, not {dtype}")
    ExpertLayout(shape)
    check_device(device)
    if importlib.util.find_spec("triton") is None:
        raise KernelError("backend: triton needs the package of that name: pip install 'expertfleet[gpu]'")
