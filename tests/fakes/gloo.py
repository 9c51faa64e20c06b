"""Pairs over gloo: what NCCL's pairs do, on machines without a GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from expertfleet.transport import pair_group

_SITE = Path(__file__).with_name("over_gloo")


@pytest.fixture(scope="module", autouse=True)
def over_gloo() -> Iterator[None]:
    """For this process and those that its tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_group, "BACKEND", "gloo")
        patch.setenv("PYTHONPATH", str(_SITE))
        yield
