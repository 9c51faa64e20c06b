"""A shard's experts for other shards: from memory, or from the files where it does not hold them.

Knows nothing of the shard that asks. Computing goes first: experts are turned back one at a time, on a thread of their own.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from ..kernels.errors import KernelError
from ..kernels.expert_layer import ExpertWeights
from ..proto.errors import Code, FleetError
from ..proto.generated import expert_pb2 as pb
from .expert_store import ExpertStore
from .expert_stream import to_pieces
from .sources import ExpertSources, NoSourceError


class ExpertExporter:
    def __init__(self, store: ExpertStore, sources: ExpertSources) -> None:
        self._store = store
        self._sources = sources
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="expert-giver")
        self.num_given = 0

    async def give(self, request: pb.ReadExpertRequest) -> AsyncIterator[pb.ExpertPiece]:
        """Raises FleetError: FOREIGN_CHECKPOINT or NOT_HELD."""
        checkpoint = self._store.checkpoint
        layer, expert = request.layer, request.expert
        if request.fingerprint != checkpoint.fingerprint:
            theirs, ours = request.fingerprint[:16] or "none", checkpoint.fingerprint[:16]
            raise FleetError(Code.FOREIGN_CHECKPOINT, f"an expert of checkpoint {theirs} is asked, here is {ours}")
        if layer not in checkpoint.config.moe_layers or expert >= checkpoint.config.num_experts:
            raise FleetError(Code.NOT_HELD, f"expert {expert} of layer {layer} is none of this model")
        pieces = await asyncio.get_running_loop().run_in_executor(self._thread, self._pieces, layer, expert)
        self.num_given += 1
        for piece in pieces:
            yield piece

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _pieces(self, layer: int, expert: int) -> list[pb.ExpertPiece]:
        weights = self._find(layer, expert)
        return list(to_pieces(self._store.checkpoint.config, layer, expert, weights))

    def _find(self, layer: int, expert: int) -> ExpertWeights:
        try:
            return self._store.weights(layer, expert)
        except KernelError as error:
            try:
                return self._sources.read_files(layer, expert)
            except NoSourceError as fault:
                raise FleetError(Code.NOT_HELD, f"{error}; {fault}") from fault
