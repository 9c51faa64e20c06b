"""torch's own INT4 operator for CPUs as a rival of our kernel: ``_weight_int4pack_mm_for_cpu``.

Knows nothing of serving, which does not use it. The operator packs the codes itself, and wants a scale and a zero for each
group in real memory, 1.111 times the checkpoint's bytes at groups of 32.
"""

from dataclasses import dataclass

import torch

from expertfleet.kernels import int4
from expertfleet.kernels.activation import silu_mul
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.expert_layer import ByExpertLayer, ExpertShape, ExpertWeights, Projection


@dataclass(frozen=True)
class _Weight:
    codes: torch.Tensor  # uint8, in the operator's own order
    scales_and_zeros: torch.Tensor  # [in / group, out, 2]
    group_size: int

    @staticmethod
    def of(*parts: Projection) -> "_Weight":
        """The projections stacked along their outputs, which must be a multiple of 16."""
        words, scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(int4.unpack(words).int(), 1)
        both = torch.stack((scales.t(), torch.zeros_like(scales.t())), dim=-1).contiguous()
        return _Weight(codes, both, 8 * words.shape[1] // scales.shape[1])

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x [R, in] -> [R, out]."""
        product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self.codes, self.group_size, self.scales_and_zeros
        )
        return product

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales_and_zeros.nbytes


class TorchInt4Layer(ByExpertLayer):
    """Gate and up lie in one matrix."""

    def __init__(self, shape: ExpertShape) -> None:
        super().__init__(shape, torch.bfloat16)
        self._experts: dict[int, tuple[_Weight, _Weight]] = {}

    def _keep(self, expert_id: int, gate: Projection, up: Projection, down: Projection) -> None:
        self._experts[expert_id] = _Weight.of(gate, up), _Weight.of(down)

    def _drop(self, expert_id: int) -> None:
        del self._experts[expert_id]

    def _unpack_to_checkpoint(self, expert_id: int) -> ExpertWeights:
        raise KernelError("the operator's own order cannot be turned back")

    def holds(self, expert_id: int) -> bool:
        return expert_id in self._experts

    @property
    def bytes_held(self) -> int:
        return sum(weight.nbytes for pair in self._experts.values() for weight in pair)

    def _apply_each(self, expert_ids: list[int], rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
        results = []
        for expert_id, x in zip(expert_ids, rows, strict=True):
            first, last = self._experts[expert_id]
            gate, up = first.times(x).chunk(2, dim=1)
            results.append(last.times(silu_mul(gate, up)))
        return torch.cat(results)
