import pytest
import torch

from expertfleet.kernels.batch_invariant_linear import (
    BatchInvariantHeads,
    BatchInvariantLinear,
    BatchInvariantScores,
    heads_rule,
    linear_rule,
)
from expertfleet.kernels.native import Native, load
from expertfleet.kernels.row_rule import RuleCache, bits_of

COUNTS = (*range(1, 18), 31, 32, 33, 63, 64, 65, 100, 128, 300)
DTYPES = [torch.bfloat16, torch.float32]
ERROR = {torch.bfloat16: 4e-3, torch.float32: 2e-6}


def _cancelling(num_out: int, num_in: int, num_rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and a weight whose products cancel but for rounding: any other order of summation shows."""
    order = torch.randperm(num_in)
    first, second = order[: num_in // 2], order[num_in // 2 : num_in // 2 * 2]
    x, weight = torch.randn(num_rows, num_in), torch.randn(num_out, num_in)
    x[:, second] = x[:, first]
    weight[:, second] = -weight[:, first]
    return x.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_out", "num_in"), [(256, 256), (320, 128), (64, 64), (48, 96), (7, 24), (128, 1536), (384, 7168)]
)
def test_a_row_never_depends_on_its_batch(threads: int, num_out: int, num_in: int, dtype: torch.dtype) -> None:
    x, weight = _cancelling(num_out, num_in, 300, dtype)
    linear = BatchInvariantLinear(weight, linear_rule(RuleCache(), num_out, num_in, dtype))
    whole = bits_of(linear(x))
    assert whole.any(), "all rounding noise vanished: this test shows nothing"
    for count in COUNTS:
        start = int(torch.randint(0, 301 - count, ()))
        assert torch.equal(bits_of(linear(x[start : start + count])), whole[start : start + count]), count


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("passing", [False, True])
def test_the_product_is_right(dtype: torch.dtype, passing: bool) -> None:
    num_out, num_in = int(torch.randint(1, 200, ())), int(torch.randint(1, 200, ()))
    weight = torch.randn(num_out, num_in).to(dtype)
    linear = BatchInvariantLinear(weight, linear_rule(RuleCache(), num_out, num_in, dtype, passing=passing))
    x = torch.randn(int(torch.randint(1, 70, ())), num_in).to(dtype)
    wanted = x.double() @ weight.double().t()
    assert (linear(x).double() - wanted).norm() <= ERROR[dtype] * wanted.norm()
    assert linear(x[:0]).shape == (0, num_out)


def test_many_outputs_are_cut_into_pieces() -> None:
    rule = linear_rule(RuleCache(), 20_000, 32, torch.bfloat16)
    assert [(start, stop) for start, stop, _ in rule.pieces] == [(0, 6720), (6720, 13440), (13440, 20000)]
    weight = torch.randn(20_000, 32).bfloat16()
    linear = BatchInvariantLinear(weight, rule)
    x = torch.randn(3, 32).bfloat16()
    assert (linear(x).double() - x.double() @ weight.double().t()).norm() < 4e-3 * 20_000
    assert linear.bytes_held == weight.nbytes


def test_rows_of_another_view_give_the_same(threads: int) -> None:
    x, weight = _cancelling(96, 80, 40, torch.float32)
    linear = BatchInvariantLinear(weight, linear_rule(RuleCache(), 96, 80, torch.float32))
    strided = torch.cat((x, x), dim=1)[:, :80]
    assert torch.equal(bits_of(linear(strided)), bits_of(linear(x)))


def test_a_wrong_width_or_dtype_is_refused() -> None:
    linear = BatchInvariantLinear(torch.randn(8, 16), linear_rule(RuleCache(), 8, 16, torch.float32))
    with pytest.raises(AssertionError, match=r"\(1, 15\)"):
        linear(torch.randn(1, 15))
    with pytest.raises(AssertionError, match="bfloat16"):
        linear(torch.randn(1, 16).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "num_in", "num_out"), [(1, 16, 32), (6, 32, 16), (16, 128, 64), (64, 128, 512)])
def test_heads_are_right_and_exact(threads: int, heads: int, num_in: int, num_out: int, dtype: torch.dtype) -> None:
    flat_x, flat = _cancelling(heads * num_out, num_in, 100, dtype)
    weight = flat.view(heads, num_out, num_in).transpose(1, 2)
    product = BatchInvariantHeads(weight, heads_rule(RuleCache(), heads, num_in, num_out, dtype))
    x = flat_x[:, None].expand(-1, heads, -1)
    whole = bits_of(product(x))
    for count in (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 65):
        start = int(torch.randint(0, 101 - count, ()))
        assert torch.equal(bits_of(product(x[start : start + count])), whole[start : start + count]), count
    x = torch.randn(5, heads, num_in).to(dtype)
    wanted = torch.einsum("rhi,hio->rho", x.double(), weight.double())
    assert (product(x).double() - wanted).norm() <= ERROR[dtype] * wanted.norm()


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_out", "num_in"), [(384, 7168), (32, 256), (13, 48), (5, 24)])
def test_a_gate_s_scores_are_exact_by_row_and_right(
    threads: int, num_out: int, num_in: int, dtype: torch.dtype, stored: torch.dtype
) -> None:
    x, weight = _cancelling(num_out, num_in, 70, dtype)
    scores = BatchInvariantScores(weight.to(stored), RuleCache())
    whole = scores(x)
    for count in (1, 2, 3, 7, 16, 33, 70):
        start = int(torch.randint(0, 71 - count, ()))
        assert torch.equal(bits_of(scores(x[start : start + count])), bits_of(whole[start : start + count])), count
    x, weight = torch.randn(9, num_in).to(dtype), torch.randn(num_out, num_in).to(stored)
    wanted = x.double() @ weight.double().t()
    assert (BatchInvariantScores(weight, RuleCache())(x) - wanted).norm() / wanted.norm() <= 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "heads", "num_out", "num_in"), [(5, 1, 37, 304), (9, 3, 24, 1040), (1, 2, 7, 2064)]
)
def test_native_products_are_the_same_on_every_instruction_set(
    num_rows: int, heads: int, num_out: int, num_in: int, dtype: torch.dtype
) -> None:
    loaded = load()
    assert isinstance(loaded, Native), loaded
    x, weight = _cancelling(heads * num_out, num_in, num_rows * heads, dtype)
    x, weight = x.view(num_rows, heads, num_in), weight.view(heads, num_out, num_in).bfloat16()
    for wanted in DTYPES:
        found = [bits_of(loaded.multiply(x, weight, wanted, name)) for name in loaded.instruction_sets]
        assert found[0].any()
        assert all(torch.equal(found[0], other) for other in found)


def test_native_products_are_summed_in_16_lanes_along_the_inputs_and_rounded_once(threads: int) -> None:
    loaded = load()
    assert isinstance(loaded, Native), loaded
    x, weight = torch.randn(5, 2, 1072), torch.randn(2, 26, 1072).bfloat16()
    lanes = torch.zeros(5, 2, 26, 16)
    for at in range(0, 1072, 16):  # float64 holds a product of these, and its rounded sum is that of a fused operation
        products = x[:, :, None, at : at + 16].double() * weight[:, :, at : at + 16].double()
        lanes = (lanes.double() + products).float()
    while lanes.shape[-1] > 1:
        lanes = lanes.view(5, 2, 26, 2, -1).sum(3)
    for name in loaded.instruction_sets:
        assert torch.equal(loaded.multiply(x, weight, torch.float32, name), lanes[..., 0])
        assert torch.equal(loaded.multiply(x, weight, torch.bfloat16, name), lanes[..., 0].bfloat16())


def test_native_bfloat16_keeps_nan_and_infinity() -> None:
    loaded = load()
    assert isinstance(loaded, Native), loaded
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.4e38])[:, None, None].repeat(1, 1, 16)
    weight = torch.zeros(1, 1, 16, dtype=torch.bfloat16)
    weight[..., 0] = 1
    found = loaded.multiply(x[..., :16] * weight.float(), weight, torch.bfloat16, loaded.instruction_sets[0]).flatten()
    assert torch.equal(found.isnan(), torch.tensor([True, True, True, False]))  # infinity times 0
    assert found[3] == float("inf")  # what bfloat16 rounds 3.4e38 to


def test_without_instructions_for_bf16_the_compiled_kernel_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    for instructions, native in ((None, True), ("amx_bf16", False)):
        monkeypatch.setattr(
            "expertfleet.kernels.batch_invariant_linear.bf16_instructions", lambda found=instructions: found
        )
        rules = [piece for _, _, piece in linear_rule(RuleCache(), 64, 32, torch.bfloat16).pieces]
        rules.append(heads_rule(RuleCache(), 2, 32, 16, torch.bfloat16))
        assert all((rule.form == "native") is native for rule in rules), rules
        assert all(rule.form != "native" for _, _, rule in linear_rule(RuleCache(), 64, 24, torch.bfloat16).pieces)
