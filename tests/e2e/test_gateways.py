"""Two gateways of one fleet: one that is killed takes its own connections with it, and nothing else."""

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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
NUM_TOKENS = 400
PATIENCE_S = 90.0


class Stream(threading.Thread):
    """``ended`` is True after ``[DONE]``, ``broken`` when the connection was."""

    def __init__(self, url: str, model: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self._url, self._body = url, body(model, seed) | {"stream": True}
        self.token_ids: list[int] = []
        self.ended = self.broken = False
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream(
                "POST", f"{self._url}/v1/completions", json=self._body, timeout=120, trust_env=False
            ) as reply:
                for line in reply.iter_lines():
                    self.ended = self.ended or line == "data: [DONE]"
                    if line.startswith("data: {"):
                        choices = json.loads(line.removeprefix("data: ")).get("choices", ())
                        self.token_ids += [id_ for choice in choices for id_ in choice.get("token_ids") or []]
        except httpx.TransportError:
            self.broken = True


def body(model: Path, seed: int) -> dict[str, Any]:
    return {
        "model": str(model), "prompt": "once upon a time", "max_tokens": NUM_TOKENS, "temperature": 1.0, "seed": seed,
        "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip


class Fleet:
    def __init__(self, start: Callable[..., Any], model: Path) -> None:
        self.model = model
        with CheckpointFiles.open(model) as checkpoint:
            shape = fleet_shape(checkpoint, "bfloat16")
        self.controller = ControllerThread(Controller(shape, DesiredState.first(1, 1, 1.0)))
        shared = ("--model", model, "--controller", self.controller.controller.address, "--drain-s", 1)
        start("expert_workers", *shared, "--seat", "expert-0")
        start("attention_workers", *shared, "--seat", "attention-0", "--max-model-len", 4096)
        self.gateways = [start("gateway", *shared, "--port", 0, "--seat", f"gateway-{number}") for number in (0, 1)]

    def url(self, number: int, which: str = "gateway") -> str:
        found = until(lambda: re.search(rf"{which} (http://\S+)", self.gateways[number].log.read_text()), PATIENCE_S)
        return str(found[1])

    def status(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url(1, 'admin')}/status", timeout=30, trust_env=False).json())

    def running(self) -> float:
        """Sequences that the attention worker reports."""
        (worker,) = [one for one in self.status()["workers"] if one["seat"] == "attention-0"]
        return float(worker["metrics"]["sequences_running"])


@pytest.fixture
def fleet(start: Callable[..., Any], small_checkpoint: Path) -> Iterator[Fleet]:
    fleet = Fleet(start, small_checkpoint)
    try:
        until(lambda: fleet.status()["settled"], PATIENCE_S)
        yield fleet
    finally:
        fleet.controller.stop()


def test_a_killed_gateway_frees_its_sequences_and_nobody_else_notices(fleet: Fleet) -> None:
    whole = httpx.post(f"{fleet.url(1)}/v1/completions", json=body(fleet.model, 7), timeout=120, trust_env=False).json()
    undisturbed = whole["choices"][0]["token_ids"]
    assert len(undisturbed) == NUM_TOKENS
    theirs = [Stream(fleet.url(0), fleet.model, seed) for seed in (1, 2, 3)]
    ours = Stream(fleet.url(1), fleet.model, 7)
    until(lambda: all(len(stream.token_ids) > 5 for stream in (*theirs, ours)), PATIENCE_S)
    until(lambda: fleet.running() == 4, PATIENCE_S)
    fleet.gateways[0].popen.kill()
    fleet.gateways[0].popen.wait()
    killed_at = len(ours.token_ids)
    until(lambda: fleet.running() <= 1, PATIENCE_S)
    assert killed_at < NUM_TOKENS, "the answer was over too soon to show anything"
    assert len(ours.token_ids) < NUM_TOKENS or ours.ended
    for stream in (*theirs, ours):
        stream.join(PATIENCE_S)
    assert [(stream.ended, stream.broken) for stream in theirs] == [(False, True)] * 3
    assert (ours.ended, ours.token_ids) == (True, undisturbed)
