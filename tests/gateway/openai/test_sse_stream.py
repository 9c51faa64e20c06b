"""Streams on the wire: keep-alives, errors before and after the headers, clients that go away."""

import json
import time
from typing import Any

import openai
import pytest

from expertfleet.proto.errors import Code


def lines_of(rig: Any, **fields: Any) -> list[str]:
    response = rig.chat(stream=True, **fields)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    return [line for line in response.text.split("\n\n") if line]


def test_silence_is_filled_with_comments(rig: Any) -> None:
    rig.says("a b<|im_end|>", wait_s=0.4)
    lines = lines_of(rig)
    assert sum(line == ": keep-alive" for line in lines) >= 4
    assert lines[-1] == "data: [DONE]"


def test_the_role_comes_before_a_slow_first_token(rig: Any) -> None:
    rig.worker.admits = True
    rig.says("a<|im_end|>", wait_s=1.0)
    started = time.monotonic()
    with rig.client.stream("POST", "/v1/chat/completions", json=_body(stream=True)) as response:
        first = next(response.iter_lines())
        assert time.monotonic() - started < 0.8
        assert json.loads(first[6:])["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.BAD_REQUEST, 400),
        (Code.CONTEXT_LENGTH, 400),
        (Code.OVERLOADED, 503),
        (Code.NO_REPLICA, 503),
        (Code.NOT_READY, 503),
        (Code.DRAINING, 503),
        (Code.LANE_LOST, 503),
        (Code.DEADLINE, 504),
        (Code.INTERNAL, 500),
        (Code.NON_FINITE, 500),
        (Code.WRONG_DTYPE, 500),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_error_before_the_first_token_is_a_status(
    rig: Any, scripts: Any, code: Code, status: int, stream: bool
) -> None:
    rig.worker.script = scripts.fail(code)
    response = rig.chat(stream=stream)
    assert response.status_code == status
    assert "scripted" in response.json()["error"]["message"]
    assert ("retry-after" in response.headers) == (status == 503)
    assert len(rig.worker.requests) == 1


def test_an_error_in_the_middle_is_the_last_frame(rig: Any, scripts: Any) -> None:
    rig.worker.script = scripts.fail(Code.NO_REPLICA, "no replica of expert 7", after=rig.text.ids("some text"))
    lines = lines_of(rig)
    assert json.loads(lines[-1][6:])["error"]["code"] == "no_replica"
    assert "[DONE]" not in lines[-1]
    with (
        openai.OpenAI(base_url=f"{rig.gateway.url}/v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.APIError, match="no replica of expert 7"),
    ):
        list(client.chat.completions.create(**_body(), stream=True))
    whole = rig.chat()
    assert whole.status_code == 503


def test_an_error_after_the_headers_but_before_a_token_is_the_last_frame(rig: Any, scripts: Any) -> None:
    async def late(request: Any) -> Any:
        import asyncio

        await asyncio.sleep(0.4)
        async for reply in scripts.fail(Code.DEADLINE, "too late")(request):
            yield reply

    rig.worker.admits, rig.worker.script = True, late
    assert json.loads(lines_of(rig)[-1][6:])["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_sequence_at_once(rig: Any, scripts: Any, stream: bool) -> None:
    rig.worker.script = scripts.say([5] * 4000, wait_s=0.01)
    with (
        rig.client.stream("POST", "/v1/chat/completions", json=_body(stream=stream), timeout=30)
        if stream
        else _gone(rig)
    ):
        scripts.until(lambda: rig.worker.num_running == 1, 5.0)
        time.sleep(0.05)
    started = time.monotonic()
    scripts.until(lambda: rig.worker.num_running == 0, 5.0)
    assert time.monotonic() - started < 0.5
    scripts.until(lambda: rig.worker.num_cancelled == 1, 5.0)
    scripts.until(lambda: rig.gateway.service.backend.workers[0].num_running == 0, 5.0)


def test_a_bug_while_reading_the_answer_ends_the_request(rig: Any, scripts: Any) -> None:
    rig.worker.script = scripts.say([10**6])
    assert rig.chat().status_code == 500
    assert rig.chat().json()["error"]["message"] == "internal error"


def _body(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | fields


class _gone:
    """A client that asks for a whole answer and closes its connection instead of waiting."""

    def __init__(self, rig: Any) -> None:
        import socket

        host, port = rig.gateway.url.removeprefix("http://").split(":")
        body = json.dumps(_body()).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        self._socket = socket.create_connection((host, int(port)))
        self._socket.sendall(head.encode() + body)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._socket.close()
