"""A sequence carried over its worker's failure, told as one answer."""

import gc
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from expertfleet.gateway.engine.failover import _Sequence
from expertfleet.gateway.engine.prepared_request import PreparedRequest
from expertfleet.gateway.events.answer import Answer
from expertfleet.gateway.events.output_parser import Parser
from expertfleet.gateway.idle_gc import Idle
from expertfleet.proto.errors import Code, FleetError

LONG = "one two three four five six seven eight<|im_end|>"


def by_requests(rig: Any) -> list[Any]:
    return [worker for worker in rig.workers if worker.requests]


@pytest.mark.parametrize("code", [Code.LANE_LOST, Code.DRAINING, Code.NOT_READY])
def test_workers_that_are_gone_are_passed_over(trio: Any, scripts: Any, code: Code) -> None:
    trio.says(LONG)
    trio.workers[0].script = trio.workers[1].script = scripts.fail(code)
    assert {trio.chat().status_code for _ in range(6)} == {200}
    assert len(trio.workers[2].requests) == 6


@pytest.mark.parametrize("begun", [True, False])
def test_a_sequence_waits_for_a_worker_to_come_when_the_only_one_is_lost(
    model_dir: Any, scripts: Any, begun: bool
) -> None:
    rig = scripts.Rig(model_dir, num_workers=2, worker_wait_s=20.0)
    try:
        ids = rig.text.ids(LONG)
        rig.says(LONG)
        rig.workers[0].script = scripts.fail(Code.LANE_LOST, after=ids[:3] if begun else ())
        rig.controller.publish(rig.workers[:1])
        scripts.until(lambda: len(rig.gateway.service.backend.workers) == 1, 5.0)
        answer = ThreadPoolExecutor(1).submit(rig.chat, return_token_ids=True)
        scripts.until(lambda: len(rig.workers[0].requests) == 1, 5.0)
        time.sleep(0.3)
        assert not answer.done()
        rig.controller.publish(rig.workers[1:])
        assert answer.result(10).json()["choices"][0]["token_ids"] == ids
        assert len(rig.workers[0].requests) == len(rig.workers[1].requests) == 1
        assert list(rig.workers[1].requests[0].generated_ids) == (ids[:3] if begun else [])
    finally:
        rig.close()


def test_a_worker_without_experts_is_asked_again_until_it_has_some(model_dir: Any, scripts: Any) -> None:
    """As when a fleet was scaled below what holds the model, and is scaled back: the attention worker was there all the time."""
    rig = scripts.Rig(model_dir, worker_wait_s=20.0)
    try:
        ids = rig.text.ids(LONG)
        rig.worker.script = scripts.fail(Code.NOT_READY)
        answer = ThreadPoolExecutor(1).submit(rig.chat, return_token_ids=True)
        scripts.until(lambda: len(rig.worker.requests) >= 2, 5.0)
        rig.controller.publish(rig.workers)
        rig.says(LONG)
        assert answer.result(10).json()["choices"][0]["token_ids"] == ids
    finally:
        rig.close()


def test_a_worker_that_never_gets_experts_is_not_asked_for_ever(
    model_dir: Any, scripts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rig = scripts.Rig(model_dir, worker_wait_s=2.2)
    try:
        rig.worker.script = scripts.fail(Code.NOT_READY, "no experts")
        refused = rig.chat()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert refused.json()["error"]["code"] == "not_ready"
        assert 3 <= len(rig.worker.requests) <= 5
        assert caplog.text.count("failed after 0 tokens") == 1, "said once"
    finally:
        rig.close()


def test_the_wait_for_a_worker_ends_with_the_requests_own_time(model_dir: Any, scripts: Any) -> None:
    rig = scripts.Rig(model_dir, worker_wait_s=20.0)
    try:
        rig.worker.script = scripts.fail(Code.LANE_LOST)
        began = time.monotonic()
        assert rig.chat(timeout=0.5).status_code == 504
        assert time.monotonic() - began < 5
    finally:
        rig.close()


def test_bad_requests_are_not_tried_elsewhere(trio: Any, scripts: Any) -> None:
    for worker in trio.workers:
        worker.script = scripts.fail(Code.BAD_REQUEST)
    assert trio.chat().status_code == 400
    assert sum(len(worker.requests) for worker in trio.workers) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_after_the_first_token_another_worker_continues_identically(trio: Any, scripts: Any, stream: bool) -> None:
    ids = trio.text.ids(LONG)
    trio.says(LONG)
    breaking = scripts.fail(Code.LANE_LOST, after=ids[:3])

    async def break_first(request: Any) -> Any:
        script = scripts.say(ids) if request.generated_ids else breaking
        async for reply in script(request):
            yield reply

    for worker in trio.workers:
        worker.script = break_first
    response = trio.chat(seed=5, stream=stream, return_token_ids=True, logprobs=True)
    assert response.status_code == 200
    if not stream:
        (choice,) = response.json()["choices"]
        assert choice["token_ids"] == ids
        assert len(choice["logprobs"]["content"]) == len(ids)
        assert response.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    first, second = (request for worker in trio.workers for request in worker.requests)
    first, second = (first, second) if not first.generated_ids else (second, first)
    assert list(second.generated_ids) == ids[:3]
    assert second.numerics == "fake-1"
    assert second.sampling.seed == first.sampling.seed == 5
    assert second.prompt_ids == first.prompt_ids
    assert len(by_requests(trio)) == 2


def test_a_continuation_stays_in_its_numerics_class(trio: Any, scripts: Any) -> None:
    for index, worker in enumerate(trio.workers):
        worker.numerics = f"class-{index}"
        worker.script = scripts.fail(Code.LANE_LOST, "worker died", after=trio.text.ids("one"))
    trio.controller.publish(trio.workers)
    fleet = trio.gateway.service.fleet
    scripts.until(lambda: fleet.epoch.id.counter == trio.controller.epoch.id.counter, 5.0)
    response = trio.chat()
    assert response.status_code == 503
    error = response.json()["error"]
    assert error["code"] == "wrong_numerics"
    assert "another numerics class than 'class-" in error["message"]
    assert "(worker died)" in error["message"]
    assert len(by_requests(trio)) == 1


def changing(rig: Any, scripts: Any, ids: list[int]) -> None:
    """The only worker comes to another class after three tokens, and refuses to continue what was begun in the first."""
    (worker,) = rig.workers

    async def script(request: Any) -> Any:
        if request.numerics not in ("", worker.numerics):
            raise FleetError(Code.WRONG_NUMERICS, "the sequence was begun in another class")
        if request.generated_ids:
            async for reply in scripts.say(ids)(request):
                yield reply
            return
        async for reply in scripts.fail(Code.WRONG_NUMERICS, "no longer", after=ids[:3])(request):
            yield reply
            worker.numerics = "fake-1/second"

    worker.numerics, worker.script = "fake-1/first", script


@pytest.fixture
def careless(model_dir: Any, scripts: Any) -> Iterator[Any]:
    """A gateway that goes on in another class."""
    rig = scripts.Rig(model_dir, on_inexact="continue", worker_wait_s=20.0)
    yield rig
    rig.close()


def inexact_continuations(rig: Any) -> float:
    lines = rig.admin.get("/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith("expertfleet_inexact_continuations_total")]
    return float(line.split()[-1])


@pytest.mark.parametrize("stream", [True, False])
def test_by_default_an_answer_ends_with_its_numerics_class_at_once(model_dir: Any, scripts: Any, stream: bool) -> None:
    rig = scripts.Rig(model_dir, worker_wait_s=60.0)
    try:
        changing(rig, scripts, rig.text.ids(LONG))
        response = rig.chat(stream=stream)
        text = response.text if stream else response.json()["error"]["message"]
        assert response.status_code == (200 if stream else 503)
        assert "another numerics class than 'fake-1/first'" in text
        assert ("[DONE]" in text) is False
        assert len(rig.worker.requests) == 1
        assert inexact_continuations(rig) == 0
    finally:
        rig.close()


def test_an_answer_that_goes_on_in_another_class_says_so(careless: Any, scripts: Any) -> None:
    ids = careless.text.ids(LONG)
    changing(careless, scripts, ids)
    response = careless.chat(return_token_ids=True)
    body = response.json()
    assert body["choices"][0]["token_ids"] == ids
    assert body["usage"]["inexact_continuations"] == 1
    assert body["system_fingerprint"] == "fake-1/second"
    assert response.headers["x-expertfleet-inexact-continuations"] == "1"
    assert [request.numerics for request in careless.worker.requests] == ["", ""]
    assert inexact_continuations(careless) == 1


def test_a_stream_that_goes_on_in_another_class_says_so(careless: Any, scripts: Any) -> None:
    changing(careless, scripts, careless.text.ids(LONG))
    response = careless.chat(stream=True, stream_options={"include_usage": True})
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-3] == ": inexact-continuations 1"
    assert json.loads(lines[-2][6:])["usage"]["inexact_continuations"] == 1
    assert "x-expertfleet-inexact-continuations" not in response.headers
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert list(dict.fromkeys(chunk["system_fingerprint"] for chunk in chunks if chunk["choices"])) == [
        "fake-1/first", "fake-1/second"
    ]  # fmt: skip


def test_an_answer_that_can_go_on_exactly_does_so_whatever_is_allowed(model_dir: Any, scripts: Any) -> None:
    rig = scripts.Rig(model_dir, num_workers=3, on_inexact="continue", worker_wait_s=20.0)
    try:
        ids = rig.text.ids(LONG)
        rig.says(LONG)
        first, same, other = rig.workers
        first.script = scripts.fail(Code.LANE_LOST, after=ids[:3])
        other.numerics = "fake-2"
        rig.controller.publish([first])
        scripts.until(lambda: len(rig.gateway.service.backend.workers) == 1, 5.0)
        answer = ThreadPoolExecutor(1).submit(rig.chat, return_token_ids=True)
        scripts.until(lambda: len(first.requests) == 1, 5.0)
        rig.controller.publish([first, other, same])
        response = answer.result(10)
        assert response.json()["choices"][0]["token_ids"] == ids
        assert [len(worker.requests) for worker in rig.workers] == [1, 1, 0]
        assert same.requests[0].numerics == "fake-1"
        assert "inexact_continuations" not in response.json()["usage"]
        assert "x-expertfleet-inexact-continuations" not in response.headers
    finally:
        rig.close()


def test_what_has_no_token_yet_begins_anew_in_the_class_that_there_is(rig: Any, scripts: Any) -> None:
    ids = rig.text.ids(LONG)
    breaking = scripts.fail(Code.WRONG_NUMERICS)

    async def break_first(request: Any) -> Any:
        script = breaking if len(rig.worker.requests) == 1 else scripts.say(ids)
        async for reply in script(request):
            yield reply

    rig.worker.script = break_first
    response = rig.chat(return_token_ids=True)
    assert response.json()["choices"][0]["token_ids"] == ids
    assert "inexact_continuations" not in response.json()["usage"]


def test_when_every_worker_breaks_the_error_comes_out(trio: Any, scripts: Any) -> None:
    for worker in trio.workers:
        worker.script = scripts.fail(Code.LANE_LOST, "worker died", after=trio.text.ids("one"))
    assert trio.chat().status_code == 503
    assert sum(len(worker.requests) for worker in trio.workers) == 3


def test_a_stream_that_ends_without_a_reason_is_a_lost_worker(rig: Any) -> None:
    async def silent(request: Any) -> Any:
        for _ in ():
            yield

    rig.worker.script = silent
    assert rig.chat().json()["error"]["code"] == "worker_lost"


def test_without_a_worker_there_is_a_503(rig: Any, scripts: Any) -> None:
    rig.controller.publish([], complete=False)
    scripts.until(lambda: not rig.gateway.service.backend.workers, 5.0)
    response = rig.chat()
    assert response.status_code == 503
    assert "retry-after" in response.headers


def test_an_overdue_sequence_is_cut_off_even_if_its_worker_forgets(rig: Any, scripts: Any) -> None:
    rig.worker.script = scripts.say([5], wait_s=20)
    response = rig.chat(timeout=0.1)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("stream", [True, False])
def test_nothing_of_an_answer_waits_for_a_collection_of_garbage(rig: Any, scripts: Any, stream: bool) -> None:
    rig.says(LONG)
    rig.gateway.service.idle = Idle(lambda: None)  # it would collect
    gc.collect()
    before = living()
    gc.disable()
    try:
        for _ in range(3):
            assert rig.chat(stream=stream).status_code == 200
        scripts.until(lambda: len(living()) == len(before), 5.0)
    finally:
        gc.enable()


def living() -> list[Any]:
    return [one for one in gc.get_objects() if type(one) in (Answer, PreparedRequest, Parser, _Sequence)]
