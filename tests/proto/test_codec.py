"""Frames survive the round trip, and nothing malformed gets through."""

import dataclasses
import random

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertfleet.proto import codec
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.frame_prefix import WIRE_VERSION, Kind, prefix
from expertfleet.proto.rows import Rows

LIMIT = 1 << 20


def make_dispatch(rng: random.Random, dtype: torch.dtype) -> tuple[bytes, dict]:
    R, H, N = rng.randint(1, 9), 2 * rng.randint(1, 40), rng.randint(1, 30)
    rows = Rows.of(torch.randn(R, H).to(dtype))
    route_rows = np.array([rng.randrange(R) for _ in range(N)], dtype=np.int32).data
    route_experts = np.array([rng.randrange(384) for _ in range(N)], dtype=np.int32).data
    fields = {
        "frame_id": rng.getrandbits(64),
        "fingerprint": rng.randbytes(8),
        "epoch": (rng.getrandbits(60), rng.getrandbits(40)),
        "layer": rng.randrange(61),
        "priority": rng.randrange(256),
        "timeout_us": rng.getrandbits(32),
        "rows": rows,
        "route_rows": route_rows,
        "route_experts": route_experts,
    }
    return codec.encode_dispatch(codec.Dispatch(**fields)), fields


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dispatch_round_trip(dtype: torch.dtype) -> None:
    frame, fields = make_dispatch(random.Random(), dtype)
    decoded = codec.decode(frame, LIMIT)
    assert isinstance(decoded, codec.Dispatch)
    for name in ("frame_id", "fingerprint", "epoch", "layer", "priority", "timeout_us"):
        assert getattr(decoded, name) == fields[name], name
    assert decoded.rows.dtype == dtype
    assert torch.equal(decoded.rows.tensor, fields["rows"].tensor)
    assert decoded.route_rows.tolist() == fields["route_rows"].tolist()
    assert decoded.route_experts.tolist() == fields["route_experts"].tolist()


def make_dispatch_shm(rng: random.Random) -> codec.DispatchShm:
    R, N = rng.randint(1, 9), rng.randint(1, 30)
    return codec.DispatchShm(
        frame_id=rng.getrandbits(64),
        fingerprint=rng.randbytes(8),
        epoch=(rng.getrandbits(60), rng.getrandbits(40)),
        layer=rng.randrange(61),
        priority=rng.randrange(256),
        timeout_us=rng.getrandbits(32),
        dtype=rng.choice((torch.bfloat16, torch.float32)),
        num_rows=R,
        hidden=rng.randint(1, 9000),
        rows_at=rng.getrandbits(40),
        results_at=rng.getrandbits(40),
        route_rows=np.array([rng.randrange(R) for _ in range(N)], dtype=np.int32).data,
        route_experts=np.array([rng.randrange(384) for _ in range(N)], dtype=np.int32).data,
    )


def test_placed_and_filled_round_trip() -> None:
    placed = make_dispatch_shm(random.Random())
    decoded = codec.decode(codec.encode_dispatch_shm(placed), LIMIT)
    assert isinstance(decoded, codec.DispatchShm)
    for field in dataclasses.fields(codec.DispatchShm):
        assert np.array_equal(getattr(decoded, field.name), getattr(placed, field.name)), field.name
    filled = codec.ResultShm(7, 2, 3, 5)
    assert codec.decode(codec.encode_result_shm(filled), LIMIT) == filled
    with pytest.raises(FleetError, match="routes 2 to 6 of 5"):
        codec.decode(codec.encode_result_shm(codec.ResultShm(7, 2, 4, 5)), LIMIT)


def test_result_error_cancel_and_hello_round_trip() -> None:
    rows = torch.randn(3, 8)
    result = codec.decode(codec.encode_result(7, 2, 5, Rows.of(rows)), LIMIT)
    assert isinstance(result, codec.Result)
    assert (result.frame_id, result.first_route, result.num_routes) == (7, 2, 5)
    assert torch.equal(result.rows.tensor, rows)
    error = codec.decode(codec.encode_error(9, FleetError(Code.NOT_HELD, "é" * 4000)), LIMIT)
    assert isinstance(error, codec.Error)
    assert (error.frame_id, error.code) == (9, Code.NOT_HELD)
    assert error.message == "é" * 512
    assert codec.decode(codec.encode_cancel(11), LIMIT) == codec.Cancel(11)
    hello = codec.Hello("expert-3", "ab" * 32, "bfloat16", 1 << 26)
    assert codec.decode(codec.encode_hello(hello), LIMIT) == hello


def test_oversized_frame_names_both_sizes() -> None:
    frame, _ = make_dispatch(random.Random(), torch.float32)
    with pytest.raises(FleetError, match=f"{len(frame)} bytes; the limit is 40") as caught:
        codec.decode(frame, 40)
    assert caught.value.code is Code.FRAME_TOO_LARGE


def test_another_wire_version_is_named() -> None:
    frame = bytearray(codec.encode_cancel(1))
    frame[4] = 9
    with pytest.raises(FleetError, match="wire version 9") as caught:
        codec.decode(bytes(frame), LIMIT)
    assert caught.value.code is Code.WIRE_VERSION


def test_an_error_is_read_whatever_version_it_bears() -> None:
    frame = codec.encode_error(0, FleetError(Code.WIRE_VERSION, "no"), version=9)
    assert codec.decode(frame, LIMIT, version=4) == codec.Error(0, Code.WIRE_VERSION, "no")


def test_frames_of_a_lane_bear_its_version_and_no_other_is_taken() -> None:
    rng = random.Random()
    frames = [
        codec.encode_dispatch(codec.Dispatch(**make_dispatch(rng, torch.float32)[1]), 7),
        codec.encode_dispatch_shm(make_dispatch_shm(rng), 7),
        codec.encode_result(7, 2, 5, Rows.of(torch.randn(3, 8)), 7),
        codec.encode_cancel(1, 7),
        codec.encode_result_shm(codec.ResultShm(7, 2, 3, 5), 7),
    ]
    for frame in frames:
        codec.decode(frame, LIMIT, version=7)
        for other in (6, 8):
            with pytest.raises(FleetError, match=f"wire version 7; this lane's is {other}") as caught:
                codec.decode(frame, LIMIT, version=other)
            assert caught.value.code is Code.WIRE_VERSION


def make_hello(oldest: int, newest: int) -> codec.Hello:
    return codec.Hello("expert-3", "ab" * 32, "bfloat16", 1 << 26, oldest=oldest, newest=newest)


@pytest.mark.parametrize(
    ("own", "other", "version"),
    [((1, 1), (1, 1), 1), ((2, 3), (1, 2), 2), ((1, 2), (2, 3), 2), ((2, 3), (2, 3), 3), ((1, 2), (1, 1), 1)],
)
def test_two_ends_speak_the_newest_version_that_both_know(
    own: tuple[int, int], other: tuple[int, int], version: int
) -> None:
    assert make_hello(*own).version_with(make_hello(*other)) == version


@pytest.mark.parametrize(("other", "named"), [((3, 4), "3 to 4"), ((3, 3), "3"), ((9, 10), "9 to 10")])
def test_ends_without_a_common_version_are_named(other: tuple[int, int], named: str) -> None:
    for mine, theirs, message in (
        ((1, 2), other, f"wire version {named}; this end speaks 1 to 2"),
        (other, (1, 2), f"wire version 1 to 2; this end speaks {named}"),
    ):
        with pytest.raises(FleetError, match=f"^{message}$") as caught:
            make_hello(*mine).version_with(make_hello(*theirs))
        assert caught.value.code is Code.WIRE_VERSION


def test_a_newer_greeting_may_say_more_and_an_equal_one_may_not() -> None:
    body = msgpack.packb({"seat": "a", "fingerprint": "b", "dtype": "c", "max_frame_bytes": 1, "oldest": 1, "odd": 5})
    newer = prefix(WIRE_VERSION + 1, Kind.HELLO, 0) + body
    assert codec.decode(newer, LIMIT) == codec.Hello("a", "b", "c", 1, 1, WIRE_VERSION + 1)
    with pytest.raises(FleetError, match="unreadable greeting"):
        codec.decode(prefix(WIRE_VERSION, Kind.HELLO, 0) + body, LIMIT)


@pytest.mark.parametrize("oldest", [0, -1, 200, True, "1", None])
def test_a_greeting_of_an_impossible_version_is_malformed(oldest: object) -> None:
    fields = {"seat": "a", "fingerprint": "b", "dtype": "c", "max_frame_bytes": 1, "oldest": oldest}
    with pytest.raises(FleetError) as caught:
        codec.decode(prefix(WIRE_VERSION, Kind.HELLO, 0) + msgpack.packb(fields), LIMIT)
    assert caught.value.code is Code.BAD_FRAME


def test_every_truncation_is_refused() -> None:
    placed = codec.encode_dispatch_shm(make_dispatch_shm(random.Random()))
    for frame in (make_dispatch(random.Random(), torch.bfloat16)[0], placed):
        for size in range(len(frame)):
            with pytest.raises(FleetError):
                codec.decode(frame[:size], LIMIT)


def test_a_route_to_a_row_that_is_not_there_is_refused() -> None:
    rows = Rows.of(torch.zeros(2, 4))
    for bad in (2, -1):
        routes = np.array([0, bad], dtype=np.int32).data, np.zeros(2, dtype=np.int32).data
        frame = codec.encode_dispatch(codec.Dispatch(1, b"\0" * 8, (1, 1), 1, 0, 1, rows, *routes))
        with pytest.raises(FleetError, match=f"row {bad} of 2"):
            codec.decode(frame, LIMIT)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8))
def test_mutated_frames_decode_or_are_refused(seed: int, flips: list[tuple[int, int]]) -> None:
    rng = random.Random(seed)
    placed = codec.encode_dispatch_shm(make_dispatch_shm(rng))
    frame = bytearray(rng.choice((make_dispatch(rng, torch.bfloat16)[0], placed)))
    for position, value in flips:
        frame[position % len(frame)] = value
    try:
        decoded = codec.decode(bytes(frame), LIMIT)
    except FleetError:
        return
    if isinstance(decoded, codec.Dispatch):
        assert max(decoded.route_rows) < decoded.rows.count
        assert decoded.rows.tensor.shape == (decoded.rows.count, decoded.rows.width)
    if isinstance(decoded, codec.DispatchShm):
        assert max(decoded.route_rows) < decoded.num_rows


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_greetings_never_crash(body: bytes) -> None:
    prefix = codec.encode_hello(codec.Hello("a", "b", "c", 1))[:16]
    try:
        codec.decode(prefix + body, LIMIT)
    except FleetError as error:
        assert error.code is Code.BAD_FRAME  # noqa: PT017
