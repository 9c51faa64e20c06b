"""Shards of two numerics classes in one live fleet: within a class a loss changes nothing, and the loss of a class is said."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from until import until

from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.cluster.commands.resource_plan import fleet_shape
from expertfleet.cluster.controller.controller import Controller
from expertfleet.cluster.controller.controller_thread import ControllerThread
from expertfleet.cluster.controller.desired_state import DesiredState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BACKENDS = ("cpu-native", "cpu-native", "reference")
NUM_TOKENS = 300
PROMPT = "once upon a time"
PATIENCE_S = 120.0


class Answer(threading.Thread):
    """A streamed completion: token ids as they come, each chunk's numerics class, comments, usage, and an error's frame."""

    def __init__(self, url: str, model: Path) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._body = body(model) | {"stream": True, "stream_options": {"include_usage": True}}
        self.token_ids: list[int] = []
        self.classes: list[str] = []  # of each token
        self.comments: list[str] = []
        self.usage: dict[str, Any] = {}
        self.error: dict[str, Any] = {}
        self.start()

    def run(self) -> None:
        with httpx.stream(
            "POST", f"{self._url}/v1/completions", json=self._body, timeout=300, trust_env=False
        ) as reply:
            for line in reply.iter_lines():
                if line.startswith(": "):
                    self.comments.append(line)
                elif line.startswith("data: {"):
                    self._take(json.loads(line.removeprefix("data: ")))

    def _take(self, chunk: dict[str, Any]) -> None:
        self.error = chunk.get("error", self.error)
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            token_ids = choice.get("token_ids") or []
            self.token_ids += token_ids
            self.classes += [chunk["system_fingerprint"]] * len(token_ids)


def body(model: Path) -> dict[str, Any]:
    return {
        "model": str(model), "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip


class Fleet:
    """Two shards of one class, one of another, an attention worker, and a gateway for each ``--on-inexact``."""

    def __init__(self, start: Callable[..., Any], model: Path) -> None:
        self.model = model
        with CheckpointFiles.open(model) as checkpoint:
            shape = fleet_shape(checkpoint, "bfloat16")
        self.controller = ControllerThread(Controller(shape, DesiredState.first(1, len(BACKENDS), 2.0)))
        shared = ("--model", model, "--controller", self.controller.controller.address, "--drain-s", 1)
        self.shards = [
            start("expert_workers", *shared, "--seat", f"expert-{number}", "--backend", backend)
            for number, backend in enumerate(BACKENDS)
        ]
        self.attention = start("attention_workers", *shared, "--seat", "attention-0", "--max-model-len", 4096)
        self._gateways = {
            choice: start("gateway", *shared, "--port", 0, "--on-inexact", choice) for choice in ("fail", "continue")
        }

    def url(self, choice: str, which: str = "gateway") -> str:
        """Of the API, or of the ``admin`` port."""
        found = until(lambda: re.search(rf"{which} (http://\S+)", self._gateways[choice].log.read_text()), PATIENCE_S)
        return str(found[1])

    def status(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url('fail', 'admin')}/status", timeout=30, trust_env=False).json())

    def classes(self) -> dict[str, str]:
        """The numerics class of every shard that is there."""
        workers = self.status()["workers"]
        return {one["seat"]: one["numerics"] for one in workers if one["role"] == "expert" and one["state"] == "ready"}

    def ask(self, choice: str) -> Answer:
        return Answer(self.url(choice), self.model)

    def whole_answer(self, choice: str) -> httpx.Response:
        url = f"{self.url(choice)}/v1/completions"
        return httpx.post(url, json=body(self.model), timeout=300, trust_env=False).raise_for_status()

    def kill(self, ordinal: int) -> None:
        self.shards[ordinal].popen.kill()
        self.shards[ordinal].popen.wait()


@pytest.fixture
def fleet(start: Callable[..., Any], small_checkpoint: Path) -> Iterator[Fleet]:
    fleet = Fleet(start, small_checkpoint)
    try:
        until(lambda: fleet.status()["settled"], PATIENCE_S)
        yield fleet
    finally:
        fleet.controller.stop()


def test_a_loss_within_a_class_changes_nothing_and_the_loss_of_a_class_is_said(fleet: Fleet) -> None:
    classes = fleet.classes()
    assert classes["expert-0"] == classes["expert-1"] != classes["expert-2"]
    undisturbed = fleet.whole_answer("fail").json()["choices"][0]["token_ids"]
    assert len(undisturbed) == NUM_TOKENS

    failing, going_on = fleet.ask("fail"), fleet.ask("continue")
    headers: list[str] = []
    inexact = "x-expertfleet-inexact-continuations"
    whole = threading.Thread(target=lambda: headers.append(fleet.whole_answer("continue").headers[inexact]))
    whole.start()
    answers = (failing, going_on)
    until(lambda: min(len(answer.token_ids) for answer in answers) >= 20, PATIENCE_S)
    fleet.kill(0)
    seen = [len(answer.token_ids) for answer in answers]
    until(
        lambda: all(len(answer.token_ids) >= before + 20 for answer, before in zip(answers, seen, strict=True)),
        PATIENCE_S,
    )
    assert max(len(answer.token_ids) for answer in answers) < NUM_TOKENS - 100
    fleet.kill(1)
    for thread in (failing, going_on, whole):
        thread.join(PATIENCE_S)
        assert not thread.is_alive()

    first_class = failing.classes[0]
    assert failing.error["code"] == "wrong_numerics"
    assert "--on-inexact continue" in failing.error["message"]
    assert set(failing.classes) == {first_class}
    assert 40 <= len(failing.token_ids) < NUM_TOKENS
    assert failing.token_ids == undisturbed[: len(failing.token_ids)]

    assert not going_on.error
    assert len(going_on.token_ids) == NUM_TOKENS
    num_exact = going_on.classes.count(first_class)
    assert 40 <= num_exact < NUM_TOKENS
    assert going_on.token_ids[:num_exact] == undisturbed[:num_exact]
    (second_class,) = set(going_on.classes[num_exact:])
    assert second_class != first_class
    assert going_on.comments[-1] == ": inexact-continuations 1"
    assert going_on.usage["inexact_continuations"] == 1
    assert headers == ["1"]
    metrics = httpx.get(f"{fleet.url('continue', 'admin')}/metrics", timeout=30, trust_env=False).text
    assert re.search(r"^expertfleet_inexact_continuations_total\{.*\} 2\.0$", metrics, re.MULTILINE)

    until(lambda: fleet.status()["ready"], PATIENCE_S)
    assert fleet.classes() == {"expert-2": classes["expert-2"]}
    again = fleet.whole_answer("fail").json()
    assert again["system_fingerprint"] == second_class
    assert "inexact_continuations" not in again["usage"]
