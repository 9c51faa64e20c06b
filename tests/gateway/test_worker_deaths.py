"""A request under which attention workers really die, one after the other, is ended before it has taken them all."""

import hashlib
import itertools
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

LONG = "one two three four five six seven eight<|im_end|>"


@dataclass
class Process:
    """A worker as the controller's epoch names it."""

    seat: str
    address: str
    popen: subprocess.Popen[str]
    numerics: str = "fake-1"
    max_model_len: int = 0


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """``start(seat, fate, num_tokens)``: see ``mortal_worker.py``."""
    started: list[Process] = []

    def begin(seat: str, fate: str, num_tokens: int) -> Process:
        command = [sys.executable, str(Path(__file__).with_name("mortal_worker.py")), seat, fate, str(num_tokens)]
        popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert popen.stdout is not None
        started.append(Process(seat, popen.stdout.readline().strip(), popen))
        return started[-1]

    yield begin
    for process in started:
        process.popen.kill()
        process.popen.wait(10)
        assert process.popen.stdout is not None
        process.popen.stdout.close()


@pytest.fixture
def mixed(model_dir: Any, scripts: Any, start: Callable[..., Process]) -> Iterator[Callable[..., Any]]:
    """``mixed((fate, num_tokens), …, **settings)``: a gateway that asks such workers in this order, then a scripted one."""
    rigs: list[Any] = []

    def begin(*fates: tuple[str, int], **settings: Any) -> Any:
        rig = scripts.Rig(model_dir, **settings)
        rigs.append(rig)
        rig.says(LONG)
        mortals = [start(f"attention-{1 + index}", *fate) for index, fate in enumerate(fates)]
        rig.controller.publish([*mortals, rig.worker])
        scripts.until(lambda: len(rig.gateway.service.backend.workers) == 1 + len(fates), 5.0)
        workers = rig.gateway.service.backend.workers
        scripted = next(worker for worker in workers if worker.address == rig.worker.address)
        scripted.last_used = 1 << 20
        return rig

    yield begin
    for rig in rigs:
        rig.close()


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_a_request_under_which_two_workers_died_is_ended_and_its_fingerprint_logged(
    mixed: Callable[..., Any], num_tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    rig = mixed(("dies", num_tokens), ("dies", num_tokens))
    response = rig.chat(return_token_ids=True)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (500, "server_error", "worker_deaths")
    assert "was running during 2 worker deaths in a row (attention-1, attention-2)" in error["message"]
    assert not rig.worker.requests
    (logged,) = [record.getMessage() for record in caplog.records if "SHA-256" in record.getMessage()]
    rig.says(LONG)
    prompt = rig.chat(return_token_ids=True).json()["prompt_token_ids"]
    fingerprint = hashlib.sha256(struct.pack(f"<{len(prompt)}I", *prompt)).hexdigest()
    assert logged.endswith(fingerprint)
    assert logged.startswith(f"{response.headers['x-request-id']}-0: ")


def test_a_running_stream_is_ended_with_an_error_frame(mixed: Callable[..., Any]) -> None:
    rig = mixed(("dies", 3), ("dies", 3))
    lines = [line for line in rig.chat(stream=True).text.split("\n\n") if line]
    assert json.loads(lines[-1][6:])["error"]["code"] == "worker_deaths"


@pytest.mark.parametrize(
    "fates",
    [
        [("dies", 3), ("drains", 3), ("drains", 0)],  # a drain is no death
        [("dies", 0), ("refuses", 0), ("refuses", 0)],  # they died before they had taken it
        [("dies", 3), ("dies", 20)],  # it went on well beyond the place of the first death
    ],
)
def test_what_is_no_death_under_the_request_does_not_count(
    mixed: Callable[..., Any], fates: list[tuple[str, int]]
) -> None:
    rig = mixed(*fates)
    assert rig.chat().status_code == 200
    assert len(rig.worker.requests) == 1


def test_a_worker_that_was_dead_already_does_not_count(
    mixed: Callable[..., Any], start: Callable[..., Process]
) -> None:
    rig = mixed(("dies", 3), ("dies", 3))
    workers = rig.gateway.service.backend.workers
    assert rig.chat().status_code == 500
    for worker in workers:
        worker.last_used = 0 if worker.seat != rig.worker.seat else 1 << 20
    assert rig.chat().status_code == 200


# The fourth death is the next culprit's: it hits whoever never got on once more.
@pytest.mark.parametrize("num_deaths", [3, 4])
def test_of_those_that_were_hit_by_the_same_deaths_only_the_one_ends_that_causes_another(
    mixed: Callable[..., Any],
    start: Callable[..., Process],
    scripts: Any,
    caplog: pytest.LogCaptureFixture,
    num_deaths: int,
) -> None:
    rig = mixed(worker_wait_s=20.0)
    deadly = [start(f"attention-{1 + number}", "dies", 3) for number in range(num_deaths)]
    rig.controller.publish(deadly[:1])
    scripts.until(lambda: [worker.seat for worker in rig.gateway.service.backend.workers] == ["attention-1"], 5.0)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(rig.chat) for _ in range(2)]
        for worker, successor in itertools.pairwise([*deadly, rig.worker]):
            worker.popen.wait(20)
            rig.controller.publish([successor])
        assert sorted(answer.result(20).status_code for answer in answers) == [200, 500]
    assert len(rig.worker.requests) == 1
    assert len([record for record in caplog.records if "SHA-256" in record.getMessage()]) == 1


def test_bystanders_of_two_deaths_are_not_ended(
    mixed: Callable[..., Any], start: Callable[..., Process], scripts: Any
) -> None:
    rig = mixed(worker_wait_s=20.0)
    deadly = [start(f"attention-{number}", "dies", 3) for number in (1, 2)]
    rig.controller.publish(deadly[:1])
    scripts.until(lambda: [worker.seat for worker in rig.gateway.service.backend.workers] == ["attention-1"], 5.0)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(rig.chat) for _ in range(3)]
        for worker, successor in itertools.pairwise([*deadly, rig.worker]):
            worker.popen.wait(20)
            rig.controller.publish([successor])
        assert [answer.result(20).status_code for answer in answers] == [200] * 3
    assert len(rig.worker.requests) == 3


@pytest.mark.parametrize(("limit", "status"), [(1, 500), (3, 200)])
def test_the_limit_is_the_operators(mixed: Callable[..., Any], limit: int, status: int) -> None:
    rig = mixed(("dies", 0), ("dies", 0), max_worker_deaths=limit)
    assert rig.chat().status_code == status
