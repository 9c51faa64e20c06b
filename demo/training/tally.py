"""How well a model does on batches of dialogues: answers without one wrong token, by kind, and its experts' loads.

A greedy answer is right in every token exactly if each token is the likeliest after the right ones before it.
"""

from collections import defaultdict

import torch

from .model import NanoK2
from .samples import Batch, answered_right


class Tally:
    def __init__(self, model: NanoK2) -> None:
        self._mixtures = model.mixtures()
        self._loads = [torch.zeros_like(mixture.loads) for mixture in self._mixtures]
        self._right: dict[str, list[bool]] = defaultdict(list)

    def add(self, batch: Batch, hits: torch.Tensor) -> None:
        """``hits`` [learned tokens] bool of what the model has just said to the batch; its loads are taken and zeroed."""
        for kind, each in zip(batch.kinds, answered_right(batch, hits), strict=False):
            self._right[kind].append(each)
        for load, mixture in zip(self._loads, self._mixtures, strict=True):
            load += mixture.loads
            mixture.loads.zero_()

    @property
    def counts(self) -> dict[str, int]:
        return {kind: len(each) for kind, each in sorted(self._right.items())}

    @property
    def right(self) -> dict[str, float]:
        return {kind: sum(each) / len(each) for kind, each in sorted(self._right.items())}

    @property
    def load_max_to_mean(self) -> list[float]:
        """By layer: the busiest expert's routes by the mean."""
        return [float(load.max() / load.mean()) for load in self._loads]
