"""Placement beside EPLB's greedy: how even, how many experts loaded anew when loads drift, what the loss of a shard costs.

Loads are drawn (``zipf``, ``lognormal`` with layers that are alike, ``drifting``: a hot set that moves on), change a little from
one step to the next, and every policy deals anew at each step from the loads of the step before. Balance is then measured on the
new loads: dispatches of 1, 16 and 256 tokens are drawn, the router's own choice of replicas is made for every policy, and the
busiest shard is compared with the mean, in routes and in activated experts; also if routes were split evenly over replicas. EPLB is written from its description: replicas to
the largest load per replica, sorted packing into equally large packs (``eplb``), groups of experts to nodes first
(``eplb-nodes``). Everything follows from --seed. Prints CSV; K2's bytes are those of 60 layers.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from expertfleet.router.dispatch.routing_table import choose_replicas
from expertfleet.router.placement.placement import Placement, Shard, place
from expertfleet.router.placement.replica_counts import Objective

TOP_K, EXPERTS = 8, 384
K2_LAYERS, K2_EXPERT_BYTES = 60, 24_772_608
GROUPS = NODES = 4
BATCHES = (1, 16, 256)
_COLUMNS = "family,replicas,policy,batch,routes_max_over_mean,activated_max_over_mean,split_max_over_mean,moved_percent,k2_gb_moved,coverage"

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Policy = Callable[[Floats, Bools | None], Bools]  # loads [L, E] and what is held [S, L, E] -> held


def zipf(rng: np.random.Generator, layers: int, steps: int) -> Iterator[Floats]:
    """The r-th most asked expert 1/r as often; each step every load by a factor of e^0.1 or so."""
    loads = np.stack([rng.permutation(1.0 / np.arange(1, EXPERTS + 1)) for _ in range(layers)])
    for _ in range(steps):
        yield loads
        loads = loads * rng.lognormal(0, 0.1, loads.shape)


def lognormal(rng: np.random.Generator, layers: int, steps: int) -> Iterator[Floats]:
    """Half of an expert's favour lies in its number, the same in every layer."""
    favour = rng.normal(0, 0.7, EXPERTS) + rng.normal(0, 0.7, (layers, EXPERTS))
    for _ in range(steps):
        yield np.exp(favour)
        favour = favour + rng.normal(0, 0.1, favour.shape)


def drifting(rng: np.random.Generator, layers: int, steps: int) -> Iterator[Floats]:
    """A tenth of the experts is asked eight times as often; each step a fifth of that tenth is others."""
    base, hot = rng.lognormal(0, 0.5, (layers, EXPERTS)), np.zeros((layers, EXPERTS), dtype=np.bool_)
    for row in hot:
        row[rng.choice(EXPERTS, EXPERTS // 10, replace=False)] = True
    for _ in range(steps):
        yield base * np.where(hot, 8.0, 1.0)
        for row in hot:
            changed = EXPERTS // 50
            cooled, heated = (
                rng.choice(row.nonzero()[0], changed, False),
                rng.choice((~row).nonzero()[0], changed, False),
            )
            row[cooled], row[heated] = False, True


FAMILIES = {"zipf": zipf, "lognormal": lognormal, "drifting": drifting}


def replicate(weights: Floats, slots: int) -> npt.NDArray[np.int64]:
    """[slots]: whose replica each is; a slot more for the largest load per replica."""
    counts = np.ones(len(weights), dtype=np.int64)
    for _ in range(slots - len(weights)):
        counts[(weights / counts).argmax()] += 1
    return np.repeat(np.arange(len(weights)), counts)


def pack(weights: Floats, packs: int) -> npt.NDArray[np.int64]:
    """[N]: the pack of each, the heaviest first to the lightest pack that is not full; all are equally large."""
    chosen, loads, counts = np.zeros(len(weights), dtype=np.int64), np.zeros(packs), np.zeros(packs, dtype=np.int64)
    for item in np.argsort(-weights, kind="stable"):
        target = np.where(counts < len(weights) // packs, loads, np.inf).argmin()
        chosen[item], loads[target], counts[target] = target, loads[target] + weights[item], counts[target] + 1
    return chosen


def pack_replicas(held: Bools, experts: npt.NDArray[np.int64], weights: Floats, slots: int) -> None:
    """Fills ``held`` [S, E] with ``slots`` replicas of ``experts``, whose loads are ``weights``."""
    owners = replicate(weights, slots)
    each = weights / np.bincount(owners, minlength=len(weights))
    held[pack(each[owners], len(held)), experts[owners]] = True


def eplb(shards: int, slots: int, nodes: int) -> Policy:
    def deal(loads: Floats, before: Bools | None) -> Bools:
        held = np.zeros((shards, *loads.shape), dtype=np.bool_)
        for layer, row in enumerate(loads):
            groups = np.arange(EXPERTS).reshape(GROUPS if nodes > 1 else 1, -1)
            node_of = pack(row[groups].sum(1), nodes)
            for node, mine in enumerate(np.split(held[:, layer], nodes)):
                experts = groups[node_of == node].reshape(-1)
                pack_replicas(mine, experts, row[experts], slots // nodes)
        return held

    return deal


def ours(shards: int, replicas: float, objective: Objective, churn: float | None = None) -> Policy:
    def deal(loads: Floats, before: Bools | None) -> Bools:
        wanted = np.ones(loads.shape, dtype=np.bool_)
        seats = [
            Shard(f"expert-{number:03}", wanted.size, held=None if before is None else before[number])
            for number in range(shards)
        ]
        most = None if churn is None or before is None else int(churn * wanted.size)
        dealt: Placement = place(seats, wanted, replicas, loads, max_moves=most, objective=objective)
        return np.stack(dealt.held)

    return deal


def unevenness(rng: np.random.Generator, held: Bools, loads: Floats, batch: int, draws: int) -> tuple[float, float]:
    """The busiest shard beside the mean, in routes and in activated experts: sums of maxima over sums of means."""
    found = np.zeros((2, 2))
    for layer, row in enumerate(loads):
        for _ in range(draws):
            favour = np.log(row) + rng.gumbel(size=(batch, EXPERTS))
            experts = np.argpartition(-favour, TOP_K, axis=1)[:, :TOP_K].reshape(-1)
            owners = choose_replicas(held[:, layer], torch.from_numpy(experts)).numpy()
            for number, busy in enumerate((owners[experts], owners[np.unique(experts)])):
                per_shard = np.bincount(busy, minlength=len(held))
                found[number] += per_shard.max(), per_shard.mean()
    routes, activations = (found[:, 0] / found[:, 1]).tolist()
    return routes, activations


def split_evenly(held: Bools, loads: Floats) -> float:
    """The busiest shard beside the mean if every expert's routes were split evenly over its replicas, which is what EPLB plans."""
    per_shard = np.einsum("sle,le->ls", held, loads / held.sum(0))
    return float(np.mean(per_shard.max(1) / per_shard.mean(1)))


def coverage(held: Bools) -> float:
    """The smallest part of the experts that is left when any one shard is lost."""
    return min(float(np.delete(held, lost, axis=0).any(0).mean()) for lost in range(len(held)))


def run(options: argparse.Namespace, output: Callable[[str], None]) -> None:
    shards = options.shards
    for family, draw in FAMILIES.items():
        steps = list(draw(np.random.default_rng(options.seed), options.layers, options.steps + 1))
        for replicas in options.replicas:
            slots = round(replicas * EXPERTS)
            policies = {
                "eplb": eplb(shards, slots, 1),
                "eplb-nodes": eplb(shards, slots, NODES),
                "place-tokens": ours(shards, replicas, "tokens"),
                "place-activated": ours(shards, replicas, "activated"),
                "place-tokens-1%": ours(shards, replicas, "tokens", 0.01),
            }
            for name, policy in policies.items():
                rng, held, moved = np.random.default_rng(options.seed), None, 0
                split: list[float] = []
                found: dict[int, list[tuple[float, float]]] = {batch: [] for batch in BATCHES}
                for planned, met in itertools.pairwise(steps):
                    dealt = policy(planned, held)
                    moved += 0 if held is None else int((dealt & ~held).sum())
                    held = dealt
                    split.append(split_evenly(held, met))
                    for batch in BATCHES:
                        found[batch].append(unevenness(rng, held, met, batch, options.draws))
                assert held is not None
                share = moved / max(1, options.steps - 1) / (options.layers * EXPERTS)
                gigabytes = share * K2_LAYERS * EXPERTS * K2_EXPERT_BYTES / 1e9
                for batch in BATCHES:
                    routes, activated = np.mean(found[batch], axis=0).tolist()
                    told = f"{routes:.3f},{activated:.3f},{np.mean(split):.3f},{100 * share:.2f},{gigabytes:.1f},{coverage(held):.3f}"
                    output(f"{family},{replicas:g},{name},{batch},{told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=16, help="a multiple of 4; experts × replicas must be one of it")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--draws", type=int, default=2, help="dispatches per layer, step and batch size")
    parser.add_argument("--replicas", type=float, nargs="+", default=[1.0, 1.25, 2.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="a folder for placement.csv")
    options = parser.parse_args()
    for replicas in options.replicas:
        if options.shards % NODES or round(replicas * EXPERTS) % options.shards:
            sys.exit(
                f"bench_placement: EPLB cannot deal {replicas * EXPERTS:g} replicas evenly to {options.shards} shards"
            )
    flags = [f"--{name} {getattr(options, name)}" for name in ("shards", "layers", "steps", "draws", "seed")]
    lines = [f"# bench_placement.py {' '.join(flags)}; K2's experts, top-8", _COLUMNS]
    print(*lines, sep="\n", flush=True)

    def output(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    run(options, output)
    if options.results is not None:
        (options.results / "placement.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
