"""From a connection's bytes to a JSON object.

Knows nothing of what the object means. Whatever is not one plain JSON object within the size limit is a 4xx.
"""

import json
import re
from typing import Any, NoReturn

from starlette.requests import Request

from .errors import ApiError, bad_value

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    return decode(await _read(request, limit))


def decode(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise _malformed("a string holds half of a surrogate pair") from error
    except RecursionError as error:
        raise _malformed("nested too deeply") from error
    except ValueError as error:
        raise _malformed(str(error)) from error
    if not isinstance(value, dict):
        raise _malformed(f"a JSON object is needed, got {type(value).__name__}")
    return value


async def _read(request: Request, limit: int) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ApiError(415, f"content-encoding {encoding!r} is not supported; send the body as it is")
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise ApiError(413, f"the request body is larger than the limit of {limit} bytes", code="body_too_large")
        pieces.append(piece)
    return b"".join(pieces)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _malformed(why: str) -> ApiError:
    error = bad_value("body", f"malformed JSON: {why}", code="malformed_json")
    error.param = None
    return error
