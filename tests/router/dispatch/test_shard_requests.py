"""Routes are shared out among shards, each row once a shard, in the order of experts; the compiled way is numpy's."""

import numpy as np
import pytest
import torch

from expertfleet.kernels import native
from expertfleet.router.dispatch import shard_requests as shares_module
from expertfleet.router.dispatch.shard_requests import ShardRequest, partition_routes


def plain(share: ShardRequest) -> tuple[object, ...]:
    return tuple(part.tolist() if isinstance(part, np.ndarray) else part for part in share)


def random_question(rng: np.random.Generator) -> tuple[torch.Tensor, int, torch.Tensor, np.ndarray | None, int, int]:
    num_shards, num_experts, num_rows = (int(n) for n in rng.integers(1, (12, 60, 40)))
    top_k = int(rng.integers(1, min(9, num_experts + 1)))
    experts = np.stack([rng.permutation(num_experts)[:top_k] for _ in range(num_rows)]).reshape(-1)
    owners = torch.from_numpy(rng.integers(-1, num_shards, num_experts))
    if rng.random() < 0.5:
        return owners, num_shards, torch.from_numpy(experts).view(num_rows, top_k), None, top_k, num_rows
    routes = np.flatnonzero(rng.random(len(experts)) < rng.random())
    return owners, num_shards, torch.from_numpy(experts[routes]), routes, top_k, num_rows


def test_every_route_is_asked_once_of_its_owner() -> None:
    rng = np.random.default_rng()
    for _ in range(300):
        owners, num_shards, experts, routes, top_k, num_rows = random_question(rng)
        shares, orphans = partition_routes(owners, num_shards, experts, routes, top_k, num_rows)
        asked = experts.flatten().tolist()
        numbers = list(range(len(asked))) if routes is None else routes.tolist()
        expert_of = dict(zip(numbers, asked, strict=True))
        assert sorted([*orphans.tolist(), *(route for share in shares for route in share.routes.tolist())]) == numbers
        assert all(owners[expert_of[route]] == -1 for route in orphans.tolist())
        for share in shares:
            assert share.experts.tolist() == [expert_of[route] for route in share.routes.tolist()]
            assert (owners[share.experts.tolist()] == share.owner).all()
            assert share.experts.tolist() == sorted(share.experts)
            assert share.rows.tolist() == sorted(set((share.routes // top_k).tolist()))
            assert share.rows[share.places].tolist() == (share.routes // top_k).tolist()
            assert share.num_experts == len(set(share.experts.tolist()))


def test_the_compiled_way_is_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(native.load(), str):
        pytest.skip("the native kernel was not built")
    rng = np.random.default_rng()
    for _ in range(300):
        question = random_question(rng)
        shares, orphans = partition_routes(*question)
        with monkeypatch.context() as patch:
            patch.setattr(shares_module, "load", lambda: "not here")
            wanted, lost = partition_routes(*question)
        assert [plain(share) for share in shares] == [plain(share) for share in wanted]
        assert orphans.tolist() == lost.tolist()
    with pytest.raises(IndexError, match=r"an expert of \[0, 9\] is not below 2"):
        partition_routes(torch.zeros(2, dtype=torch.int64), 1, torch.tensor([0, 9]), None, 1, 2)


def test_a_share_is_cut_by_rows() -> None:
    rng = np.random.default_rng()
    for _ in range(100):
        owners, num_shards, experts, routes, top_k, num_rows = random_question(rng)
        most = int(rng.integers(1, 8))
        for share in partition_routes(owners, num_shards, experts, routes, top_k, num_rows)[0]:
            pieces = share.cut(most)
            assert all(0 < len(piece.rows) <= most for piece in pieces)
            assert np.concatenate([piece.rows for piece in pieces]).tolist() == share.rows.tolist()
            assert sorted(np.concatenate([piece.routes for piece in pieces]).tolist()) == sorted(share.routes.tolist())
            for piece in pieces:
                assert piece.rows[piece.places].tolist() == (piece.routes // top_k).tolist()
                assert piece.num_experts == len(set(piece.experts.tolist()))
