"""Where an expert's weights come from: local files, then shared files, then a peer shard; the first that can give them.

Knows nothing of kernels. A source that fails is named in the log once for each of its files, and what came from where is counted.
"""

import logging
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..checkpoint.errors import CheckpointError
from ..checkpoint.tensors import Checkpoint
from ..kernels.expert_layer import ExpertWeights
from .peers import Failure, Peers

_logger = logging.getLogger(__name__)

Source = Literal["local", "shared", "peer"]
SOURCES: tuple[Source, ...] = ("local", "shared", "peer")


class NoSourceError(RuntimeError):
    """No source can give an expert; says what each of them said."""


@dataclass
class Counters:
    loads: dict[Source, int] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0))
    failed: int = 0


class ExpertSources:
    """For the loader's thread, but ``read_files`` for any."""

    def __init__(self, checkpoint: Checkpoint, peers: Peers | None = None) -> None:
        self._checkpoint = checkpoint
        self._peers = peers
        self._has_told_of_peers = False
        self.counters = Counters()

    def read(self, layer: int, expert: int) -> ExpertWeights:
        """Raises NoSourceError."""
        weights, source = self._read(layer, expert)
        self.counters.loads[source] += 1
        return weights

    def expect(self, layer: int, expert: int) -> None:
        """It will soon be read: files begin to be read now."""
        for names in self._checkpoint.expert_names(layer, expert):
            for name in names:
                self._checkpoint.expect(name)

    def read_files(self, layer: int, expert: int) -> ExpertWeights:
        """From this machine's folders alone. Raises NoSourceError."""
        return self._read_files(layer, expert)[0]

    def rarest_first(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:  # [N, 2] layer, expert
        """What nobody else holds is waited for."""
        if self._peers is None or not len(pairs):
            return pairs
        copies = self._peers.num_copies()[pairs[:, 0], pairs[:, 1]]
        return pairs[np.argsort(copies, kind="stable")]

    def close(self) -> None:
        """Ends what is asked of peers; from any thread."""
        if self._peers is not None:
            self._peers.close()

    def _read(self, layer: int, expert: int) -> tuple[ExpertWeights, Source]:
        try:
            return self._read_files(layer, expert)
        except NoSourceError as error:
            if self._peers is None:
                self.counters.failed += 1
                raise
            from_files = error
        found = self._peers.read(layer, expert, self._file(layer, expert))
        if isinstance(found, Failure):
            self.counters.failed += 1
            raise NoSourceError(f"{from_files}; peers: {found}") from from_files
        if not self._has_told_of_peers:
            _logger.warning("%s; a peer gives it, and whatever else the files do not", from_files)
            self._has_told_of_peers = True
        return found, "peer"

    def _read_files(self, layer: int, expert: int) -> tuple[ExpertWeights, Source]:
        """All of an expert from one folder."""
        said: list[str] = []
        for folder in range(self._checkpoint.num_folders):
            try:
                gate, up, down = (
                    (self._checkpoint.read(packed, folder), self._checkpoint.read(scale, folder))
                    for packed, scale in self._checkpoint.expert_names(layer, expert)
                )
            except CheckpointError as error:
                self._checkpoint.tell(error)
                said.append(f"{SOURCES[folder]} files: {error}")
                continue
            return (gate, up, down), SOURCES[folder]
        raise NoSourceError(f"expert {expert} of layer {layer} cannot be loaded: {'; '.join(said)}")

    def _file(self, layer: int, expert: int) -> str:
        return self._checkpoint.info(self._checkpoint.expert_names(layer, expert)[0][0]).file
