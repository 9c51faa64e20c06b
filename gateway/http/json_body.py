"""From a connection's bytes to a JSON object.

Knows nothing of what the object means. Whatever is not one plain JSON object within the size limit is a 4xx.
"""

from typing import Any

from starlette.requests import Request

from ...proto.errors import shown
from .errors import ApiError
from .json_text import Fault, parse


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    return decode(await _read(request, limit))


def decode(raw: bytes) -> dict[str, Any]:
    try:
        value = parse(raw)
    except Fault as error:
        raise _malformed(str(error), error.path) from error
    if not isinstance(value, dict):
        raise _malformed(f"a JSON object is needed, got {type(value).__name__}")
    return value


async def _read(request: Request, limit: int) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"content-encoding: {shown(encoding)} is not supported; send the body as it is"
        raise ApiError("unsupported_media_type", message, param="content-encoding")
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise ApiError("body_too_large", f"the request body is larger than the limit of {limit} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _malformed(why: str, path: str = "") -> ApiError:
    return ApiError("malformed_json", f"{path[:200] or 'body'}: malformed JSON: {why}", param=path[:200] or None)
