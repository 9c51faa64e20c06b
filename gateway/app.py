"""The routes of the API port.

Knows nothing of how a request is answered (``service.py``) or refused before it gets here (``middleware.py``).
"""

from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .http.connection import ClientGone
from .http.errors import ApiError
from .middleware import GatewayMiddleware, error_response
from .service import Service

_ROUTING_ERRORS = {404: ("unknown path", "not_found"), 405: ("wrong method", "method_not_allowed")}


def build_app(service: Service) -> FastAPI:
    app = new_app(service)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await service.chat(request)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await service.complete(request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_card(name, service) for name in service.model.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return _model_card(name, service)

    return app


def new_app(service: Service) -> FastAPI:
    """What both ports share: health, readiness, and errors in one shape."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(GatewayMiddleware, service=service)

    @app.exception_handler(HTTPException)
    async def routing_error(request: Request, error: HTTPException) -> Response:
        what, code = _ROUTING_ERRORS[error.status_code]
        message = f"{what}: {request.method} {request.url.path[:200]}"
        return error_response(ApiError(code, message), service)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return error_response(error, service)

    @app.exception_handler(ClientGone)
    async def client_gone(_request: Request, _error: ClientGone) -> Response:
        return Response(status_code=499)

    @app.get("/health")
    async def health(request: Request) -> dict[str, Any]:
        return {"status": "alive", "admin": service.admin_url(request.url.hostname)}

    @app.get("/ready")
    async def ready(request: Request) -> Response:
        missing = await service.fleet.missing()
        body = {"ready": not missing, "missing": missing or None, "admin": service.admin_url(request.url.hostname)}
        return JSONResponse(body, status_code=503 if missing else 200)

    return app


def _model_card(name: str, service: Service) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "expertfleet",
        "root": str(service.config.model),
        "parent": None,
        "max_model_len": service.model.max_model_len,
    }
