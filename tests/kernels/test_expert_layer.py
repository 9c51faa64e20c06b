import pytest
import torch
from stepped import Stepped

from expertfleet.kernels import expert_layer
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.expert_layer import Projection
from expertfleet.kernels.grouped_gemm import grouped_gemm, make_backend

HIDDEN, WIDTH, GROUP = 64, 32, 32


def _projections(hidden: int = HIDDEN, width: int = WIDTH, group: int = GROUP) -> dict[str, Projection]:
    return {
        name: (
            torch.randint(-(2**31), 2**31 - 1, (num_out, num_in // 8)).int(),
            torch.rand(num_out, num_in // group).bfloat16(),
        )
        for name, num_out, num_in in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width))
    }


@pytest.mark.parametrize("name", ["cpu-native", "reference"])
def test_held_experts_and_their_bytes(name: str) -> None:
    layer = make_backend(name, "cpu", torch.bfloat16, HIDDEN, WIDTH, GROUP).new_layer()
    assert layer.bytes_held == 0
    for expert_id in (4, 9):
        layer.add(expert_id, **_projections())
    assert [layer.holds(expert_id) for expert_id in (4, 5, 9)] == [True, False, True]
    own = 2 * sum(part.nbytes for projection in _projections().values() for part in projection)
    assert layer.bytes_held == own


@pytest.mark.parametrize("name", ["cpu-native", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_asked_by_address_is_what_is_asked_by_tensor(name: str, dtype: torch.dtype) -> None:
    layer = make_backend(name, "cpu", dtype, HIDDEN, WIDTH, GROUP).new_layer()
    for expert_id in (2, 7):
        layer.add(expert_id, **_projections())
    x = torch.randn(3, HIDDEN).to(dtype)

    def ask(*routes: tuple[int, int]) -> torch.Tensor:
        rows, experts = (torch.tensor(numbers, dtype=torch.int32) for numbers in zip(*routes, strict=True))
        out = torch.empty(len(routes), HIDDEN, dtype=dtype)
        layer.apply_at(x.data_ptr(), len(x), rows.data_ptr(), experts.data_ptr(), len(routes), out.data_ptr())
        return out

    rows, experts = torch.tensor([0, 2, 1, 0]), torch.tensor([7, 2, 7, 2])
    asked = list(zip(rows.tolist(), experts.tolist(), strict=True))
    assert torch.equal(ask(*asked), grouped_gemm(x, rows, experts, layer))
    for wrong in (3, -1):
        with pytest.raises(KernelError, match="but there are 3 rows"):
            ask((0, 7), (wrong, 2))
    for foreign in (3, -1, 8, 1 << 30):
        with pytest.raises(KernelError, match=f"expert {foreign} is not held"):
            ask((0, 7), (1, foreign))


@pytest.mark.parametrize("name", ["cpu-native", "reference"])
def test_experts_come_and_go_and_the_others_stay_as_they_are(name: str) -> None:
    layer = make_backend(name, "cpu", torch.bfloat16, HIDDEN, WIDTH, GROUP).new_layer()
    given = {expert_id: _projections() for expert_id in range(5)}
    x = torch.randn(1, HIDDEN).bfloat16()

    def output(expert_id: int) -> torch.Tensor:
        return grouped_gemm(x, torch.zeros(1, dtype=torch.int64), torch.tensor([expert_id]), layer)

    for expert_id in range(4):
        layer.add(expert_id, **given[expert_id])
    before = {expert_id: output(expert_id) for expert_id in range(4)}
    one = layer.bytes_held // 4
    layer.remove(1)
    layer.remove(3)
    assert layer.bytes_held == 2 * one
    assert [layer.holds(expert_id) for expert_id in range(5)] == [True, False, True, False, False]
    for missing in (1, 4):
        with pytest.raises(KernelError, match=f"expert {missing} is not held"):
            output(missing)
        with pytest.raises(KernelError, match=f"expert {missing} is not held"):
            layer.remove(missing)
    layer.add(4, **given[4])
    layer.add(3, **given[3])
    layer.add(1, **given[1])
    assert layer.bytes_held == 5 * one
    for expert_id, wanted in before.items():
        assert torch.equal(output(expert_id), wanted)


def test_the_checkpoint_s_tensors_may_be_freed_or_overwritten() -> None:
    layer = make_backend("cpu-native", "cpu", torch.bfloat16, HIDDEN, WIDTH, GROUP).new_layer()
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


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cpu-native", torch.bfloat16),
        ("reference", torch.bfloat16),
    ],
)
@pytest.mark.parametrize(("hidden", "width", "group"), [(64, 32, 32), (96, 160, 32), (256, 128, 64), (128, 384, 128)])
def test_weights_come_back_bit_for_bit(name: str, dtype: torch.dtype, hidden: int, width: int, group: int) -> None:
    layer = make_backend(name, "cpu", dtype, hidden, width, group).new_layer()
    given = {expert_id: _projections(hidden, width, group) for expert_id in (3, 7)}
    for expert_id, projections in given.items():
        layer.add(expert_id, **projections)
    for expert_id, projections in given.items():
        for found, wanted in zip(layer.weights(expert_id), projections.values(), strict=True):
            assert all(torch.equal(*parts) for parts in zip(found, wanted, strict=True))
    layer.remove(3)
    for missing in (3, 4):
        with pytest.raises(KernelError, match=f"expert {missing} is not held"):
            layer.weights(missing)


@pytest.mark.parametrize("name", ["cpu-native", "reference"])
def test_an_expert_is_whole_as_soon_as_it_is_held_and_the_others_are_all_the_time(name: str) -> None:
    layer = make_backend(name, "cpu", torch.bfloat16, HIDDEN, WIDTH, GROUP).new_layer()
    layer.add(9, **_projections())
    x = torch.randn(1, HIDDEN).bfloat16()
    calls = 0

    def output(expert_id: int) -> torch.Tensor:
        return grouped_gemm(x, torch.zeros(1, dtype=torch.int64), torch.tensor([expert_id]), layer)

    before = output(9)
    for line in Stepped(expert_layer, lambda: layer.add(5, **_projections())).stops():
        calls += 1
        assert torch.equal(output(9), before), f"line {line}"
        if layer.holds(5):
            assert output(5).shape == (1, HIDDEN), f"line {line}"
            assert layer.weights(5), f"line {line}"
    assert calls >= 10
    assert layer.holds(5)
