import pytest
import torch

from expertfleet.kernels import int4
from expertfleet.kernels.expert_layer import ExpertShape, Projection
from expertfleet.kernels.grouped_gemm import grouped_gemm, grouped_gemm_reference
from expertfleet.kernels.row_rule import bits_of
from expertfleet.kernels.triton_blocks import block_list, block_list_reference
from expertfleet.kernels.triton_configs import ROWS, Config, Tile
from expertfleet.kernels.triton_experts import (
    INTERPRETED,
    ExpertTable,
    Schedule,
    grouped_experts,
    grouped_experts_reference,
)
from expertfleet.kernels.triton_layer import TritonLayer
from expertfleet.kernels.triton_layout import ExpertLayout, lay_out

# Large tiles, because the interpreter's time goes by programs. 128 outputs do not divide these shapes.
LARGE = Config(gate_up=dict.fromkeys(ROWS, Tile(128, 2, 1)), down=dict.fromkeys(ROWS, Tile(128, 2, 1)))
SMALL = Config(gate_up=dict.fromkeys(ROWS, Tile(32, 1, 2)), down=dict.fromkeys(ROWS, Tile(64, 1, 3)))
SCHEDULES: tuple[Schedule, ...] = ("routes", "blocks")


def _projection(num_out: int, num_in: int) -> Projection:
    scales = (torch.rand(num_out, num_in // 32) * 0.02 + 0.002).bfloat16()
    return int4.pack(torch.randint(0, 16, (num_out, num_in))), scales


def _experts(hidden: int, width: int, count: int) -> tuple[ExpertTable, list[torch.Tensor]]:
    layout = ExpertLayout(ExpertShape(hidden, width, 32))
    blocks = [
        lay_out(layout, _projection(width, hidden), _projection(width, hidden), _projection(hidden, width))
        for _ in range(count)
    ]
    return ExpertTable(layout, torch.tensor([block.data_ptr() for block in blocks])), blocks


def _ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_this_is_the_interpreter() -> None:
    assert INTERPRETED


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("hidden", "width"), [(128, 32), (160, 96)])
def test_ragged_routes_match_float64(schedule: Schedule, hidden: int, width: int) -> None:
    table, blocks = _experts(hidden, width, 4)
    x = torch.randn(5, hidden).bfloat16()
    rows = torch.randint(0, 5, (11,), dtype=torch.int32)
    slots = _ids(0, 3, 1)[torch.randint(0, 3, (11,))]  # slot 2 stays empty
    found = grouped_experts(x, rows, slots, table, schedule, LARGE)
    wanted = grouped_experts_reference(x, rows, slots, table.layout, blocks)
    assert found.dtype is torch.bfloat16
    assert float((found.double() - wanted).norm() / wanted.norm()) <= 4e-3


def test_a_row_s_bits_never_depend_on_the_others_the_schedule_or_the_tile() -> None:
    table, _ = _experts(128, 64, 3)
    x = torch.randn(256, 128).bfloat16()
    every = torch.arange(256, dtype=torch.int32)
    whole = bits_of(grouped_experts(x, every, torch.ones_like(every), table, "blocks", LARGE))
    for count in (1, 2, 3, 5, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 128, 255):  # blocks of 8, 16 and 32
        rows = torch.randperm(256)[:count].int()
        found = grouped_experts(x, rows, torch.ones_like(rows), table, "blocks", LARGE)
        assert torch.equal(bits_of(found), whole[rows.long()]), count
    mixed = torch.randint(0, 3, (24,), dtype=torch.int32)
    for schedule, config in (("routes", LARGE), ("blocks", SMALL)):
        rows = every[:24]
        found = grouped_experts(x, rows, mixed, table, schedule, config)  # type: ignore[arg-type]
        assert torch.equal(bits_of(found)[mixed == 1], whole[:24][mixed == 1]), schedule


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_route_no_route_and_a_route_to_nowhere(schedule: Schedule) -> None:
    table, blocks = _experts(64, 32, 2)
    x = torch.randn(3, 64).bfloat16()
    assert grouped_experts(x, _ids(), _ids(), table, schedule, LARGE).shape == (0, 64)
    found = grouped_experts(x, _ids(2), _ids(1), table, schedule, LARGE)
    wanted = grouped_experts_reference(x, _ids(2), _ids(1), table.layout, blocks)
    assert torch.allclose(found.double(), wanted, rtol=0.02, atol=float(wanted.abs().max()) * 0.02)
    both = grouped_experts(x, _ids(2, 2, 0), _ids(1, -1, -1), table, schedule, LARGE)
    assert torch.equal(bits_of(both[:1]), bits_of(found))
    assert both[1:].isnan().all()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy says aloud what a device does silently
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e3])
def test_extreme_scales_and_code_minus_eight(scale: float) -> None:
    layout = ExpertLayout(ExpertShape(64, 32, 32))
    gate, up, down = (
        (torch.zeros(num_out, num_in // 8, dtype=torch.int32), torch.full((num_out, num_in // 32), scale).bfloat16())
        for num_out, num_in in ((32, 64), (32, 64), (64, 32))
    )
    block = lay_out(layout, gate, up, down)
    x = torch.randn(2, 64).bfloat16()
    table = ExpertTable(layout, torch.tensor([block.data_ptr()]))
    found = grouped_experts(x, _ids(0, 1), _ids(0, 0), table, "blocks", LARGE)
    wanted = grouped_experts_reference(x, _ids(0, 1), _ids(0, 0), layout, [block])
    assert found.isfinite().all()
    if scale > 1e-30:  # the products of the smallest scales vanish in float32
        assert torch.allclose(found.double(), wanted, rtol=0.05, atol=float(wanted.abs().max()) * 0.02)


@pytest.mark.parametrize("block_r", ROWS)
def test_the_block_list_equals_torch_s(block_r: int) -> None:
    for num_routes, num_slots in ((1, 1), (40, 1), (70, 5), (300, 40)):
        slots = torch.randint(-1, num_slots, (num_routes,), dtype=torch.int32)
        found, wanted = block_list(slots, num_slots, block_r), block_list_reference(slots, num_slots, block_r)
        for name in ("order", "slots", "starts", "counts"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), (name, num_routes)
        places = torch.cat([torch.arange(s, s + n) for s, n in zip(found.starts, found.counts, strict=True)])
        assert torch.equal(places, torch.arange(num_routes))
        owners = found.slots.repeat_interleave(found.counts)
        assert torch.equal(slots[found.order.long()], owners)


def test_a_layer_applies_what_it_was_given() -> None:
    layer = TritonLayer(ExpertShape(64, 32, 32), "cpu")
    experts = {e: (_projection(32, 64), _projection(32, 64), _projection(64, 32)) for e in (7, 300)}
    for expert_id, three in experts.items():
        layer.add(expert_id, *three)
    x, rows, routed = torch.randn(2, 64).bfloat16(), torch.tensor([1, 0, 1]), torch.tensor([300, 7, 7])
    found = grouped_gemm(x, rows, routed, layer)
    wanted = grouped_gemm_reference(x, rows, routed, experts)
    assert float((found.double() - wanted).norm() / wanted.norm()) <= 8e-3  # short sums scatter
    assert layer.bytes_held == 2 * layer.table.layout.nbytes
    assert torch.equal(bits_of(found[2:]), bits_of(grouped_gemm(x, rows[2:], routed[2:], layer)))


def test_what_is_not_ours_to_convert_is_refused() -> None:
    table, _ = _experts(64, 32, 1)
    x = torch.randn(2, 64)
    with pytest.raises(AssertionError, match=r"x is torch\.float32, wanted bfloat16"):
        grouped_experts(x, _ids(0), _ids(0), table)
    with pytest.raises(AssertionError, match="the layer has 64 inputs"):
        grouped_experts(x[:, :32].bfloat16(), _ids(0), _ids(0), table)
    with pytest.raises(AssertionError, match=r"route_rows is torch\.int64, wanted int32"):
        grouped_experts(x.bfloat16(), _ids(0).long(), _ids(0), table)
