from collections.abc import Callable

import pytest
import torch

from expertfleet.kernels.row_rule import RowRule, RuleCache, choose_rule


def _blocked(change_at: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Sums each row, in another order from ``change_at`` rows on."""

    def call(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(x.shape[0], 1)
        for column in (x.flip(1) if x.shape[0] >= change_at else x).t():
            total += column[:, None]
        return total

    return call


def _position_dependent(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1] + torch.arange(x.shape[0])[:, None]


def test_counts_with_other_bits_are_left_out() -> None:
    cancelling = torch.cat((torch.tensor([1e8, -1e8]), torch.rand(98)))  # in another order it is another sum
    rule = choose_rule([("sum", _blocked(33))], cancelling)
    assert rule.sizes[0] == 1
    assert rule.sizes[-1] == 32


def test_position_within_a_batch_counts_as_another_result() -> None:
    assert choose_rule([("bad", _position_dependent)], torch.randn(8)).sizes == (1,)


def test_the_better_form_wins() -> None:
    forms = [("bad", _position_dependent), ("good", _blocked(10**6))]
    rule = choose_rule(forms, torch.randn(100))
    assert rule.form == "good"
    assert rule.sizes[-1] == 256


@pytest.mark.parametrize("sizes", [(1,), (4,), (2, 3, 16), (1, 2, 7, 64)])
def test_only_proved_counts_are_run_and_rows_keep_their_order(sizes: tuple[int, ...]) -> None:
    rule = RowRule("any", sizes)
    seen: list[int] = []

    def call(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[0])
        return x * 2

    for num_rows in (0, 1, 2, 3, 5, 16, 17, 63, 65, 130):
        x = torch.randn(num_rows, 3)
        assert torch.equal(rule.run(call, x), x * 2)
    assert set(seen) <= set(sizes)


def test_every_count_is_run_unpadded_when_all_agreed() -> None:
    rule = choose_rule([("sum", _blocked(10**6))], torch.randn(64), every=True)
    seen: list[int] = []
    rule.run(lambda x: seen.append(x.shape[0]) or x, torch.randn(300, 2))  # type: ignore[func-returns-value]
    assert seen == [256, 44]


def test_a_book_asks_once_per_purpose_and_thread_count(threads: int) -> None:
    book, asked = RuleCache(), []

    def choose() -> RowRule:
        asked.append(threads)
        return RowRule("any", (1,))

    assert book.find("a", choose) is book.find("a", choose)
    book.find("b", choose)
    assert len(asked) == 2
    assert book.described() == {f"a, {threads} threads": "any: rows 1", f"b, {threads} threads": "any: rows 1"}
