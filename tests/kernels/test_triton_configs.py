import pytest

from expertfleet.kernels.triton_configs import DEFAULT, ROWS, Config, Tile, config_for, rows_a_block


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_warps": 4}, "num_warps: 4, wanted 1 or 2"),
        ({"block_out": 16}, "block_out: 16, wanted a power of two of at least 32"),
        ({"block_out": 96}, "block_out: 96, wanted a power of two"),
        ({"num_stages": 0}, "num_stages: 0, wanted at least 1"),
    ],
)
def test_a_tile_that_could_change_bits_or_not_compile_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tile(**({"block_out": 64, "num_warps": 2, "num_stages": 3} | change))


def test_a_config_has_a_tile_for_every_block() -> None:
    with pytest.raises(ValueError, match="down: tiles for"):
        Config(down={8: Tile(32, 1, 2)})


def test_an_unknown_device_gets_the_default() -> None:
    assert config_for("a device nobody tuned") is DEFAULT


def test_blocks_grow_with_the_routes_of_a_slot() -> None:
    sizes = [rows_a_block(num_routes, 24) for num_routes in (1, 128, 144, 288, 10_000)]
    assert sizes == [8, 8, 8, 16, ROWS[-1]]
