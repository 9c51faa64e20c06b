"""Rows are the same values whichever form they are asked for in, and are written where they lie."""

import mmap
from collections.abc import Callable

import numpy as np
import pytest
import torch

from expertfleet.kernels.native import tensor_at
from expertfleet.proto.rows import Rows, address_of

VALUES = torch.arange(12.0).view(3, 4)
BYTES = VALUES.numpy().tobytes()


def mapped() -> mmap.mmap:
    memory = mmap.mmap(-1, 4096)
    memory[8 : 8 + len(BYTES)] = BYTES
    return memory


FORMS: dict[str, Callable[[], Rows]] = {
    "tensor": lambda: Rows.of(VALUES.clone()),
    "bytes": lambda: Rows(3, 4, torch.float32, b"12345678" + BYTES, 8),
    "bytearray": lambda: Rows(3, 4, torch.float32, bytearray(b"12345678" + BYTES), 8),
    "memory": lambda: Rows(3, 4, torch.float32, np.frombuffer(bytearray(b"1234" + BYTES), np.uint8).data, 4),
    "read-only memory": lambda: Rows(3, 4, torch.float32, memoryview(b"1234" + BYTES), 4),
    "mapped": lambda: Rows(3, 4, torch.float32, mapped(), 8),
}


@pytest.fixture(params=FORMS)
def rows(request: pytest.FixtureRequest) -> Rows:
    return FORMS[request.param]()


def test_every_form_has_the_same_values(rows: Rows) -> None:
    assert (rows.count, rows.width, rows.dtype, rows.nbytes) == (3, 4, torch.float32, 48)
    assert bytes(rows.data()) == BYTES
    assert torch.equal(tensor_at(rows.address, (3, 4), torch.float32), VALUES)
    assert torch.equal(rows.tensor, VALUES)


def test_a_part_lies_inside(rows: Rows) -> None:
    part = rows.part(1, 2)
    assert part.address == rows.address + 16
    assert bytes(part.data()) == BYTES[16:]
    assert torch.equal(part.tensor, VALUES[1:])
    assert rows.part(0, 3) is rows
    for first, count in ((2, 2), (-1, 2), (1, 3)):
        with pytest.raises(AssertionError):
            rows.part(first, count)


def test_what_does_not_lie_in_the_memory_is_refused() -> None:
    for at in (-1, 1, 1 << 40):
        with pytest.raises(AssertionError, match="of 48 bytes"):
            Rows(3, 4, torch.float32, bytearray(48), at)


def test_whoever_keeps_the_bytes_of_a_few_does_not_keep_all() -> None:
    whole = Rows.new(4, 8, torch.float32)
    assert isinstance(whole.data(), memoryview)
    assert isinstance(whole.part(1, 2).data(), bytes)


@pytest.mark.parametrize("count", [2, 9000])
def test_new_rows_are_written_by_address_and_by_copy(count: int) -> None:
    values = torch.randn(count, 8)
    made = Rows.new(count, 8, torch.float32)
    made.copy(Rows.of(values))
    assert torch.equal(made.tensor, values)
    tensor_at(made.address, (count, 8), torch.float32).zero_()
    assert not made.tensor.any()
    with pytest.raises(AssertionError, match="Rows"):
        made.copy(Rows.of(values.bfloat16()))
    with pytest.raises(AssertionError, match="bytes"):
        FORMS["bytes"]().copy(Rows.of(VALUES))


def test_addresses_of_routes() -> None:
    numbers = np.arange(5, dtype=np.int32)
    for memory in (numbers.data[2:], memoryview(numbers.tobytes()).cast("i")[2:]):
        assert tensor_at(address_of(memory), (3,), torch.int32).tolist() == [2, 3, 4]


def test_a_tensor_with_gaps_is_refused() -> None:
    with pytest.raises(AssertionError):
        Rows.of(torch.zeros(4, 6)[:, ::2])
