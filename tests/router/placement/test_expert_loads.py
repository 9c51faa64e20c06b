import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertfleet.proto.errors import Code, FleetError
from expertfleet.router.placement.expert_loads import ExpertLoads, Load

HEADER = 12


def counted(now: float = 0.0, half_life_s: float = 60.0) -> ExpertLoads:
    loads = ExpertLoads(3, 8, half_life_s)
    loads.snapshot(now)
    return loads


def test_an_activation_is_a_dispatch_however_many_of_its_tokens_ask() -> None:
    loads = counted()
    for _ in range(5):
        loads.count(1, np.array([2, 2, 2, 7]))
    seen = loads.snapshot(1.0)
    assert seen.routes[1, 2] == pytest.approx(3 * seen.routes[1, 7])
    assert seen.activations[1, 2] == seen.activations[1, 7] == seen.routes[1, 7]
    assert np.count_nonzero(seen.routes) == np.count_nonzero(seen.activations) == 2


@pytest.mark.parametrize("half_life_s", [0.5, 60.0, 1e6])
@pytest.mark.parametrize("step_s", [0.1, 5.0, 300.0])
def test_a_steady_rate_is_found_whatever_the_half_life_and_however_often_one_looks(
    half_life_s: float, step_s: float
) -> None:
    loads = counted(100.0, half_life_s)
    for step in range(1, 9):
        for _ in range(20):
            loads.count(2, np.array([5]))
        seen = loads.snapshot(100.0 + step * step_s)
        assert seen.routes[2, 5] == pytest.approx(20 / step_s, rel=1e-5)


def test_what_was_asked_long_ago_has_faded_by_half_for_every_half_life() -> None:
    loads = counted(0.0, half_life_s=10.0)
    for _ in range(1000):
        loads.count(0, np.array([1]))
    before, after = loads.snapshot(200.0), loads.snapshot(230.0)
    assert after.routes[0, 1] == pytest.approx(before.routes[0, 1] / 8, rel=1e-5)


def test_nothing_counted_and_no_time_gone_by_are_no_load() -> None:
    assert not counted().snapshot(0.0).routes.any()
    assert not counted().snapshot(9.0).activations.any()


def test_a_clock_that_goes_back_changes_nothing() -> None:
    loads = counted(50.0)
    loads.count(0, np.array([1]))
    seen = loads.snapshot(60.0)
    assert np.array_equal(loads.snapshot(40.0).routes, seen.routes)


def test_an_expert_that_does_not_exist_is_no_load() -> None:
    with pytest.raises(ValueError, match="shape"):
        counted().count(0, np.array([8]))


@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.floats(1e-3, 1e6),
)
def test_bytes_keep_rates_to_three_digits(num_layers: int, num_experts: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rates = [(rng.lognormal(0, 3, (num_layers, num_experts)) * scale).astype(np.float32) for _ in range(2)]
    data = Load(*rates).to_bytes()
    assert len(data) == HEADER + 4 * num_layers * num_experts
    again = Load.from_bytes(data)
    for sent, read in zip(rates, (again.routes, again.activations), strict=True):
        assert read.dtype == np.float32
        assert np.allclose(read, sent, rtol=1e-3, atol=1e-7 * float(sent.max()))


def test_no_load_at_all_travels_too() -> None:
    nothing = np.zeros((2, 3), dtype=np.float32)
    assert not Load.from_bytes(Load(nothing, nothing).to_bytes()).routes.any()


def body(shape: tuple[int, int] = (1, 2), scales: tuple[float, float] = (1.0, 1.0), part: float = 0.5) -> bytes:
    return struct.pack("<HHff", *shape, *scales) + np.full(2 * math.prod(shape), part, dtype="<f2").tobytes()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "load: 0 bytes, its header alone has 12"),
        (body()[:-1], "load: 19 bytes, 1 layers × 2 experts need 20"),
        (body() + b"\0", "load: 21 bytes, 1 layers × 2 experts need 20"),
        (body((0, 5)), "load: 0 layers × 5 experts, must be 1 to 1048576 pairs"),
        (struct.pack("<HHff", 65535, 65535, 1, 1), "load: 65535 layers × 65535 experts, must be 1 to 1048576 pairs"),
        (body(scales=(math.nan, 1.0)), "load: nan per second, must be 0 to 1e\\+12"),
        (body(scales=(1.0, math.inf)), "load: inf per second, must be 0 to 1e\\+12"),
        (body(scales=(-1.0, 1.0)), "load: -1 per second, must be 0 to 1e\\+12"),
        (body(part=1.5), "load: parts of the largest rate must lie between 0 and 1"),
        (body(part=-0.5), "load: parts of the largest rate"),
        (body(part=math.nan), "load: parts of the largest rate"),
    ],
)
def test_bytes_that_nobody_wrote_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FleetError, match=message) as caught:
        Load.from_bytes(data)
    assert caught.value.code is Code.BAD_REQUEST


def reading(data: bytes) -> Load | Code:
    try:
        return Load.from_bytes(data)
    except FleetError as error:
        return error.code


@given(st.binary(max_size=64))
def test_any_bytes_are_a_load_or_a_bad_request(data: bytes) -> None:
    read = reading(data)
    if isinstance(read, Load):
        assert np.isfinite(read.routes).all()
        assert (read.activations >= 0).all()
    else:
        assert read is Code.BAD_REQUEST


def test_several_workers_loads_add_up() -> None:
    one = Load(np.full((2, 3), 1.5, dtype=np.float32), np.full((2, 3), 1.0, dtype=np.float32))
    merged = Load.merge([one, one, one])
    assert (merged.routes == 4.5).all()
    assert (merged.activations == 3.0).all()
    other = Load(np.zeros((2, 4), dtype=np.float32), np.zeros((2, 4), dtype=np.float32))
    with pytest.raises(FleetError, match=r"load: shapes \[\(2, 3\), \(2, 4\)\], must be one"):
        Load.merge([one, other])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 60.0), "num_layers: 0, must be at least 1"),
        ((3, 0, 60.0), "num_experts: 0, must be at least 1"),
        ((3, 8, 0.0), "half_life_s: 0.0, must be a finite number above 0"),
        ((3, 8, math.inf), "half_life_s: inf, must be"),
    ],
)
def test_an_impossible_size_names_value_and_limit(arguments: tuple[int, int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertLoads(*arguments)
