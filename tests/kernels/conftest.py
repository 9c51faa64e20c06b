"""Every test draws new numbers; the seed is printed with a failure. ``threads`` runs a test with 1 and with 2."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> int:
    drawn = torch.seed() % 2**32
    torch.manual_seed(drawn)
    print(f"torch.manual_seed({drawn})")
    return drawn


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
