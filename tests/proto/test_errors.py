"""A typed error keeps its type across a gRPC status."""

import grpc
import pytest

from expertfleet.proto.errors import Code, FleetError, from_details


@pytest.mark.parametrize("code", list(Code))
def test_every_code_survives_its_status(code: Code) -> None:
    error = FleetError(code, "layer 3: something: odd")
    back = from_details(error.status, error.details)
    assert (back.code, str(back)) == (code, "layer 3: something: odd")


def test_foreign_statuses_become_lost_or_internal() -> None:
    assert from_details(grpc.StatusCode.UNAVAILABLE, "connection refused").code is Code.LANE_LOST
    assert from_details(grpc.StatusCode.INTERNAL, "boom: bang").code is Code.INTERNAL
    assert from_details(grpc.StatusCode.RESOURCE_EXHAUSTED, "too big").code is Code.FRAME_TOO_LARGE
