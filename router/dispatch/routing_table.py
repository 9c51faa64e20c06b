"""The routing table: which live shard answers which (layer, expert), as one immutable snapshot.

Knows nothing of connections: the caller says which members are usable now. It leaves out replicas of another numerics class than
an expert's first one, so that every choice gives the same bits.
"""

import zlib
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch

from ...kernels.native import Native, load
from ...membership.epoch import EpochId, Member

NO_HOLDER = -1


class RoutingTable:
    """One epoch's members and who of them is usable; replaced as a whole when either changes."""

    def __init__(
        self,
        epoch: EpochId,
        members: tuple[Member, ...],
        usable: Collection[str],
        before: "RoutingTable | None" = None,
        suspected: Collection[str] = (),
        quarantined: Collection[str] = (),
    ) -> None:
        """Members that are ``suspected`` answer only for what no other usable member holds, and ``quarantined`` ones for what not even a
        suspected one does. An expert stays in the class it had ``before`` as long as a member of that class holds it, or none does.
        """
        self.epoch = epoch
        self.members = members
        self.num_experts = members[0].held.num_experts if members else 0
        shape = members[0].held.mask.shape if members else (0, 0)
        self._classes: tuple[str, ...] = tuple(
            sorted({*(member.numerics for member in members), *(before._classes if before else ())})
        )
        self._class_of = self._choose_classes(shape, before)
        self._replicas = np.zeros((len(members), *shape), dtype=bool)  # [S, L, E]
        for number, member in enumerate(members):
            if member.seat in usable:
                in_class = self._class_of == self._classes.index(member.numerics)
                self._replicas[number] = member.held.mask & in_class
        self.has_replicas = bool((self._replicas.sum(0) > 1).any())  # somewhere
        self._pass_over(quarantined)
        self._trusted = self._replicas.copy()
        self._pass_over(suspected)
        self._owners = list(torch.from_numpy(self._first_owners()))  # by layer, for those where no expert is shared
        self._is_shared: list[bool] = (self._replicas.sum(0) > 1).any(1).tolist()  # by layer, whether some expert is
        self.numerics = self._name()
        # Grows whenever tokens come out with other bits than under the plan before.
        self.numerics_generation: int = (
            before.numerics_generation + (before.numerics != self.numerics) if before is not None else 0
        )

    def holders(self, layer: int) -> tuple[int | None, int, int]:
        """As ``assign`` chooses from: the address of bool [S, stride], None where no expert is shared, the stride, and the address of
        int64 [E], the member index of each expert, or NO_HOLDER."""
        _, num_layers, num_experts = self._replicas.shape
        shared = self._replicas.ctypes.data + layer * num_experts if self._is_shared[layer] else None
        return shared, num_layers * num_experts, self._owners[layer].data_ptr()

    def assign(self, layer: int, experts: torch.Tensor, excluded: Collection[str] = ()) -> torch.Tensor:
        """The member index int64 [E] of each of the ``experts``, int64 of any shape; NO_HOLDER where no usable replica is left."""
        if not self.members:
            return _have_no_holder(experts)
        if excluded:
            return choose_replicas(self._without(self._replicas[:, layer], excluded), experts)
        return choose_replicas(self._replicas[:, layer], experts) if self._is_shared[layer] else self._owners[layer]

    def assign_others(self, layer: int, experts: torch.Tensor, excluded: Collection[str]) -> torch.Tensor:
        """As ``assign``, for a second answer to what was answered before: a merely suspected member will do."""
        if not self.members:
            return _have_no_holder(experts)
        return choose_replicas(self._without(self._trusted[:, layer], excluded), experts)

    def lacks(self, layer: int, experts: torch.Tensor) -> bool:
        """Whether no usable member holds some expert of ``experts``, int64 [N]."""
        return bool((self.assign(layer, experts)[experts] == NO_HOLDER).any())

    def covers_everything(self) -> bool:
        """Whether every expert that some member holds has a usable replica."""
        if not self.members:
            return False
        held = np.logical_or.reduce([member.held.mask for member in self.members])
        return bool((self._replicas.any(0) | ~held).all())

    def _without(self, replicas: npt.NDArray[np.bool_], seats: Collection[str]) -> npt.NDArray[np.bool_]:  # [S, E]
        left = replicas.copy()
        left[[number for number, member in enumerate(self.members) if member.seat in seats]] = False
        return left

    def _pass_over(self, seats: Collection[str]) -> None:
        if seats:
            passed = np.array([member.seat in seats for member in self.members])
            self._replicas[passed] &= ~self._replicas[~passed].any(0)

    def _choose_classes(self, shape: tuple[int, ...], before: "RoutingTable | None") -> npt.NDArray[np.int64]:
        """[L, E]: each expert's class, -1 where it never had one."""
        if not self.members:
            return np.full(shape, -1) if before is None else before._class_of
        masks = np.stack([member.held.mask for member in self.members])  # [S, L, E]
        of_member = np.array([self._classes.index(member.numerics) for member in self.members])
        anybody = masks.any(0)
        chosen = np.where(anybody, of_member[masks.argmax(0)], -1)
        if before is None or before._class_of.shape != shape:
            return chosen
        was = np.array([self._classes.index(name) for name in before._classes] + [-1])[before._class_of]
        still = (masks & (of_member[:, None, None] == was)).any(0)
        return np.where((was >= 0) & (still | ~anybody), was, chosen)

    def _name(self) -> str:
        """The class of a token's bits: where experts are of several, which expert is of which belongs to it."""
        used = np.unique(self._class_of[self._class_of >= 0]).tolist()
        names = [self._classes[index] for index in used]
        if len(names) < 2:
            return "".join(names)
        ranks = np.searchsorted(used, self._class_of).astype(np.int32)
        return f"{'+'.join(names)}#{zlib.crc32(np.where(self._class_of < 0, -1, ranks).tobytes()):08x}"

    def _first_owners(self) -> npt.NDArray[np.int64]:
        """[L, E]: the first usable replica's index, or NO_HOLDER."""
        if not self.members:
            return np.zeros((0, 0), dtype=np.int64)
        return np.where(self._replicas.any(0), self._replicas.argmax(0), NO_HOLDER).astype(np.int64)


def _have_no_holder(experts: torch.Tensor) -> torch.Tensor:
    return torch.full((max(experts.flatten().tolist(), default=-1) + 1,), NO_HOLDER)


def choose_replicas(replicas: npt.NDArray[np.bool_], experts: torch.Tensor) -> torch.Tensor:
    """Chooses a replica for each activated expert so that shards get equal numbers of *activated experts*.

    ``replicas`` [S, E], ``experts`` int64 of any shape -> member index int64 [E], NO_HOLDER also for experts that are not activated.
    Decode reads each activated expert's weights once, however many tokens it serves, so experts are what is evened out, not tokens
    (METRO, arXiv 2512.09277). Experts with the fewest replicas choose first; ties go to the lower index. The compiled choice and
    numpy's are the same.
    """
    native = load()
    if isinstance(native, Native):
        return native.choose_replicas(torch.from_numpy(replicas), experts)
    activated = np.unique(experts.numpy())
    choices = replicas[:, activated]  # [S, A]
    loads = np.zeros(len(replicas), dtype=np.int64)
    chosen = np.full(replicas.shape[1], NO_HOLDER, dtype=np.int64)
    for column in np.argsort(choices.sum(0), kind="stable"):
        holders = np.flatnonzero(choices[:, column])
        if len(holders):
            best = holders[loads[holders].argmin()]
            loads[best] += 1
            chosen[activated[column]] = best
    return torch.from_numpy(chosen)
