"""Areas never overlap, views never leave the memory, and memory that could shrink is not mapped."""

import os
import random
from collections.abc import Iterator

import pytest
import torch

from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.rows import Rows
from expertfleet.transport.shared_memory import ALIGNMENT, Arena, SharedMemory

if not hasattr(os, "memfd_create"):
    pytest.skip("shared memory without a name is Linux's own", allow_module_level=True)


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena()
    yield arena
    arena.close()


def test_what_one_end_writes_the_other_reads(arena: Arena) -> None:
    other = SharedMemory.received(arena.file)
    begin = arena.allocate(6 * 4)
    values = torch.randn(2, 3)
    arena.put(begin, Rows.of(values))
    seen = other.rows(begin, torch.float32, 2, 3).tensor
    assert torch.equal(seen, values)
    seen.zero_()
    assert not arena.rows(begin, torch.float32, 2, 3).tensor.any()


def test_rows_are_put_where_they_belong(arena: Arena) -> None:
    rows = torch.randn(3, 5).bfloat16()
    begin = arena.allocate(256)
    arena.put(begin, Rows.of(rows))
    assert torch.equal(arena.rows(begin, torch.bfloat16, 3, 5).tensor, rows)
    assert torch.equal(arena.rows(begin + 10, torch.bfloat16, 2, 5, alignment=2).tensor, rows[1:])
    arena.close()
    with pytest.raises(FleetError) as refused:
        arena.put(begin, Rows.of(rows))
    assert refused.value.code is Code.LANE_LOST


def test_areas_never_overlap_and_the_first_free_one_is_used_again(arena: Arena) -> None:
    held: dict[int, int] = {}
    for _ in range(2000):
        if held and random.random() < 0.5:
            begin = random.choice(list(held))
            del held[begin]
            arena.free(begin)
        else:
            size = random.randint(1, 5000)
            begin = arena.allocate(size)
            assert begin % ALIGNMENT == 0
            assert all(begin + size <= other or other + length <= begin for other, length in held.items())
            held[begin] = size
    for begin in held:
        arena.free(begin)
    assert arena.allocate(1) == 0


def test_what_is_closed_lasts_as_long_as_its_views() -> None:
    arena = Arena()
    other = SharedMemory.received(arena.file)
    seen = other.rows(0, torch.float32, 1, 3).tensor
    before = len(os.listdir("/proc/self/fd"))
    arena.close()
    other.close()
    for end in (arena, other):
        with pytest.raises(FleetError) as caught:
            end.rows(0, torch.float32, 1, 1)
        assert caught.value.code is Code.LANE_LOST
    assert not seen.any()
    assert len(os.listdir("/proc/self/fd")) == before - 2
    del seen
    assert len(os.listdir("/proc/self/fd")) == before - 3


@pytest.mark.parametrize(("offset", "count"), [(1, 1), (0, 1 << 60), (1 << 62, 1), (-64, 1)])
def test_a_view_beyond_the_memory_is_refused(arena: Arena, offset: int, count: int) -> None:
    with pytest.raises(FleetError, match="do not lie in the") as caught:
        arena.rows(offset, torch.float32, count=1, width=count)
    assert caught.value.code is Code.BAD_FRAME


def test_without_room_it_says_so(arena: Arena) -> None:
    begin = arena.allocate(arena.size - ALIGNMENT)
    with pytest.raises(FleetError, match="no 128 bytes are free") as caught:
        arena.allocate(65)
    assert caught.value.code is Code.OVERLOADED
    arena.free(begin)


def test_a_burst_s_pages_go_back_to_the_system(arena: Arena) -> None:
    begin = arena.allocate(200 << 20)
    arena.rows(begin, torch.uint8, 1, 200 << 20).tensor.fill_(1)
    assert os.fstat(arena.file).st_blocks * 512 >= 200 << 20
    arena.free(begin)
    assert os.fstat(arena.file).st_blocks * 512 <= 65 << 20


def test_only_a_file_that_cannot_shrink_is_mapped(arena: Arena) -> None:
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(arena.file, 4096)
    unsealed = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    reading, writing = os.pipe()
    for file, message in ((unsealed, "could shrink"), (reading, "cannot be mapped"), (-1, "cannot be mapped")):
        with pytest.raises(FleetError, match=message) as caught:
            SharedMemory.received(file)
        assert caught.value.code is Code.BAD_FRAME
    for file in (unsealed, reading, writing):
        os.close(file)
