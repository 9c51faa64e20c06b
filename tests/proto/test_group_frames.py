"""Announcements of rows that travel beside the lane: they survive the round trip, and nothing malformed gets through."""

import dataclasses
import random

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expertfleet.proto import codec, group_frames
from expertfleet.proto.errors import Code, FleetError
from expertfleet.proto.frame_prefix import PAIRS_SINCE, PREFIX, Kind

LIMIT = 1 << 20


def make_dispatch_pg(rng: random.Random, **changes: object) -> group_frames.DispatchPg:
    R, N = rng.randint(1, 9), rng.randint(1, 30)
    paired = group_frames.DispatchPg(
        frame_id=rng.getrandbits(64),
        fingerprint=rng.randbytes(8),
        epoch=(rng.getrandbits(60), rng.getrandbits(40)),
        layer=rng.randrange(61),
        priority=rng.randrange(256),
        timeout_us=rng.getrandbits(32),
        dtype=rng.choice((torch.bfloat16, torch.float32)),
        num_rows=R,
        hidden=rng.randint(1, 9000),
        generation=rng.getrandbits(32),
        number=rng.getrandbits(32),
        route_rows=np.array([rng.randrange(R) for _ in range(N)], dtype=np.int32).data,
        route_experts=np.array([rng.randrange(384) for _ in range(N)], dtype=np.int32).data,
    )
    return dataclasses.replace(paired, **changes)


def make_result(**changes: object) -> group_frames.ResultPg:
    result = group_frames.ResultPg(
        frame_id=7, first_route=2, num_routes=9, dtype=torch.bfloat16, count=5, hidden=64, generation=3, number=8
    )
    return dataclasses.replace(result, **changes)


def encode_all(rng: random.Random) -> list[bytes]:
    return [
        group_frames.encode_group_offer(group_frames.GroupOffer(3, "10.0.0.7:41000"), PAIRS_SINCE),
        group_frames.encode_dispatch_pg(make_dispatch_pg(rng), PAIRS_SINCE),
        group_frames.encode_result_pg(make_result(), PAIRS_SINCE),
        group_frames.encode_ack_pg(group_frames.AckPg(3, 8, True), PAIRS_SINCE),
    ]


def test_round_trips() -> None:
    paired = make_dispatch_pg(random.Random())
    decoded = codec.decode(group_frames.encode_dispatch_pg(paired, PAIRS_SINCE), LIMIT)
    assert isinstance(decoded, group_frames.DispatchPg)
    for field in dataclasses.fields(paired):
        assert np.array_equal(getattr(decoded, field.name), getattr(paired, field.name)), field.name
    for frame, encode in (
        (make_result(), group_frames.encode_result_pg),
        (group_frames.AckPg(5, 1 << 31, True), group_frames.encode_ack_pg),
        (group_frames.AckPg(5, 0, False), group_frames.encode_ack_pg),
        (group_frames.GroupOffer(9, "[fe80::1]:41000"), group_frames.encode_group_offer),
    ):
        assert codec.decode(encode(frame, PAIRS_SINCE), LIMIT) == frame  # type: ignore[operator]


def test_the_version_before_has_none_of_these_frames() -> None:
    for frame in encode_all(random.Random()):
        older = bytearray(frame)
        older[4] = PAIRS_SINCE - 1
        with pytest.raises(FleetError, match="unknown kind") as caught:
            codec.decode(bytes(older), LIMIT, version=PAIRS_SINCE - 1)
        assert caught.value.code is Code.BAD_FRAME
    with pytest.raises(AssertionError, match="wire version 1 has no ACK_PG frames"):
        group_frames.encode_ack_pg(group_frames.AckPg(1, 0, False), 1)


def test_a_greeting_of_the_version_before_names_no_transport() -> None:
    hello = codec.Hello("a", "b", "c", 1, pair="nccl")
    assert codec.decode(codec.encode_hello(hello), LIMIT) == hello
    older = codec.encode_hello(dataclasses.replace(hello, oldest=1, newest=PAIRS_SINCE - 1))
    assert "pair" not in msgpack.unpackb(older[PREFIX.size :])
    decoded = codec.decode(older, LIMIT)
    assert isinstance(decoded, codec.Hello)
    assert decoded.pair == "none"


def test_a_transfer_beyond_the_frame_limit_is_refused_before_memory_is_taken() -> None:
    for frame in (
        group_frames.encode_dispatch_pg(make_dispatch_pg(random.Random(), num_rows=1 << 30), PAIRS_SINCE),
        group_frames.encode_result_pg(make_result(hidden=1 << 20), PAIRS_SINCE),
    ):
        with pytest.raises(FleetError, match=f"bytes; the limit is {LIMIT}"):
            codec.decode(frame, LIMIT)


@pytest.mark.parametrize("address", ["", "host", ":1", "host:", "host:0", "host:65536", "host:x", "host:²", "h" * 300])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(FleetError):
        codec.decode(group_frames.encode_group_offer(group_frames.GroupOffer(1, address), PAIRS_SINCE), LIMIT)


def test_every_truncation_is_refused() -> None:
    _, *frames = encode_all(random.Random())  # an address ends where its frame does
    for frame in frames:
        for size in range(len(frame)):
            with pytest.raises(FleetError):
                codec.decode(frame[:size], LIMIT)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8))
def test_mutated_frames_decode_or_are_refused(seed: int, flips: list[tuple[int, int]]) -> None:
    rng = random.Random(seed)
    frame = bytearray(rng.choice(encode_all(rng)))
    for position, value in flips:
        frame[position % len(frame)] = value
    try:
        decoded = codec.decode(bytes(frame), LIMIT)
    except FleetError:
        return
    if isinstance(decoded, group_frames.DispatchPg):
        assert max(decoded.route_rows) < decoded.num_rows
        assert decoded.num_rows * decoded.hidden * decoded.dtype.itemsize <= LIMIT
    if isinstance(decoded, group_frames.ResultPg):
        assert decoded.first_route + decoded.count <= decoded.num_routes
    if isinstance(decoded, group_frames.AckPg):
        assert frame[5] == Kind.ACK_PG
