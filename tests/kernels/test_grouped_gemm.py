import pytest
import torch

from expertfleet.kernels import int4
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.expert_layer import ExpertLayer, Projection
from expertfleet.kernels.grouped_gemm import ExpertBackend, grouped_gemm, grouped_gemm_reference, make_backend
from expertfleet.kernels.row_rule import bits_of

Experts = dict[int, tuple[Projection, Projection, Projection]]
NAMES = ("cpu-native", "reference")
BACKENDS = [(name, dtype) for name in NAMES for dtype in (torch.bfloat16, torch.float32)]
# Rounding the result to bf16 alone is 1.65e-3.
ERROR = {torch.bfloat16: 2e-3, torch.float32: 2e-6}
SCATTER = 2  # of a few values' error


def _projection(num_out: int, num_in: int, group_size: int, largest: float = 0.02) -> Projection:
    scales = (torch.rand(num_out, num_in // group_size) * largest + largest / 10).bfloat16()
    return int4.pack(torch.randint(0, 16, (num_out, num_in))), scales


def _filled(backend: ExpertBackend, expert_ids: list[int], largest: float = 0.02) -> tuple[ExpertLayer, Experts]:
    hidden, width, group = backend.shape.hidden, backend.shape.width, backend.shape.group_size
    experts = {
        expert_id: (
            _projection(width, hidden, group, largest),
            _projection(width, hidden, group, largest),
            _projection(hidden, width, group, largest),
        )
        for expert_id in expert_ids
    }
    layer = backend.new_layer()
    for expert_id, three in experts.items():
        layer.add(expert_id, *three)
    return layer, experts


def _relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("name", "dtype"), BACKENDS)
@pytest.mark.parametrize(
    ("hidden", "width", "group"), [(32, 32, 32), (64, 32, 32), (256, 96, 32), (128, 192, 64), (256, 256, 256)]
)
def test_ragged_routes_match_float64(name: str, dtype: torch.dtype, hidden: int, width: int, group: int) -> None:
    backend = make_backend(name, "cpu", dtype, hidden, width, group)
    held = [0, 3, 5, 6, 8, 100, 7]
    layer, experts = _filled(backend, held)
    x = torch.randn(300, hidden).to(dtype)
    rows = torch.randint(0, 300, (1500,))
    routed = torch.tensor(held)[torch.randint(0, 6, (1500,))]  # expert 7 stays empty
    found = grouped_gemm(x, rows, routed, layer)
    assert found.dtype is dtype
    assert _relative_error(found, grouped_gemm_reference(x, rows, routed, experts)) <= ERROR[dtype]


@pytest.mark.parametrize(("name", "dtype"), BACKENDS)
def test_a_route_never_depends_on_the_others(threads: int, name: str, dtype: torch.dtype) -> None:
    layer, _ = _filled(make_backend(name, "cpu", dtype, 256, 64, 32), [0, 1, 2])
    x = torch.randn(300, 256).to(dtype)
    everything = {
        expert_id: bits_of(grouped_gemm(x, torch.arange(300), torch.full((300,), expert_id), layer))
        for expert_id in range(3)
    }
    for num_routes in (1, 2, 3, 5, 8, 13, 17, 32, 33, 64, 65, 128, 299, 700):
        rows, routed = torch.randint(0, 300, (num_routes,)), torch.randint(0, 3, (num_routes,))
        found = bits_of(grouped_gemm(x, rows, routed, layer))
        wanted = torch.stack([everything[e][r] for r, e in zip(rows.tolist(), routed.tolist(), strict=True)])
        assert torch.equal(found, wanted), num_routes


@pytest.mark.parametrize(("name", "dtype"), BACKENDS)
def test_every_count_from_1_to_300_is_exact(threads: int, name: str, dtype: torch.dtype) -> None:
    layer, _ = _filled(make_backend(name, "cpu", dtype, 64, 32, 32), [0])
    x = torch.randn(300, 64).to(dtype)
    zeros = torch.zeros(300, dtype=torch.int64)
    whole = bits_of(grouped_gemm(x, torch.arange(300), zeros, layer))
    for count in range(1, 300):
        found = grouped_gemm(x[:count], torch.arange(count), zeros[:count], layer)
        assert torch.equal(bits_of(found), whole[:count]), count


def test_k2_s_true_dimensions_stay_below_four_thousandths() -> None:
    backend = make_backend("cpu-native", "cpu", torch.bfloat16, 7168, 2048, 32)
    layer, experts = _filled(backend, [0], largest=0.01)
    x = torch.randn(2, 7168).bfloat16()
    rows, routed = torch.tensor([1, 0]), torch.zeros(2, dtype=torch.int64)
    found, wanted = grouped_gemm(x, rows, routed, layer), grouped_gemm_reference(x, rows, routed, experts)
    for row in range(2):
        assert _relative_error(found[row], wanted[row]) <= 4e-3
    assert layer.bytes_held == 24_772_608


@pytest.mark.parametrize(("name", "dtype"), BACKENDS)
def test_one_route_and_no_route(name: str, dtype: torch.dtype) -> None:
    layer, experts = _filled(make_backend(name, "cpu", dtype, 64, 32, 32), [5])
    x = torch.randn(3, 64).to(dtype)
    none = torch.zeros(0, dtype=torch.int64)
    assert grouped_gemm(x, none, none, layer).shape == (0, 64)
    rows, routed = torch.tensor([2]), torch.tensor([5])
    wanted = grouped_gemm_reference(x, rows, routed, experts)
    assert _relative_error(grouped_gemm(x, rows, routed, layer), wanted) <= SCATTER * ERROR[dtype]


@pytest.mark.parametrize(("name", "dtype"), BACKENDS)
def test_one_row_may_go_to_one_expert_twice(name: str, dtype: torch.dtype) -> None:
    layer, _ = _filled(make_backend(name, "cpu", dtype, 64, 32, 32), [0])
    found = grouped_gemm(torch.randn(1, 64).to(dtype), torch.zeros(4).long(), torch.zeros(4).long(), layer)
    assert all(torch.equal(found[0], row) for row in found)


@pytest.mark.parametrize(("name", "dtype"), BACKENDS)
@pytest.mark.parametrize("largest", [1e-30, 1e-3, 1e3])
def test_extreme_scales_and_code_minus_eight(name: str, dtype: torch.dtype, largest: float) -> None:
    backend = make_backend(name, "cpu", dtype, 64, 32, 32)
    layer = backend.new_layer()
    gate, up, down = (
        (torch.zeros(num_out, num_in // 8, dtype=torch.int32), torch.full((num_out, num_in // 32), largest).bfloat16())
        for num_out, num_in in ((32, 64), (32, 64), (64, 32))
    )
    layer.add(0, gate, up, down)
    x = torch.randn(4, 64).to(dtype)
    x[0], x[1] = x[0].abs(), -x[1].abs()  # gates far below and far above zero
    rows, routed = torch.arange(4), torch.zeros(4).long()
    found = grouped_gemm(x, rows, routed, layer)
    assert found.isfinite().all()
    if largest > 1e-30:  # the products of the smallest scales vanish in float32
        wanted = grouped_gemm_reference(x, rows, routed, {0: (gate, up, down)})
        if largest == 1e3:
            assert not found[0].any(), "silu of a gate far below zero is nothing"
        assert torch.allclose(
            found.double(), wanted, rtol=0.05, atol=float(wanted.abs().max()) * ERROR[dtype] * 2 * SCATTER
        )


@pytest.mark.parametrize(("name", "dtype"), BACKENDS)
def test_routes_to_nowhere_are_refused(name: str, dtype: torch.dtype) -> None:
    layer, _ = _filled(make_backend(name, "cpu", dtype, 64, 32, 32), [0])
    x = torch.randn(2, 64).to(dtype)
    with pytest.raises(KernelError, match="expert 9 is not held"):
        grouped_gemm(x, torch.tensor([0, 1]), torch.tensor([0, 9]), layer)
    for row in (-1, 2):
        with pytest.raises(KernelError, match="there are 2 rows"):
            grouped_gemm(x, torch.tensor([0, row]), torch.tensor([0, 0]), layer)
    with pytest.raises(AssertionError, match="rows have 32 values"):
        grouped_gemm(x[:, :32], torch.tensor([0]), torch.tensor([0]), layer)
