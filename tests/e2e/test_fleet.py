"""A whole fleet as a user starts it: `expertfleet serve` on a generated checkpoint, driven with the official client."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import psutil
import pytest

MODEL = "moonshotai/Kimi-K2-Thinking"
CALCULATOR = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
        },
    }
]


class Serve:
    """One `expertfleet serve` process."""

    def __init__(self, checkpoint: Path, *flags: str) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("EXPERTFLEET_")}
        command = [sys.executable, "-m", "expertfleet.cluster", "serve", str(checkpoint), "--port", "0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
        self.stopping = False
        self.stderr: list[str] = []
        self._stdout: queue.Queue[str] = queue.Queue()
        for stream, put in ((self.process.stdout, self._stdout.put), (self.process.stderr, self.stderr.append)):
            threading.Thread(target=self._read, args=(stream, put), daemon=True).start()
        self.url = self._wait_ready()
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def _read(self, stream: Any, put: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                put(line)

    def _wait_ready(self) -> str:
        try:
            line = self._stdout.get(timeout=150)
        except queue.Empty:
            self.process.kill()
            pytest.fail("never ready: " + "".join(self.stderr[-20:]))
        assert line.startswith("ready http://127.0.0.1:"), line
        return line.split()[1]

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", trust_env=False, timeout=20)

    def status(self) -> dict[str, dict[str, Any]]:
        text = subprocess.run(
            [sys.executable, "-m", "expertfleet.cluster", "status", "--url", self.url, "--json"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return {worker["seat"]: worker for worker in json.loads(text)["workers"]}

    def addresses(self) -> dict[str, str]:
        """Where each role but the gateway takes gRPC calls."""
        status = httpx.get(f"{self.get('/health').json()['admin']}/status", trust_env=False).json()
        return {worker["seat"]: worker["address"] for worker in status["workers"] if worker["role"] != "gateway"}

    def metric(self, name: str) -> float:
        """The sum of a metric over its seats."""
        text = httpx.get(f"{self.get('/health').json()['admin']}/metrics", trust_env=False).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}{{"))

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        """After a first signal or without one: it must end by itself and well."""
        if not self.stopping:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, "".join(self.stderr[-20:])
        self.client.close()


@pytest.fixture(scope="module")
def fleet(small_checkpoint: Path) -> Iterator[Serve]:
    serve = Serve(small_checkpoint, "--expert-shards=2", "--max-model-len=4096", f"--served-model-name={MODEL}")
    yield serve
    serve.end()


def complete(fleet: Serve, prompt: list[int], max_tokens: int, **more: Any) -> list[int]:
    extra = {"ignore_eos": True, "return_token_ids": True, **more}
    answer = fleet.client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=max_tokens, temperature=1.0, seed=7, extra_body=extra
    )
    return list(answer.choices[0].token_ids)  # type: ignore[attr-defined]


def test_simple_chat_with_list_content(fleet: Serve) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "You are Kimi, an AI assistant created by Moonshot AI."},
        {"role": "user", "content": [{"type": "text", "text": "which one is bigger, 9.11 or 9.9? think carefully."}]},
    ]
    answer = fleet.client.chat.completions.create(
        model=MODEL, messages=messages, stream=False, temperature=1.0, max_tokens=40
    )
    assert answer.model == MODEL
    message = answer.choices[0].message
    assert message.role == "assistant"
    assert isinstance(message.content, str) or hasattr(message, "reasoning_content")
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 40
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_the_tool_loop_appends_the_message_as_it_came(fleet: Serve) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is 2 + 3? Use the tool."}]
    finish_reason, rounds = None, 0
    while finish_reason in (None, "tool_calls") and rounds < 3:
        answer = fleet.client.chat.completions.create(
            model=MODEL, messages=messages, tools=CALCULATOR, tool_choice="auto", max_tokens=24, temperature=1.0
        )
        choice = answer.choices[0]
        messages.append(choice.message)
        for call in choice.message.tool_calls or []:
            messages.append({"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": "5"})
        finish_reason, rounds = choice.finish_reason, rounds + 1
    messages.append({"role": "user", "content": "thanks"})
    assert fleet.client.chat.completions.create(model=MODEL, messages=messages, tools=CALCULATOR, max_tokens=4).choices


def test_the_streaming_loop_sees_deltas(fleet: Serve) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    stream = fleet.client.chat.completions.create(
        model=MODEL, messages=messages, stream=True, max_tokens=30, stream_options={"include_usage": True}
    )
    content = reasoning = ""
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if hasattr(choice.delta, "content"):
                content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
    assert content or reasoning
    assert usage is not None
    assert usage.completion_tokens >= 1


def test_nine_requests_share_a_step_and_answer_as_if_alone(fleet: Serve) -> None:
    prompts = [[number, 5, 9] for number in range(9)]
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(lambda prompt: complete(fleet, prompt, 60), prompts))
    time.sleep(1.2)
    assert fleet.metric("expertfleet_forward_sequences_max") >= 8
    assert [complete(fleet, prompt, 60) for prompt in prompts[:3]] == together[:3]


def test_a_client_that_leaves_frees_its_sequence(fleet: Serve) -> None:
    body = {"model": MODEL, "prompt": [1, 2], "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{fleet.url}/v1/completions", json=body, trust_env=False, timeout=30) as reply:
        lines = reply.iter_lines()  # kept: a dropped iterator closes the connection
        assert next(lines).startswith("data: ")
        running = wait_for(lambda: fleet.metric("expertfleet_sequences_running"), lambda value: value == 1)
        assert running == 1
    began = time.monotonic()
    assert wait_for(lambda: fleet.metric("expertfleet_sequences_running"), lambda value: value == 0) == 0
    assert time.monotonic() - began < 10, "4,000 tokens would take minutes"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "other", "prompt": "a"}, 404, "other"),
        ({"model": MODEL, "prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
        ({"model": MODEL, "prompt": "a", "max_tokens": 10**9}, 400, "4096"),
        ({"model": MODEL, "prompt": [1] * 5000}, 400, "4096"),
        ({"model": MODEL, "prompt": [10**7]}, 400, "prompt"),
        ({"model": MODEL, "prompt": "a", "echo": True}, 400, "echo"),
    ],
)
def test_mistakes_are_4xx_and_named(fleet: Serve, body: dict[str, Any], status: int, words: str) -> None:
    reply = httpx.post(f"{fleet.url}/v1/completions", json=body, trust_env=False)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]["message"]


def answer_to_a_stranger(address: str) -> grpc.StatusCode:
    """What a call gets that shows neither a token nor a certificate."""
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options=options) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary("/expertfleet.v1.ExpertShard/Describe")(b"", timeout=5)
    return refusal.value.code()


def test_no_worker_and_no_controller_answers_a_stranger(fleet: Serve) -> None:
    addresses = fleet.addresses()
    assert addresses.keys() == {"controller", "attention-0", "expert-0", "expert-1"}
    for address in addresses.values():
        assert answer_to_a_stranger(address) is grpc.StatusCode.UNAUTHENTICATED


def test_gcs_killed_under_streams_changes_no_token_and_no_pid(fleet: Serve) -> None:
    prompts = [[number, 77] for number in range(4)]
    calm = [complete(fleet, prompt, 80) for prompt in prompts]
    pids = {seat: worker["pid"] for seat, worker in fleet.status().items()}
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(complete, fleet, prompt, 80) for prompt in prompts]
        time.sleep(0.3)
        (gcs,) = (process for process in fleet.below() if "gcs_server" in process.name())
        gcs.kill()
        assert [answer.result() for answer in answers] == calm
    again = wait_for(
        lambda: [process for process in fleet.below() if "gcs_server" in process.name() and process.pid != gcs.pid],
        bool,
    )
    assert again
    assert wait_for(lambda: {seat: worker["pid"] for seat, worker in fleet.status().items()}, lambda now: now == pids)


@pytest.mark.slow
def test_a_killed_shard_costs_no_request(fleet: Serve) -> None:
    calm = complete(fleet, [3, 4], 150)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(complete, fleet, [3, 4], 150)
        time.sleep(0.5)
        os.kill(fleet.status()["expert-1"]["pid"], signal.SIGKILL)
        assert answer.result() == calm


@pytest.mark.slow
def test_sigterm_during_a_stream_too_long_to_finish(small_checkpoint: Path, tls_dir: Path) -> None:
    """With TLS between the processes."""
    serve = Serve(small_checkpoint, "--expert-shards=1", "--max-model-len=65536", "--drain-s=2", f"--tls-dir={tls_dir}")
    assert answer_to_a_stranger(serve.addresses()["expert-0"]) is grpc.StatusCode.UNAVAILABLE
    processes = serve.below()
    model = serve.client.models.list().data[0].id
    body = {"model": model, "prompt": [1, 2], "max_tokens": 60000, "ignore_eos": True, "stream": True}
    lines: list[tuple[float, str]] = []
    asked = 0.0
    with httpx.stream("POST", f"{serve.url}/v1/completions", json=body, trust_env=False, timeout=60) as reply:
        for line in reply.iter_lines():
            if not line.startswith("data: "):
                continue
            lines.append((time.monotonic(), line))
            if len(lines) == 5:
                asked = time.monotonic()
                serve.process.send_signal(signal.SIGTERM)
    ended, last = lines[-1]
    assert "error" in json.loads(last.removeprefix("data: ")), last
    assert 1.5 <= ended - asked <= 3.5, (last, serve.stderr)
    serve.end()
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def wait_for(read: Callable[[], Any], good: Callable[[Any], bool], timeout_s: float = 20) -> Any:
    """The first good value, or the last one read."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = read()
        if good(value) or time.monotonic() > deadline:
            return value
        time.sleep(0.1)
