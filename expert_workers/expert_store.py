"""What a shard holds and which frames it may answer; loading experts and giving them back.

Knows nothing of lanes and leases, and not where experts come from. ``admit`` is the full check: a frame passes only if checkpoint, dtype, width, epoch and
every route of it fit what is held.
"""

import threading
from collections.abc import Callable

import numpy as np

from ..checkpoint.tensors import Checkpoint
from ..kernels.errors import KernelError
from ..kernels.expert_layer import ExpertWeights
from ..kernels.grouped_gemm import ExpertBackend, ExpertLayer
from ..kernels.native_lanes import AdmissionFilter
from ..membership.epoch import EpochId, ExpertSet
from ..proto.codec import DTYPE_NAMES, Dispatch, short_fingerprint
from ..proto.dispatch_header import Indices
from ..proto.errors import Code, FleetError
from ..proto.frame_prefix import DTYPE_CODES
from ..proto.rows import address_of
from ..settings.heap import return_free_memory
from .sources import ExpertSources, NoSourceError

_READ_AHEAD = 2  # experts that are on their way from the disk while one is packed


class ExpertStore:
    """The experts of one shard; filled by one loader thread, read by the others."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, sources: ExpertSources) -> None:
        self.checkpoint = checkpoint
        self._sources = sources
        self.layers: dict[int, ExpertLayer] = {}
        self.bytes_total = 0
        self.min_epoch = EpochId(0, 0)
        self._dtype = DTYPE_NAMES[dtype]
        self._short = short_fingerprint(checkpoint.fingerprint)
        config = checkpoint.config
        self._is_held = bytearray(config.num_layers * config.num_experts)  # layer by layer
        self._mask = np.frombuffer(self._is_held, dtype=bool).reshape(config.num_layers, config.num_experts)
        self._lock = threading.Lock()
        self.filter = AdmissionFilter(  # the same check for compiled calls
            fingerprint=int.from_bytes(self._short, "little"),
            held=address_of(self._is_held),
            num_layers=config.num_layers,
            num_experts=config.num_experts,
            hidden=config.hidden_size,
            dtype=DTYPE_CODES[self._dtype],
            item_bytes=self._dtype.itemsize,
        )

    @property
    def newest_epoch(self) -> EpochId:
        """Of all frames that were let in."""
        return EpochId(*self.filter.newest_epoch)

    @property
    def held(self) -> ExpertSet:
        return ExpertSet.from_mask(self._mask)

    @property
    def bytes_loaded(self) -> int:
        return int(self._mask.sum()) * self.checkpoint.config.expert_bytes

    def apply_assignment(
        self,
        wanted: ExpertSet,
        backend: ExpertBackend,
        give_back: Callable[[int, list[int]], None],
        is_stale: Callable[[], bool],
    ) -> bool:
        """Gives back what is not ``wanted``, then reads and packs what is missing, first what nobody else holds.

        ``give_back(layer, experts)`` takes away experts that no frame may ask for any more. False when ``is_stale()`` said
        meanwhile that something else is wanted by now. Raises ValueError when ``wanted`` is for another model, and NoSourceError
        when everything else is loaded but experts are left that no source can give.
        """
        if wanted.mask.shape != self._mask.shape:
            raise ValueError(f"an order for {wanted.mask.shape} layers and experts; the model has {self._mask.shape}")
        self.bytes_total = wanted.count * self.checkpoint.config.expert_bytes
        surplus = self._mask & ~wanted.mask
        self._mask &= wanted.mask
        for layer in np.flatnonzero(surplus.any(1)).tolist():
            give_back(layer, np.flatnonzero(surplus[layer]).tolist())
        if surplus.any():
            return_free_memory()
        missing = wanted.mask & ~self._mask
        failures: list[NoSourceError] = []
        order = self._sources.rarest_first(np.argwhere(missing)).tolist()
        for number, (layer, expert) in enumerate(order):
            if is_stale():
                return False
            for ahead in order[number + _READ_AHEAD : number + _READ_AHEAD + 1] if number else order[: _READ_AHEAD + 1]:
                self._sources.expect(*ahead)
            try:
                self._load_expert(layer, expert, backend)
            except NoSourceError as error:
                failures.append(error)
        if missing.any():
            return_free_memory()  # that repacking left
        if failures:
            others = f" (and {len(failures) - 1} others)" if len(failures) > 1 else ""
            raise NoSourceError(f"{failures[0]}{others}")
        return True

    def weights(self, layer: int, expert: int) -> ExpertWeights:
        """The checkpoint's tensors of an expert in memory. Raises KernelError where they cannot be had."""
        if layer not in self.layers:
            raise KernelError(f"expert {expert} is not held")
        return self.layers[layer].weights(expert)

    def raise_min_epoch(self, epoch: EpochId) -> EpochId:
        """The oldest epoch served from now on; it never goes down."""
        with self._lock:
            self.min_epoch = max(self.min_epoch, epoch)
            self.filter.min_epoch[:] = [self.min_epoch.incarnation, self.min_epoch.counter]
            return self.min_epoch

    def admit(self, frame: Dispatch) -> None:
        """Raises FleetError: FOREIGN_CHECKPOINT, WRONG_DTYPE, BAD_FRAME, STALE_EPOCH or NOT_HELD."""
        hidden = self.checkpoint.config.hidden_size
        if frame.fingerprint != self._short:
            raise FleetError(
                Code.FOREIGN_CHECKPOINT,
                f"frame is for checkpoint {frame.fingerprint.hex()}, this shard serves {self._short.hex()}",
            )
        if frame.rows.dtype != self._dtype:
            raise FleetError(Code.WRONG_DTYPE, f"rows are {frame.rows.dtype}, this shard computes in {self._dtype}")
        if frame.rows.width != hidden:
            raise FleetError(Code.BAD_FRAME, f"rows are {frame.rows.width} wide, the model's are {hidden}")
        epoch = EpochId(*frame.epoch)
        if epoch < self.min_epoch:
            raise FleetError(Code.STALE_EPOCH, f"epoch {epoch} is below this shard's minimum {self.min_epoch}")
        self._admit_routes(frame.layer, frame.route_experts)
        if epoch > self.newest_epoch:
            self.filter.newest_epoch[:] = list(frame.epoch)

    def _admit_routes(self, layer: int, route_experts: Indices) -> None:
        num_layers, num_experts = self._mask.shape
        if layer >= num_layers:
            raise FleetError(Code.NOT_HELD, f"layer {layer} is not held; the model has {num_layers}")
        first = layer * num_experts
        for expert in set(route_experts.tolist()):
            if not (0 <= expert < num_experts and self._is_held[first + expert]):
                raise FleetError(Code.NOT_HELD, f"expert {expert} of layer {layer} is not held")

    def _load_expert(self, layer: int, expert: int, backend: ExpertBackend) -> None:
        gate, up, down = self._sources.read(layer, expert)
        if layer not in self.layers:
            self.layers[layer] = backend.new_layer()
        self.layers[layer].add(expert, gate, up, down)
        self._mask[layer, expert] = True
