import pytest
import torch

from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.expert_layer import Projection
from expertfleet.kernels.grouped_gemm import grouped_gemm, make_backend

HIDDEN, WIDTH, GROUP = 64, 32, 32


def _projections() -> dict[str, Projection]:
    return {
        name: (
            torch.randint(-(2**31), 2**31 - 1, (num_out, num_in // 8)).int(),
            torch.rand(num_out, num_in // GROUP).bfloat16(),
        )
        for name, num_out, num_in in (("gate", WIDTH, HIDDEN), ("up", WIDTH, HIDDEN), ("down", HIDDEN, WIDTH))
    }


@pytest.mark.parametrize(("name", "most"), [("cpu-native", 1.0), ("cpu-int4pack", 1.12), ("reference", 1.0)])
def test_held_experts_and_their_bytes(name: str, most: float) -> None:
    layer = make_backend(name, "cpu", torch.bfloat16, HIDDEN, WIDTH, GROUP).new_layer()
    assert layer.bytes_held == 0
    for expert_id in (4, 9):
        layer.add(expert_id, **_projections())
    assert [layer.holds(expert_id) for expert_id in (4, 5, 9)] == [True, False, True]
    own = 2 * sum(part.nbytes for projection in _projections().values() for part in projection)
    assert own <= layer.bytes_held <= most * own


@pytest.mark.parametrize("name", ["cpu-native", "cpu-int4pack"])
def test_the_checkpoint_s_tensors_may_be_freed_or_overwritten(name: str) -> None:
    layer = make_backend(name, "cpu", torch.bfloat16, HIDDEN, WIDTH, GROUP).new_layer()
    given = _projections()
    layer.add(0, **given)
    x = torch.randn(2, HIDDEN).bfloat16()
    rows, experts = torch.arange(2), torch.zeros(2, dtype=torch.int64)
    before = grouped_gemm(x, rows, experts, layer)
    for words, scales in given.values():
        words.zero_()
        scales.zero_()
    assert torch.equal(grouped_gemm(x, rows, experts, layer), before)


@pytest.mark.parametrize("projection", ["gate", "up", "down"])
def test_a_wrong_shape_or_dtype_names_the_tensor(projection: str) -> None:
    layer = make_backend("reference", "cpu", torch.float32, HIDDEN, WIDTH, GROUP).new_layer()
    good = _projections()
    words, scales = good[projection]
    for bad, what in (
        ((words[1:], scales), "words: torch.int32"),
        ((words.long(), scales), "words: torch.int64"),
        ((words, scales[:, :0]), "scales: torch.bfloat16"),
        ((words, scales.float()), "scales: torch.float32"),
    ):
        with pytest.raises(KernelError, match=f"expert 3: {projection} {what}"):
            layer.add(3, **(good | {projection: bad}))
    assert not layer.holds(3)


def test_an_expert_is_added_once() -> None:
    layer = make_backend("reference", "cpu", torch.float32, HIDDEN, WIDTH, GROUP).new_layer()
    layer.add(1, **_projections())
    with pytest.raises(KernelError, match="expert 1 is held already"):
        layer.add(1, **_projections())
