"""Which expert shard holds which experts: a pure function of the model's shape and the fleet's size.

Knows nothing of machines, load or time, so every process that asks gets the same answer.
"""

import numpy as np
import numpy.typing as npt


def place(
    num_layers: int, num_experts: int, num_dense_layers: int, num_shards: int, replicas: int = 1
) -> npt.NDArray[np.bool_]:
    """Deals ``replicas`` copies of every expert to as many different shards.

    Returns ``[num_shards, num_layers, num_experts]``: entry (s, l, e) says that shard s holds expert e of layer l.
    In each layer the shards' counts differ by at most one, and so do their sums over all layers. The other copies of
    one shard's experts lie on many shards, so that its loss is shared out. Rows of dense layers stay empty; a shard
    may stay without experts in a layer (or altogether) when there are fewer copies than shards.
    """
    _check(num_layers, num_experts, num_dense_layers, num_shards, replicas)
    placement = np.zeros((num_shards, num_layers, num_experts), dtype=np.bool_)
    totals = np.zeros(num_shards, dtype=np.int64)  # [num_shards]
    neighbours = np.zeros((num_shards, num_shards), dtype=np.int64)  # copies that two shards have in common
    for layer in range(num_dense_layers, num_layers):
        in_layer = np.zeros(num_shards, dtype=np.int64)  # [num_shards]
        for expert in range(num_experts):
            chosen = _emptiest(in_layer, totals, neighbours, replicas)
            placement[chosen, layer, expert] = True
            in_layer[chosen] += 1
            totals[chosen] += 1
            neighbours[np.ix_(chosen, chosen)] += 1
    return placement


def _emptiest(
    in_layer: npt.NDArray[np.int64],  # [num_shards]
    totals: npt.NDArray[np.int64],  # [num_shards]
    neighbours: npt.NDArray[np.int64],  # [num_shards, num_shards]
    replicas: int,
) -> list[int]:
    """Different shards with the fewest experts in this layer, then in all, then together with those already chosen."""
    chosen: list[int] = []
    together = np.zeros_like(totals)
    for _ in range(replicas):
        order = np.lexsort((together, totals, in_layer))
        chosen.append(next(int(shard) for shard in order if shard not in chosen))
        together = neighbours[:, chosen].sum(axis=1)
    return chosen


def _check(num_layers: int, num_experts: int, num_dense_layers: int, num_shards: int, replicas: int) -> None:
    for name, value in (("num_layers", num_layers), ("num_experts", num_experts), ("expert_shards", num_shards)):
        if value < 1:
            raise ValueError(f"{name}: {value}, must be at least 1")
    if not 0 <= num_dense_layers <= num_layers:
        raise ValueError(f"num_dense_layers: {num_dense_layers}, must lie between 0 and num_layers {num_layers}")
    if not 1 <= replicas <= num_shards:
        raise ValueError(
            f"replicas: {replicas}, must lie between 1 and the number of expert shards {num_shards}: "
            "each copy of an expert needs a shard of its own"
        )
