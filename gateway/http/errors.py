"""Every error a client can see, in OpenAI's shape.

Knows nothing of how a request failed inside: a worker's typed error comes as a ``FleetError`` and is mapped here. An error
has one of the codes in ``ERRORS``, which docs/serving.md explains one by one.
"""

from collections.abc import Mapping
from typing import Any

from ...proto.errors import Code, FleetError

OVERLOADED = "overloaded"
_BY_CODE = {
    Code.CONTEXT_LENGTH: (400, "invalid_request_error", "context_length_exceeded"),
    Code.BAD_REQUEST: (400, "invalid_request_error", "invalid_value"),
    Code.UNSUPPORTED: (400, "invalid_request_error", "unsupported_value"),
    Code.OVERLOADED: (503, "service_unavailable_error", OVERLOADED),
    Code.NO_REPLICA: (503, "service_unavailable_error", "no_replica"),
    Code.NOT_READY: (503, "service_unavailable_error", "not_ready"),
    Code.DRAINING: (503, "service_unavailable_error", "draining"),
    Code.LANE_LOST: (503, "service_unavailable_error", "worker_lost"),
    Code.WRONG_NUMERICS: (503, "service_unavailable_error", "wrong_numerics"),
    Code.DEADLINE: (504, "timeout_error", "deadline_exceeded"),
    Code.EXPIRED: (504, "timeout_error", "deadline_exceeded"),
    Code.NON_FINITE: (500, "server_error", "non_finite"),
    Code.WORKER_DEATHS: (500, "server_error", "worker_deaths"),
}
# Every other one says that the fleet's own processes do not fit each other, which is no client's to mend.
_INTERNAL = (500, "server_error", "internal")
# What fails in the gateway itself.
_OWN = {
    "invalid_value": (400, "invalid_request_error"),
    "unsupported_value": (400, "invalid_request_error"),
    "missing_required_parameter": (400, "invalid_request_error"),
    "unknown_parameter": (400, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "malformed_json": (400, "invalid_request_error"),
    "invalid_api_key": (401, "authentication_error"),
    "no_api_key": (403, "permission_error"),
    "model_not_found": (404, "invalid_request_error"),
    "not_found": (404, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "body_too_large": (413, "invalid_request_error"),
    "unsupported_media_type": (415, "invalid_request_error"),
}
# Code → HTTP status and type.
ERRORS: Mapping[str, tuple[int, str]] = _OWN | {
    name: (status, kind) for status, kind, name in (*_BY_CODE.values(), _INTERNAL)
}


class ApiError(Exception):
    """One failed request: a code of ``ERRORS`` and the rest of the object under ``error``."""

    def __init__(self, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind = ERRORS[code]
        self.param = param
        self.code = code

    @property
    def is_passing(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status == 503

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def bad_value(param: str, message: str, *, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field; ``message`` says the value and what is allowed."""
    return ApiError(code, f"{param}: {message}", param=param)


def missing(param: str) -> ApiError:
    return bad_value(param, "this field is required", code="missing_required_parameter")


def unsupported(param: str, message: str) -> ApiError:
    return bad_value(param, message, code="unsupported_value")


def from_fleet(error: FleetError) -> ApiError:
    if error.code in _BY_CODE:
        return ApiError(_BY_CODE[error.code][2], str(error))
    return ApiError(_INTERNAL[2], str(error) if error.code is Code.INTERNAL else f"{error.code.name.lower()}: {error}")


def shutting_down() -> ApiError:
    return ApiError("draining", "this gateway is shutting down; send the request again")
