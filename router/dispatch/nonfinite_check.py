"""Cross-check of rows that are not finite: which routes a second replica is asked for, which shard was faulty, and which rows have no output.

Knows nothing of lanes and time: a shard is any value. A row that was not finite when it was sent is its sequence's own fault. For
the others, an expert is a pure function: a second replica that gives a finite row refutes the first one; one that gives the same,
or the lack of one, leaves a row without an output.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ...proto.errors import Code, FleetError
from .combine import Piece

Routes: TypeAlias = npt.NDArray[np.int64]  # each t·K + k
T = TypeVar("T")
Suspect: TypeAlias = tuple[T, Routes]  # who answered, and its answers that are not finite


def suspect_routes(x: torch.Tensor, pieces: Sequence[Piece], total: torch.Tensor, top_k: int) -> Routes:
    """Routes whose answer is not finite although their row of ``x`` [T, H] is; ``total`` [T, H] is what became of them."""
    rows = np.flatnonzero(_finite_rows(x) & ~_finite_rows(total))
    routes = _joined(routes[~_finite_rows(answer.tensor)] for routes, answer in pieces)
    return routes[np.isin(routes // top_k, rows)]


def find_faulty(doubts: Sequence[Suspect[T]], seconds: Sequence[Piece]) -> list[T]:
    """Those of whose doubtful answers a second one is finite."""
    refuted = _joined(routes[_finite_rows(answer.tensor)] for routes, answer in seconds)
    return list(dict.fromkeys(who for who, routes in doubts if np.isin(routes, refuted).any()))


def faults_of(
    layer: int,
    x: torch.Tensor,  # [T, H]
    experts: npt.NDArray[np.int64],  # [T·K], by route
    total: torch.Tensor,  # [T, H]
    doubts: Sequence[Suspect[T]],
    seconds: Sequence[Piece],
) -> dict[int, FleetError]:
    """Why each row of ``total`` that is not finite is not."""
    top_k = len(experts) // len(x)
    is_good_input = _finite_rows(x)
    doubtful = _joined(routes for _, routes in doubts)
    confirmed = _joined(routes[~_finite_rows(answer.tensor)] for routes, answer in seconds)
    faults: dict[int, FleetError] = {}
    for row in np.flatnonzero(~_finite_rows(total)).tolist():
        agreed = np.unique(experts[confirmed[confirmed // top_k == row]]).tolist()
        alone = np.unique(experts[doubtful[doubtful // top_k == row]]).tolist()
        if not is_good_input[row]:
            what = "the hidden row is not finite, before any expert was asked"
        elif agreed:
            what = f"the output of experts {agreed} is not finite, and a second replica says the same"
        elif alone:
            what = (
                f"the output of experts {alone} is not finite, and no second replica of the same class was there to ask"
            )
        else:
            what = "the weighted sum of finite outputs is not finite"
        faults[row] = FleetError(Code.NON_FINITE, f"layer {layer}: {what}")
    return faults


def _joined(routes: Iterable[Routes]) -> Routes:
    return np.concatenate([np.empty(0, dtype=np.int64), *routes])


def _finite_rows(values: torch.Tensor) -> npt.NDArray[np.bool_]:
    """[N, H] to [N]."""
    found: npt.NDArray[np.bool_] = torch.isfinite(values).all(1).numpy()
    return found
