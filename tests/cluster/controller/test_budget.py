"""What fits a machine: with numbers of which each can be checked by hand."""

import math
import re
from typing import Any

import pytest

from expertfleet.cluster.commands.resource_plan import check_memory
from expertfleet.cluster.controller.budget import BESIDES_BYTES, GIB, WORKER_BYTES, Budget, Size
from expertfleet.cluster.controller.placement_settings import PlacementSettings
from expertfleet.cluster.errors import ClusterError

EXPERT = GIB // 16  # 192 of them are 12 GiB


def budget(**changes: Any) -> Budget:
    return Budget(
        **{"attention_bytes": 2 * GIB, "num_experts": 192, "expert_bytes": EXPERT, "memory_gib": None, **changes}
    )


def bytes_of(attention: int, shards: int, copies: int) -> int:
    return int(attention * 2 * GIB + shards * WORKER_BYTES + copies * EXPERT + BESIDES_BYTES)


@pytest.mark.parametrize(("size", "copies"), [(Size(1, 2, 1), 192), (Size(3, 5, 1.5), 288), (Size(1, 7, 1.001), 193)])
def test_what_a_fleet_needs_follows_from_its_numbers(size: Size, copies: int) -> None:
    needed = bytes_of(size.attention_workers, size.expert_shards, copies)
    assert budget().needed_bytes(size) == pytest.approx(needed, abs=size.expert_shards)


def test_copies_that_fill_spare_memory_are_counted() -> None:
    filling = budget(memory_gib=12.0, placing=PlacementSettings(spare_memory=0.25))  # room for all 192 in each shard
    assert filling.copies(Size(1, 4, 1)) == 3 * 192
    assert filling.copies(Size(1, 1, 1)) == 192
    assert budget(memory_gib=6.0, placing=PlacementSettings(spare_memory=0.5)).copies(Size(1, 4, 1)) == 192


@pytest.mark.parametrize(
    ("given", "size", "fault"),
    [
        (None, Size(1, 192, 1), ""),
        (None, Size(1, 193, 1), "expert_shards: 193 are more than the 192 experts, copies included, .* at most 192 can be"),
        (None, Size(1, 288, 1.5), ""),
        (1.0, Size(1, 12, 1), ""),
        (1.0, Size(1, 11, 1), "memory_gib: 11 expert shards of 1 GiB have room for 176 of 192 experts.* 1.125, or --expert-shards 12"),
        (1.0, Size(1, 12, 1.25), "have room for 192 of 240 experts, copies included; give .*1.25, or --expert-shards 15"),
    ],
)  # fmt: skip
def test_a_fleet_that_can_never_be_whole_is_told_by_its_numbers(given: float | None, size: Size, fault: str) -> None:
    why = budget(memory_gib=given).why_never(size)
    assert (why == "") == (fault == "")
    assert re.search(fault, why), why


@pytest.mark.parametrize("given", [0.001, 0.0624])
def test_memory_that_holds_not_one_expert_is_refused_with_what_would(given: float) -> None:
    with pytest.raises(
        ValueError, match=rf"memory_gib: {given:g} GiB hold not one expert of 64\.000 MiB; 0\.063 would"
    ):
        budget(memory_gib=given).why_never(Size(1, 2, 1))


HOST = budget(available_bytes=24 * GIB)
NOW = Size(1, 2, 1)


@pytest.mark.parametrize("name", ["expert_shards", "attention_workers", "replicas"])
def test_the_number_that_is_named_fits_and_the_next_one_does_not(name: Any) -> None:
    wish = Size(1, 4, 2.0) if name == "replicas" else NOW.with_number(name, 60)
    most = HOST.most(wish, name, 24 * GIB)
    step = 0.01 if name == "replicas" else 1
    assert most >= 1
    before = Size(1, 4, 1) if name == "replicas" else NOW
    assert HOST.why_not(wish, before, 24 * GIB).endswith(f"at most {name} {most:g} would fit")
    assert (
        HOST.needed_bytes(wish.with_number(name, most))
        <= 24 * GIB
        < HOST.needed_bytes(wish.with_number(name, most + step))
    )


def test_what_is_free_now_limits_growth_even_where_more_was_there_at_the_start() -> None:
    assert HOST.why_not(Size(2, 2, 1), NOW, 3 * GIB) == ""
    assert "attention_workers 2 would take" in HOST.why_not(Size(2, 2, 1), NOW, GIB)
    assert "no more than there is fits" not in HOST.why_not(Size(3, 2, 1), NOW, 3 * GIB)


def test_what_was_granted_and_has_not_begun_yet_counts() -> None:
    """The second of two wishes finds the memory that the first one's workers have yet to take free."""
    first = Size(4, 2, 1)
    assert HOST.why_not(first, NOW, 24 * GIB) == ""
    assert HOST.why_not(Size(6, 2, 1), first, 24 * GIB).startswith("attention_workers: ")


def test_a_fleet_may_shrink_whatever_is_free() -> None:
    assert HOST.why_not(Size(1, 2, 1), Size(3, 8, 1.5), 0) == ""


def test_only_the_numbers_that_change_are_offered_for_less() -> None:
    why = HOST.why_not(Size(9, 2, 1), NOW, 24 * GIB)
    assert "at most attention_workers " in why
    assert "expert_shards" not in why


def test_a_limit_of_each_shards_memory_is_kept_when_a_smaller_number_is_looked_for() -> None:
    """One shard alone could not hold the model, so that the search must not begin there."""
    limited = budget(memory_gib=2.0, available_bytes=24 * GIB)
    wish = Size(1, 60, 1)
    assert limited.most(wish, "expert_shards", 24 * GIB) >= math.ceil(192 / limited.room)


def test_more_shards_than_a_fleet_may_have_are_no_remedy() -> None:
    why = budget(memory_gib=0.0625, num_experts=4097).why_never(Size(1, 2, 1))
    assert why.endswith("copies included; give --memory-gib 128.063")
    assert budget(memory_gib=0.0625, num_experts=4096).why_never(Size(1, 2, 1)).endswith("or --expert-shards 4096")


@pytest.mark.parametrize(
    ("size", "available", "remedy"),
    [
        (Size(1, 100, 1), 40, "lower --expert-shards to 64, or spread"),
        (Size(1, 100, 1), 52.5, "lower --expert-shards to 96 or --cache-gib or --max-model-len, or spread"),
        (Size(30, 1, 1), 40, "lower --attention-workers to 13 or --cache-gib or --max-model-len, or spread"),
        (Size(1, 1, 1), 8, "GiB are available; spread the shards"),
        (Size(1, 1, 1), 14, "GiB are available; lower --cache-gib or --max-model-len, or spread the shards"),
    ],
)
def test_what_would_not_be_enough_is_no_remedy(size: Size, available: float, remedy: str) -> None:
    with pytest.raises(ClusterError, match=remedy):
        check_memory(size, budget(), int(available * GIB))
