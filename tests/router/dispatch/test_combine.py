"""The combine is a sum in rank order whose bits do not depend on the batch."""

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from expertfleet.kernels import native
from expertfleet.kernels.row_rule import bits_of
from expertfleet.proto.rows import Rows
from expertfleet.router.dispatch import combine as combine_module
from expertfleet.router.dispatch.combine import Answers, combine

# The sums of ``golden_rows`` in rank order, float32. They never change: another order would be another numerics class.
GOLDEN = bytes.fromhex(
    "34d80000354000003644700037480000b6dd30003580000036fa8000b65000003518000037400000b64e000037800000353e0000371c6800"
    "3678000032d00000b660000036200000b5800000372e600000000000b6800000b7c0100035800000b400000037a9000034e00000b6800000"
    "35b0000000000000367e0000000000000000000000000000b6e00000b6c2c000b7000000b300000035800000340000003600000035400000"
)
Floats = npt.NDArray[np.float32]


def golden_rows() -> tuple[Floats, Floats]:
    """Rows [2, 8, 21], which bf16 holds exactly, and weights [2, 8]: the last four ranks take away what the first four give."""
    T, K, H = 2, 8, 21
    place, route = np.arange(T * K * H).reshape(T, K, H), np.arange(T * K).reshape(T, K)
    rows = ((place * 37 + 11) % 61 - 30).astype(np.float32) * np.exp2((place * 7 % 13 - 6).astype(np.float32))
    weights = ((route * 29 + 5) % 97 + 1).astype(np.float32) / np.float32(97)
    rows[:, 4:], weights[:, 4:] = -rows[:, 3::-1], weights[:, 3::-1]
    return rows, weights


def summed(rows: Floats, weights: Floats, order: Sequence[int]) -> Floats:
    """One product and one sum after the other, each rounded to float32."""
    products = [rows[:, rank] * weights[:, rank, None] for rank in order]
    total = products[0]
    for product in products[1:]:
        total = total + product
    assert total.dtype == np.float32
    return total


def by_torch(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return combine(rows, weights)


def from_rows(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    answers = Answers(weights, rows.shape[-1], rows.dtype)
    for routes in (np.arange(1, 16, 2), np.arange(0, 16, 2)):
        answers.add(routes, Rows.of(rows.view(16, -1)[torch.from_numpy(routes)]))
    return answers.combined()[0]


def from_addresses(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    answers = Answers(weights, rows.shape[-1], rows.dtype)
    places = native.tensor_at(answers.places, (16,), torch.int64)
    for route, row in enumerate(rows.view(16, -1)):
        places[route] = row.data_ptr()
    answers.note(np.arange(16))
    return answers.combined()[0]


def test_the_golden_sums_are_those_in_rank_order_and_no_others() -> None:
    rows, weights = golden_rows()
    assert summed(rows, weights, range(8)).astype(">f4").tobytes() == GOLDEN
    wanted = np.frombuffer(GOLDEN, ">f4")
    for order in (
        (7, 6, 5, 4, 3, 2, 1, 0),
        (0, 1, 2, 3, 4, 5, 7, 6),
        (0, 2, 1, 3, 4, 5, 6, 7),
        (4, 5, 6, 7, 0, 1, 2, 3),
    ):
        assert (summed(rows, weights, order).ravel() != wanted).any(), order
    exact = (rows.astype(np.float64) * weights[:, :, None]).sum(1).astype(np.float32)
    assert (exact.ravel() != wanted).mean() > 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("way", [by_torch, from_rows, from_addresses])
def test_every_way_of_the_combine_gives_the_golden_bits(way: object, dtype: torch.dtype) -> None:
    if way is not by_torch and isinstance(native.load(), str):
        pytest.skip("the native kernel was not built")
    rows, weights = map(torch.from_numpy, golden_rows())
    found = way(rows.to(dtype), weights)  # type: ignore[operator]
    assert found.numpy().astype(">f4").tobytes() == GOLDEN


def test_without_a_compiler_rows_give_the_golden_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combine_module, "load", lambda: "not here")
    rows, weights = map(torch.from_numpy, golden_rows())
    assert from_rows(rows, weights).numpy().astype(">f4").tobytes() == GOLDEN


def test_equals_the_rank_order_sum_bit_for_bit() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        rows, weights = torch.randn(70, 8, 96).to(dtype), torch.rand(70, 8)
        expected = torch.zeros(70, 96)
        for k in range(8):
            expected = (
                expected + rows[:, k].float() * weights[:, k : k + 1] if k else rows[:, 0].float() * weights[:, 0:1]
            )
        assert torch.equal(combine(rows, weights), expected)


def test_a_row_does_not_see_its_neighbours() -> None:
    rows, weights = torch.randn(100, 8, 7168).bfloat16(), torch.rand(100, 8)
    whole = combine(rows, weights)
    for start, stop in ((0, 1), (31, 33), (99, 100), (5, 80)):
        assert torch.equal(combine(rows[start:stop], weights[start:stop]), whole[start:stop])


def test_close_to_float64() -> None:
    rows, weights = torch.randn(9, 8, 64), torch.rand(9, 8)
    expected = (rows.double() * weights.double().unsqueeze(-1)).sum(1)
    torch.testing.assert_close(combine(rows, weights).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(params=["native", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(combine_module, "load", lambda: "not here")
    elif isinstance(native.load(), str):
        pytest.skip("the native kernel was not built")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "top_k", "hidden"), [(1, 8, 7168), (70, 8, 96), (3, 1, 5000), (300, 6, 1000)])
def test_pieces_in_any_order_give_the_bits_of_the_whole(
    kernel: None, dtype: torch.dtype, tokens: int, top_k: int, hidden: int
) -> None:
    rows, weights = torch.randn(tokens, top_k, hidden).to(dtype), torch.rand(tokens, top_k)
    routes = torch.randperm(tokens * top_k)
    cuts = sorted(random.sample(range(1, tokens * top_k), min(5, tokens * top_k - 1)))
    answers = Answers(weights, hidden, dtype)
    for part in routes.tensor_split(cuts):
        answers.add(part.numpy(), Rows.of(rows.view(-1, hidden)[part]))
    found, is_finite = answers.combined()
    assert is_finite
    assert torch.equal(bits_of(found), bits_of(combine(rows, weights)))


def test_what_is_not_finite_stays_so(kernel: None) -> None:
    rows, weights = torch.randn(4, 8, 64), torch.rand(4, 8)
    rows[1, 3, 5], rows[2, 0, 6] = float("nan"), float("inf")
    answers = Answers(weights, 64, torch.float32)
    answers.add(np.arange(32), Rows.of(rows.view(32, 64)))
    found, is_finite = answers.combined()
    assert not is_finite
    assert (~found.isfinite()).nonzero().tolist() == [[1, 5], [2, 6]]


def test_the_last_row_of_a_route_counts(kernel: None) -> None:
    first, second = torch.randn(6, 64), torch.randn(2, 64)
    answers = Answers(torch.ones(3, 2), 64, torch.float32)
    answers.add(np.arange(6), Rows.of(first))
    assert torch.equal(answers.combined()[0], first[::2] + first[1::2])
    answers.add(np.array([1, 4]), Rows.of(second))
    expected = torch.stack([first[0] + second[0], first[2] + first[3], second[1] + first[5]])
    assert torch.equal(answers.combined()[0], expected)
