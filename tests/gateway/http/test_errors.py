"""Every code that a client can see: docs/serving.md explains it, and it occurs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from expertfleet.gateway.http.errors import ERRORS, from_fleet
from expertfleet.proto.errors import Code, FleetError

DOCUMENTS = Path(__file__).parents[3] / "docs"
DOCUMENT = (DOCUMENTS / "serving.md").read_text(encoding="utf-8")
_END = re.compile(r"\b(?:ends?|ended) with `(\w+)`|\berror `(\w+)`")
OF_WORKERS = {from_fleet(FleetError(code, "")).code for code in Code}


def post(path: str, **how: Any) -> Callable[[Any], httpx.Response]:
    def send(rig: Any) -> httpx.Response:
        response: httpx.Response = rig.client.post(path, **how)
        return response

    return send


# Code → a request that ends with it, for what the gateway itself refuses.
PROVOKED: dict[str, Callable[[Any], httpx.Response]] = {
    "invalid_value": lambda rig: rig.chat(temperature=3),
    "unsupported_value": lambda rig: rig.chat(response_format={"type": "json_object"}),
    "missing_required_parameter": post("/v1/completions", json={"model": "tiny"}),
    "unknown_parameter": lambda rig: rig.chat(temprature=1),
    "malformed_json": post("/v1/completions", content=b"{"),
    "context_length_exceeded": lambda rig: rig.chat(max_tokens=4096),
    "model_not_found": lambda rig: rig.chat(model="other"),
    "not_found": lambda rig: rig.client.get("/v1/other"),
    "method_not_allowed": lambda rig: rig.client.get("/v1/completions"),
    "body_too_large": post("/v1/completions", content=iter([b" " * (1 << 20)] * 33)),
    "unsupported_media_type": post("/v1/completions", content=b"{}", headers={"content-encoding": "gzip"}),
}
WITH_KEYS = {"invalid_api_key", "no_api_key"}


def documented() -> dict[str, int]:
    section = DOCUMENT.partition("### Errors")[2].partition("\n#")[0]
    return {code: int(status) for code, status in re.findall(r"^\| `(\w+)` \| (\d+) \| .+ \|$", section, re.MULTILINE)}


def test_the_documents_table_is_the_codes() -> None:
    assert documented() == {code: status for code, (status, _) in ERRORS.items()}


def test_the_documents_call_a_requests_end_by_its_code() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*DOCUMENTS.glob("*.md"), DOCUMENTS.parent / "README.md")]
    ends = {code for text in texts for pair in _END.findall(text) for code in pair if code}
    assert {"no_replica", "deadline_exceeded"} <= ends <= set(ERRORS)


def test_every_code_is_provoked_here() -> None:
    assert set(PROVOKED) | WITH_KEYS | OF_WORKERS == set(ERRORS)


@pytest.mark.parametrize("code", sorted(PROVOKED))
def test_what_the_gateway_refuses(rig: Any, code: str) -> None:
    check(PROVOKED[code](rig), code)


@pytest.mark.parametrize("code", list(Code))
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_worker_answers(rig: Any, scripts: Any, code: Code, stream: bool) -> None:
    """A worker that is busy or gone is tried once more before the first token, with the same end."""
    rig.worker.script = scripts.fail(code)
    check(rig.chat(stream=stream), from_fleet(FleetError(code, "")).code)


@pytest.mark.parametrize("code", list(Code))
def test_what_a_worker_answers_in_the_middle_is_the_last_frame(rig: Any, scripts: Any, code: Code) -> None:
    rig.worker.script = scripts.fail(code, after=rig.text.ids("some text"))
    frames = rig.chat(stream=True).text.split("\n\n")
    error = json.loads(frames[-2].removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == (from_fleet(FleetError(code, "")).code, ERRORS[error["code"]][1])
    assert frames[-1] == ""


def test_a_fault_among_the_fleets_own_processes_says_which() -> None:
    assert str(from_fleet(FleetError(Code.STALE_EPOCH, "epoch 3"))) == "stale_epoch: epoch 3"
    assert str(from_fleet(FleetError(Code.INTERNAL, "a step failed"))) == "a step failed"


def test_what_needs_a_key(model_dir: Path, scripts: Any) -> None:
    rig = scripts.Rig(model_dir, api_key=("secret",))
    try:
        check(rig.chat(), "invalid_api_key")
    finally:
        rig.close()
    rig = scripts.Rig(model_dir, admin_host="0.0.0.0")
    try:
        check(httpx.post(f"http://127.0.0.1:{rig.gateway.service.admin_address[1]}/scale", json={}), "no_api_key")
    finally:
        rig.close()


def check(response: httpx.Response, code: str) -> None:
    error = response.json()["error"]
    assert (error["code"], response.status_code, error["type"]) == (code, *ERRORS[code])
    assert ("retry-after" in response.headers) == (response.status_code == 503)
