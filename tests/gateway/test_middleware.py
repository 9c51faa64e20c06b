"""Request ids, API keys and the end of the gateway."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest


@pytest.fixture
def own_rig(model_dir: Any, scripts: Any) -> Iterator[Any]:
    rig = scripts.Rig(model_dir, api_key=("secret", "other"))
    rig.client.headers["authorization"] = "Bearer secret"
    yield rig
    rig.close()


def test_request_ids_are_echoed_or_made(rig: Any) -> None:
    response = rig.client.post(
        "/v1/completions", json={"model": "tiny", "prompt": "x"}, headers={"x-request-id": "abc-1"}
    )
    assert response.headers["x-request-id"] == "abc-1"
    assert response.json()["id"] == "cmpl-abc-1"
    assert rig.worker.requests[0].request_id == "abc-1-0"
    assert rig.complete(request_id="mine").headers["x-request-id"] == "mine"
    made = {rig.complete().headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert rig.client.get("/v1/nothing").headers["x-request-id"]


def test_keys_guard_the_api_alone(own_rig: Any) -> None:
    assert own_rig.chat().status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "secret"},
        {"authorization": "Basic secret"},
    ):
        with httpx.Client(base_url=own_rig.gateway.url) as client:
            response = client.get("/v1/models", headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert client.get("/health").status_code == 200
    with openai.OpenAI(base_url=f"{own_rig.gateway.url}/v1", api_key="other") as client_:
        assert len(list(client_.models.list())) == 2


def test_draining_refuses_new_requests_and_lets_running_ones_finish(own_rig: Any, scripts: Any) -> None:
    own_rig.worker.script = scripts.say(own_rig.text.ids("a b c d e<|im_end|>"), wait_s=0.1)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(own_rig.chat(stream=True)))
    thread.start()
    scripts.until(lambda: own_rig.worker.num_running == 1, 5.0)
    stopping = own_rig.start(own_rig.gateway.stop(10))
    scripts.until(lambda: own_rig.gateway.service.drain.draining, 5.0)
    with httpx.Client(base_url=own_rig.gateway.url, headers={"authorization": "Bearer secret"}) as client:
        refused = client.get("/v1/models")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
        assert refused.headers["connection"] == "close"
        assert client.get("/ready").status_code == 503
    assert stopping.result(timeout=10) is True
    thread.join()
    assert answers[0].text.endswith("data: [DONE]\n\n")


def test_what_does_not_finish_in_time_gets_an_error_frame(own_rig: Any, scripts: Any) -> None:
    own_rig.worker.script = scripts.say([5] * 4000, wait_s=0.05)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda stream=stream: answers.append(own_rig.chat(stream=stream)))
        for stream in (True, False)
    ]
    for thread in threads:
        thread.start()
    scripts.until(lambda: own_rig.worker.num_running == 2, 5.0)
    time.sleep(0.3)
    started = time.monotonic()
    assert own_rig.run(own_rig.gateway.stop(0.3)) is False
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 1.5
    whole, streamed = sorted(answers, key=lambda answer: answer.headers["content-type"])
    assert whole.status_code == 503
    last = [line for line in streamed.text.split("\n\n") if line][-1]
    assert json.loads(last[6:])["error"]["code"] == "draining"
    assert own_rig.worker.num_cancelled == 2
