"""Every error a client can see, in OpenAI's shape.

Knows nothing of how a request failed inside: a worker's typed error comes as a ``FleetError`` and is mapped here.
"""

from typing import Any

from ..proto.errors import Code, FleetError

_BY_CODE = {
    Code.CONTEXT_LENGTH: (400, "invalid_request_error", "context_length_exceeded"),
    Code.BAD_REQUEST: (400, "invalid_request_error", "invalid_value"),
    Code.UNSUPPORTED: (400, "invalid_request_error", "unsupported_value"),
    Code.OVERLOADED: (429, "rate_limit_error", "overloaded"),
    Code.NO_REPLICA: (503, "service_unavailable_error", "no_replica"),
    Code.NOT_READY: (503, "service_unavailable_error", "not_ready"),
    Code.DRAINING: (503, "service_unavailable_error", "draining"),
    Code.LANE_LOST: (503, "service_unavailable_error", "worker_lost"),
    Code.WRONG_NUMERICS: (503, "service_unavailable_error", "wrong_numerics"),
    Code.DEADLINE: (504, "timeout_error", "deadline_exceeded"),
    Code.EXPIRED: (504, "timeout_error", "deadline_exceeded"),
}
RETRYABLE_STATUS = frozenset({429, 503})


class ApiError(Exception):
    """One failed request: an HTTP status and the object under ``error``."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def bad_value(param: str, message: str, *, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field; ``message`` says the value and what is allowed."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    return bad_value(param, message, code="unsupported_value")


def from_fleet(error: FleetError) -> ApiError:
    status, kind, code = _BY_CODE.get(error.code, (500, "server_error", error.code.name.lower()))
    return ApiError(status, str(error), kind=kind, code=code)


def shutting_down() -> ApiError:
    return ApiError(
        503, "this gateway is shutting down; send the request again", kind="service_unavailable_error", code="draining"
    )


def shown(value: object, limit: int = 80) -> str:
    """A client's value for an error message, shortened."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
