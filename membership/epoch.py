"""Epochs: one committed picture of which member holds which experts, as immutable values.

Knows nothing of connections, models or who decides. ``layer`` is the model's layer index; rows of dense layers are empty.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..proto.errors import Code, FleetError
from ..proto.generated import membership_pb2 as pb


@dataclass(frozen=True, order=True)
class EpochId:
    """Incarnation of the controller first, then the count within it; ``EpochId(0, 0)`` is "none yet"."""

    incarnation: int = 0
    counter: int = 0

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.counter}"

    def to_proto(self) -> pb.EpochId:
        return pb.EpochId(incarnation=self.incarnation, counter=self.counter)

    @staticmethod
    def from_proto(message: pb.EpochId) -> "EpochId":
        return EpochId(message.incarnation, message.counter)


NO_EPOCH = EpochId()


class ExpertSet:
    """An immutable set of (layer, expert) pairs over a fixed grid."""

    __slots__ = ("_mask",)

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:  # [num_layers, num_experts]
        if mask.ndim != 2:
            raise ValueError(f"an expert set needs a mask [num_layers, num_experts], got shape {mask.shape}")
        self._mask: npt.NDArray[np.bool_] = np.array(mask, dtype=np.bool_, order="C")
        self._mask.setflags(write=False)

    @staticmethod
    def empty(num_layers: int = 0, num_experts: int = 0) -> "ExpertSet":
        return ExpertSet(np.zeros((num_layers, num_experts), dtype=np.bool_))

    @staticmethod
    def full(num_layers: int, num_experts: int, num_dense_layers: int = 0) -> "ExpertSet":
        """Every expert of every layer from ``num_dense_layers`` on."""
        mask = np.ones((num_layers, num_experts), dtype=np.bool_)
        mask[:num_dense_layers] = False
        return ExpertSet(mask)

    @staticmethod
    def from_mask(mask: npt.NDArray[np.bool_]) -> "ExpertSet":  # [num_layers, num_experts]
        return ExpertSet(mask)

    @staticmethod
    def from_pairs(pairs: Iterable[tuple[int, int]], num_layers: int, num_experts: int) -> "ExpertSet":
        mask = np.zeros((num_layers, num_experts), dtype=np.bool_)
        for layer, expert in pairs:
            if not (0 <= layer < num_layers and 0 <= expert < num_experts):
                raise ValueError(
                    f"layer {layer}, expert {expert} lies outside {num_layers} layers × {num_experts} experts"
                )
            mask[layer, expert] = True
        return ExpertSet(mask)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """[num_layers, num_experts], read-only."""
        return self._mask

    @property
    def num_layers(self) -> int:
        return int(self._mask.shape[0])

    @property
    def num_experts(self) -> int:
        """Experts a layer: the width of the grid, not the size of the set."""
        return int(self._mask.shape[1])

    @property
    def count(self) -> int:
        """Number of (layer, expert) pairs in the set."""
        return int(self._mask.sum())

    def holds(self, layer: int, expert: int) -> bool:
        num_layers, num_experts = self._mask.shape
        return 0 <= layer < num_layers and 0 <= expert < num_experts and bool(self._mask[layer, expert])

    def experts(self, layer: int) -> tuple[int, ...]:
        return tuple(int(expert) for expert in np.flatnonzero(self._mask[layer]))

    def pairs(self) -> list[tuple[int, int]]:
        return [(int(layer), int(expert)) for layer, expert in np.argwhere(self._mask)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExpertSet) and np.array_equal(self._mask, other._mask)

    def __hash__(self) -> int:
        return hash((self._mask.shape, self._mask.tobytes()))

    def __repr__(self) -> str:
        return f"ExpertSet({self.count} of {self.num_layers} layers × {self.num_experts} experts)"

    def to_proto(self) -> pb.ExpertSet:
        bits = np.packbits(self._mask, axis=1, bitorder="little").tobytes()
        return pb.ExpertSet(num_layers=self.num_layers, num_experts=self.num_experts, bits=bits)

    @staticmethod
    def from_proto(message: pb.ExpertSet) -> "ExpertSet":
        shape = (message.num_layers, (message.num_experts + 7) // 8)
        if len(message.bits) != shape[0] * shape[1]:
            wanted = f"{message.num_layers} layers × {message.num_experts} experts need {shape[0] * shape[1]} bytes"
            raise FleetError(Code.BAD_REQUEST, f"ExpertSet.bits: {len(message.bits)} bytes, {wanted}")
        packed = np.frombuffer(message.bits, dtype=np.uint8).reshape(shape)
        return ExpertSet(np.unpackbits(packed, axis=1, bitorder="little", count=message.num_experts).astype(np.bool_))


@dataclass(frozen=True)
class Member:
    """One worker of an epoch; ``held`` is empty for an attention worker, and only one says its ``max_model_len`` (0: unknown)."""

    seat: str
    address: str
    numerics: str
    held: ExpertSet = field(default_factory=ExpertSet.empty)
    max_model_len: int = 0

    def to_proto(self) -> pb.Member:
        held = self.held.to_proto()
        return pb.Member(
            seat=self.seat, address=self.address, numerics=self.numerics, held=held, max_model_len=self.max_model_len
        )

    @staticmethod
    def from_proto(message: pb.Member) -> "Member":
        held = ExpertSet.from_proto(message.held)
        return Member(message.seat, message.address, message.numerics, held, message.max_model_len)


@dataclass(frozen=True)
class Epoch:
    """Who serves what; never changed once published."""

    id: EpochId
    fingerprint: str
    dtype: str
    experts: tuple[Member, ...]
    attention: tuple[Member, ...]
    complete: bool

    def same_members(self, other: "Epoch") -> bool:
        """Whether both say the same of the fleet, whatever their ids."""
        return self._content() == other._content()

    def _content(self) -> tuple[object, ...]:
        return (self.fingerprint, self.dtype, self.experts, self.attention, self.complete)

    def to_proto(self) -> pb.Epoch:
        return pb.Epoch(
            id=self.id.to_proto(),
            fingerprint=self.fingerprint,
            dtype=self.dtype,
            experts=[member.to_proto() for member in self.experts],
            attention=[member.to_proto() for member in self.attention],
            complete=self.complete,
        )

    @staticmethod
    def from_proto(message: pb.Epoch) -> "Epoch":
        return Epoch(
            id=EpochId.from_proto(message.id),
            fingerprint=message.fingerprint,
            dtype=message.dtype,
            experts=tuple(Member.from_proto(member) for member in message.experts),
            attention=tuple(Member.from_proto(member) for member in message.attention),
            complete=message.complete,
        )
