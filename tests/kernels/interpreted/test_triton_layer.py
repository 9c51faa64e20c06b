"""Experts come while others are applied and go: whatever line one thread is at, the other finds everything in order."""

import threading
from typing import Any

import pytest
import torch
from stepped import Stepped

from expertfleet.kernels import int4, triton_layer
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.expert_layer import ExpertShape, ExpertWeights, Projection
from expertfleet.kernels.grouped_gemm import grouped_gemm
from expertfleet.kernels.row_rule import bits_of
from expertfleet.kernels.triton_layer import TritonLayer

HIDDEN, WIDTH = 64, 32


def projection(num_out: int, num_in: int) -> Projection:
    scales = (torch.rand(num_out, num_in // 32) * 0.02 + 0.002).bfloat16()
    return int4.pack(torch.randint(0, 16, (num_out, num_in))), scales


def expert() -> ExpertWeights:
    return projection(WIDTH, HIDDEN), projection(WIDTH, HIDDEN), projection(HIDDEN, WIDTH)


@pytest.fixture
def layer() -> TritonLayer:
    """Holds experts 3 and 9."""
    made = TritonLayer(ExpertShape(HIDDEN, WIDTH, 32), "cpu")
    made.add(3, *expert())
    made.add(9, *expert())
    return made


def applied(layer: TritonLayer, *experts: int) -> torch.Tensor:
    x = torch.arange(HIDDEN).float().div(HIDDEN).bfloat16()[None]
    routed = torch.tensor(experts)
    return bits_of(grouped_gemm(x, torch.zeros_like(routed), routed, layer))


def test_experts_are_applied_at_every_line_of_another_ones_coming(layer: TritonLayer) -> None:
    wanted = applied(layer, 9, 3)
    lines = []
    for line in Stepped(triton_layer, lambda: layer.add(5, *expert())).stops():
        lines.append(line)
        assert torch.equal(applied(layer, 9, 3), wanted), f"line {line}"
        assert layer.bytes_held in (2 * layer.table.layout.nbytes, 3 * layer.table.layout.nbytes)
        assert [len(part) for part in layer.weights(9)] == [2, 2, 2]
        if layer.holds(5):
            assert applied(layer, 5).shape == (1, HIDDEN), f"line {line}"
            assert layer.weights(5)
    assert len(lines) >= 3
    assert layer.holds(5)


def test_an_expert_may_come_at_every_line_of_others_being_applied(layer: TritonLayer) -> None:
    wanted = applied(layer, 3, 9)
    found: list[torch.Tensor] = []
    layer.add(100, *expert())  # so that a new table is made
    num_lines = 0
    for line in Stepped(triton_layer, lambda: found.append(applied(layer, 3, 9))).stops():
        num_lines += 1
        layer.add(1000 + num_lines, *expert())
        assert layer.holds(1000 + num_lines), f"line {line}"
    assert num_lines >= 5
    assert torch.equal(found[0], wanted)
    assert applied(layer, *range(1001, 1001 + num_lines)).shape == (num_lines, HIDDEN)


def test_the_table_is_whole_whatever_comes_while_it_is_made(layer: TritonLayer) -> None:
    found: list[Any] = []
    layer.add(100, *expert())
    for number, _ in enumerate(Stepped(triton_layer, lambda: found.append(layer.table)).stops()):
        layer.add(200 + number, *expert())
    (table,) = found
    assert len(table.addresses) >= 3
    assert (table.addresses != 0).all()


@pytest.mark.parametrize("stop_at", range(6))
def test_none_is_lost_when_one_comes_while_another_goes(layer: TritonLayer, stop_at: int) -> None:
    wanted = applied(layer, 9)
    coming = threading.Thread(target=lambda: layer.add(5, *expert()), daemon=True)
    for number, _ in enumerate(Stepped(triton_layer, lambda: layer.remove(3)).stops()):
        if number == stop_at:
            coming.start()
            coming.join(0.5)  # or it waits for the other one
    if coming.ident is None:
        coming.start()
    coming.join(60)
    assert [layer.holds(expert_id) for expert_id in (3, 5, 9)] == [False, True, True]
    assert torch.equal(applied(layer, 9), wanted)
    assert layer.bytes_held == 2 * layer.table.layout.nbytes
    assert torch.equal(applied(layer, 5, 9)[1:], wanted)


def test_what_is_gone_is_refused_and_comes_again(layer: TritonLayer) -> None:
    layer.remove(3)
    with pytest.raises(KernelError, match="expert 3 is not held"):
        applied(layer, 3)
    with pytest.raises(KernelError, match="expert 3 is not held"):
        layer.weights(3)
    with pytest.raises(KernelError, match="expert 9 is held already"):
        layer.add(9, *expert())
    wanted = applied(layer, 9)
    layer.add(3, *expert())
    assert torch.equal(applied(layer, 9, 3)[:1], wanted)
