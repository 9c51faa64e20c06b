"""What is not finite: found, blamed on whoever a finite second answer refutes, and explained where nothing helps."""

import numpy as np
import torch

from expertfleet.proto.errors import Code
from expertfleet.proto.rows import Rows
from expertfleet.router.dispatch.combine import Answers, Piece
from expertfleet.router.dispatch.nonfinite_check import faults_of, find_faulty, suspect_routes

T, K, H = 4, 2, 8
EXPERTS = np.arange(T * K) + 10
NAN = float("nan")


def answers(*spoiled: int) -> list[Piece]:
    """Two pieces that have every route, those ``spoiled`` not finite."""
    rows = torch.ones(T * K, H)
    rows[list(spoiled), 3] = NAN
    even, odd = np.arange(0, T * K, 2), np.arange(1, T * K, 2)
    return [(even, Rows.of(rows[even])), (odd, Rows.of(rows[odd]))]


def total_of(pieces: list[Piece]) -> torch.Tensor:
    answered = Answers(torch.ones(T, K), H, torch.float32)
    for routes, rows in pieces:
        answered.add(routes, rows)
    return answered.combined()[0]


def test_only_routes_of_rows_that_were_finite_are_doubted() -> None:
    x = torch.ones(T, H)
    x[2, 0] = float("inf")
    pieces = answers(1, 4, 5, 6)
    assert sorted(suspect_routes(x, pieces, total_of(pieces), K).tolist()) == [1, 6]


def test_whoever_is_refuted_was_wrong_and_whoever_is_confirmed_was_not() -> None:
    first, second, third = np.array([0, 3]), np.array([5]), np.array([7])
    mixed, spoiled = Rows.of(torch.tensor([[1.0], [NAN]])), Rows.of(torch.tensor([[NAN]]))
    seconds = [(np.array([0, 5]), mixed), (np.array([3]), spoiled)]
    assert find_faulty([("a", first), ("b", second), ("c", third)], seconds) == ["a"]


def test_every_row_without_an_output_says_why() -> None:
    x = torch.ones(T, H)
    x[0, 0] = NAN
    pieces = answers(0, 1, 2, 5)
    total = total_of(pieces)
    total[3] = float("inf")
    doubts = [("a", np.array([2, 5]))]
    seconds = [(np.array([2]), Rows.of(torch.full((1, H), NAN)))]
    faults = faults_of(9, x, EXPERTS, total, doubts, seconds)
    assert list(faults) == [0, 1, 2, 3]
    assert {fault.code for fault in faults.values()} == {Code.NON_FINITE}
    assert str(faults[0]).startswith("layer 9: the hidden row is not finite")
    assert str(faults[1]).endswith("experts [12] is not finite, and a second replica says the same")
    assert "experts [15] is not finite, and no second replica" in str(faults[2])
    assert "sum of finite outputs" in str(faults[3])
