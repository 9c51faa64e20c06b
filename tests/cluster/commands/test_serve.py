import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from until import until

from expertfleet.cluster.__main__ import main

WORKERS = {"controller", "attention-0", "expert-0", "expert-1"}


class Stream(threading.Thread):
    """One streamed completion, its lines collected as they come."""

    def __init__(self, url: str, num_tokens: int) -> None:
        super().__init__(daemon=True)
        self.url, self.num_tokens = url, num_tokens
        self.lines: list[str] = []
        self.start()

    def run(self) -> None:
        model = httpx.get(f"{self.url}/v1/models", trust_env=False).json()["data"][0]["id"]
        body = {"model": model, "prompt": "a", "max_tokens": self.num_tokens, "stream": True, "temperature": 0}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=30, trust_env=False) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: "):
                    self.lines.append(line)

    @property
    def is_whole(self) -> bool:
        return self.lines[-1:] == ["data: [DONE]"] and len(self.lines) > self.num_tokens


def test_ready_stands_alone_on_standard_output(fleet: Any) -> None:
    assert fleet.stdout == [f"ready http://127.0.0.1:{fleet.port}\n"]
    assert any("expert-1 ready: 96 experts" in line for line in fleet.stderr)


def test_status_lists_every_worker_with_its_process(fleet: Any) -> None:
    status = fleet.status()
    assert set(status) == {*WORKERS, "gateway-0"}
    assert {worker["state"] for worker in status.values()} == {"ready"}
    assert sum(worker["experts"] for worker in status.values()) == 192
    assert {worker["pid"] for worker in status.values()} <= set(fleet.below())


def test_killing_gcs_under_a_stream_changes_no_pid(fleet: Any) -> None:
    before = {seat: worker["pid"] for seat, worker in fleet.status().items()}
    stream = Stream(fleet.url, 60)
    until(lambda: len(stream.lines) > 3, 10)
    (gcs,) = (pid for pid in fleet.below() if "gcs_server" in _command(pid))
    os.kill(gcs, signal.SIGKILL)
    until(lambda: [pid for pid in fleet.below() if "gcs_server" in _command(pid) and pid != gcs], 10)
    stream.join(20)
    assert stream.is_whole
    assert {seat: worker["pid"] for seat, worker in fleet.status().items()} == before
    assert fleet.get(f"{fleet.url}/ready")["ready"]


def test_a_killed_shard_comes_back_in_its_seat(fleet: Any) -> None:
    pid = fleet.status()["expert-1"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: _ready_again(fleet, "expert-1", pid), 30)
    until(lambda: [fleet.status()[seat]["experts"] for seat in ("expert-0", "expert-1")] == [96, 96], 20)
    until(lambda: fleet.get(f"{fleet.url}/ready")["ready"], 10)


def test_a_killed_controller_comes_back_and_gathers_everybody(fleet: Any) -> None:
    before = fleet.status()
    os.kill(before["controller"]["pid"], signal.SIGKILL)
    until(lambda: _ready_again(fleet, "controller", before["controller"]["pid"]), 30)
    until(lambda: set(fleet.status()) == set(before) and _all_ready(fleet), 15)
    after = fleet.status()
    assert [after[seat]["pid"] for seat in WORKERS - {"controller"}] == [
        before[seat]["pid"] for seat in WORKERS - {"controller"}
    ]
    until(lambda: fleet.get(f"{fleet.url}/ready")["ready"], 10)


def test_a_killed_gateway_is_started_again(fleet: Any) -> None:
    pid = fleet.status()["gateway-0"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: _answers(fleet) and fleet.status()["gateway-0"]["pid"] != pid, 20)


def test_the_fleet_grows_and_shrinks_under_a_stream(fleet: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: str) -> str:
        assert main([*words, "--url", fleet.url, "--wait-s", "120"]) == 0
        return capsys.readouterr().out

    def experts() -> dict[str, int]:
        return {seat: worker["experts"] for seat, worker in fleet.status().items() if seat.startswith("expert")}

    stream = Stream(fleet.url, 400)
    assert "expert-2 starts" in command("scale", "--expert-shards", "3")
    assert sorted(experts()) == ["expert-0", "expert-1", "expert-2"]
    assert sum(experts().values()) == 192
    assert "expert-0 leaves" in command("drain", "expert-0")
    assert sorted(experts()) == ["expert-1", "expert-2"]
    assert "expert-0 starts" in command("scale", "--expert-shards", "3", "--replicas", "1.5")
    assert sum(experts().values()) == 288
    command("scale", "--expert-shards", "2", "--replicas", "1")
    assert sorted(experts()) == ["expert-0", "expert-1"]
    assert not [pid for pid in fleet.below() if "expert-2" in _command(pid)]
    stream.join(30)
    assert stream.is_whole


def test_a_size_that_cannot_be_is_one_line(fleet: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--expert-shards", "1", "--replicas", "2", "--url", fleet.url]) == 1
    told = capsys.readouterr().err
    assert told.startswith("expertfleet: error: expert_shards: 1 expert shards cannot hold 2 copies of each expert")
    assert told.count("\n") == 1
    for words in (("--expert-shards", "100"), ("--expert-shards", "1000"), ("--attention-workers", "500")):
        assert main(["scale", *words, "--url", fleet.url]) == 1
        assert f"at most {words[0][2:].replace('-', '_')} " in capsys.readouterr().err
    assert main(["scale", "--url", fleet.url]) == 1
    assert "nothing to change" in capsys.readouterr().err


def test_sigterm_lets_a_stream_finish_and_leaves_nothing(fleet: Any) -> None:
    until(lambda: fleet.get(f"{fleet.url}/ready")["ready"], 10)
    stream = Stream(fleet.url, 40)
    until(lambda: len(stream.lines) > 3, 10)
    pids = fleet.below()
    assert len(pids) > 8
    fleet.send(signal.SIGTERM)
    assert fleet.process.wait(30) == 0
    stream.join(5)
    assert stream.is_whole
    assert fleet.left_over(pids) == []
    assert len(fleet.stdout) == 1


@pytest.mark.slow
def test_kill_9_of_serve_leaves_nothing_after_ten_seconds(serve: Callable[..., Any]) -> None:
    one = serve()
    one.wait_ready()
    pids = one.below()
    one.send(signal.SIGKILL)
    until(lambda: not one.left_over(pids), 10)


@pytest.mark.slow
def test_a_second_signal_ends_at_once(serve: Callable[..., Any]) -> None:
    one = serve()
    one.wait_ready()
    stream = Stream(one.url, 400)
    until(lambda: len(stream.lines) > 3, 10)
    pids = one.below()
    one.send(signal.SIGINT)
    time.sleep(1)
    assert one.process.poll() is None
    one.send(signal.SIGINT)
    assert one.process.wait(5) == 0
    assert one.left_over(pids) == []


@pytest.mark.slow
def test_a_signal_while_starting_ends_cleanly(serve: Callable[..., Any]) -> None:
    one = serve()
    until(lambda: any("starting Ray" in line for line in one.stderr), 30)
    time.sleep(2)
    pids = one.below()
    one.send(signal.SIGTERM)
    assert one.process.wait(20) == 0
    assert one.left_over(pids) == []
    assert one.stdout == []


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_one_line_and_leaves_nothing(serve: Callable[..., Any]) -> None:
    one = serve(env={"FAKE_FAULT": "no such instruction"})
    assert one.process.wait(60) == 1
    assert one.stderr[-1] == "expertfleet: error: expert-1 cannot start: no such instruction\n"
    assert one.left_over([]) == []


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def _ready_again(fleet: Any, seat: str, old_pid: int) -> Any:
    worker = fleet.status().get(seat, {})
    return worker if worker.get("state") == "ready" and worker.get("pid") != old_pid else None


def _all_ready(fleet: Any) -> bool:
    return all(worker["state"] == "ready" for worker in fleet.status().values())


def _answers(fleet: Any) -> bool:
    try:
        return bool(fleet.get(f"{fleet.url}/ready")["ready"])
    except httpx.TransportError:
        return False
