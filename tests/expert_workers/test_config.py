"""Experts are named as ids and ranges; what is neither is refused."""

import pytest

from expertfleet.expert_workers.config import parse_experts


def test_ids_and_ranges_are_one_sorted_set() -> None:
    assert parse_experts("3-5, 1,4", 8) == (1, 3, 4, 5)
    assert parse_experts("all", 3) == (0, 1, 2)


@pytest.mark.parametrize("text", ["5-2", "1,5-2", "3-", "-3", "", "1,,2", "x", "1-2-3", "8", "0-99999999999999"])
def test_what_names_no_expert_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="experts: "):
        parse_experts(text, 8)
