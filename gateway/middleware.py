"""The outermost middleware of both ports: request ids, API keys, refusals while draining, counting, and the last resort.

Knows nothing of routes' contents. Whatever goes wrong inside, the client gets an answer in OpenAI's shape.
"""

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .http.errors import ApiError, shutting_down
from .service import Service

_log = logging.getLogger(__name__)
_GIVEN_ID = re.compile(r"[!-~]{1,128}")
_HANDLERS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/health",
    "/ready",
    "/metrics",
    "/status",
    "/scale",
)


class GatewayMiddleware:
    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._service, scope, send)
        is_api = scope["path"].startswith("/v1/")
        try:
            if scope["path"] == "/scale":
                self._check_key(Headers(scope=scope))
            if is_api:
                self._admit(Headers(scope=scope))
                with self._service.drain.request():
                    await self._app(scope, receive, exchange.send)
            else:
                await self._app(scope, receive, exchange.send)
        except ApiError as error:
            await error_response(error, self._service)(scope, receive, exchange.send)
        except Exception:  # noqa: BLE001 - the last resort: the client gets an answer and the gateway lives
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not exchange.started:
                failure = ApiError("internal", "internal error")
                await error_response(failure, self._service)(scope, receive, exchange.send)

    def _admit(self, headers: Headers) -> None:
        if self._service.drain.draining:
            raise shutting_down()
        self._check_key(headers)

    def _check_key(self, headers: Headers) -> None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        keys = self._service.keys
        if keys.any and not (scheme.lower() == "bearer" and keys.accepts(key.strip())):
            raise ApiError("invalid_api_key", "a valid API key is needed, as: Authorization: Bearer KEY")


class _Exchange:
    """One request's id and the start of its response."""

    def __init__(self, service: Service, scope: Scope, send: Send) -> None:
        self.started = False
        self._service = service
        self._scope = scope
        self._send = send
        given = Headers(scope=scope).get("x-request-id", "")
        self._state = scope.setdefault("state", {})
        self._state["has_own_id"] = bool(_GIVEN_ID.fullmatch(given))
        self._state["request_id"] = given if self._state["has_own_id"] else uuid.uuid4().hex

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._state["request_id"]
            if self._service.drain.draining:
                headers["connection"] = "close"
            self._count(message["status"])
        await self._send(message)

    def _count(self, status: int) -> None:
        path = self._scope["path"]
        handler = next((known for known in _HANDLERS if path == known or path.startswith(known + "/")), "other")
        method = self._scope["method"] if self._scope["method"] in ("GET", "POST") else "other"
        self._service.metrics.http.labels(method, handler, str(status)).inc()


def error_response(error: ApiError, service: Service) -> JSONResponse:
    headers = {}
    if error.is_passing:
        headers["retry-after"] = str(service.retry_after.seconds(error))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.body, status_code=error.status, headers=headers)
