"""The gateway as a process: its line, its signals, its bad settings."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from expertfleet.gateway.__main__ import main


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "expertfleet.gateway", *flags]


@contextmanager
def gateway(rig: Any, model_dir: Path, *flags: str) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    arguments = ("--model", str(model_dir), "--controller", rig.controller.address, "--port", "0", *flags)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        word, url, admin, admin_url = process.stdout.readline().split()
        assert (word, admin) == ("gateway", "admin")
        yield process, url, admin_url
    finally:
        process.kill()
        process.communicate()


def ready(url: str) -> None:
    for _ in range(500):
        if httpx.get(f"{url}/ready").status_code == 200:
            return
        time.sleep(0.02)
    pytest.fail("never ready")


def test_it_serves_and_finishes_a_stream_after_sigterm(rig: Any, model_dir: Path, scripts: Any) -> None:
    rig.worker.script = scripts.say(rig.text.ids("a b c d e<|im_end|>"), wait_s=0.15)
    with gateway(rig, model_dir, "--seat", "gateway-1") as (process, url, admin_url):
        ready(url)
        assert httpx.get(f"{url}/health").json()["admin"] == admin_url
        names = [card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]]
        assert names == [str(model_dir), model_dir.name]
        body = {"model": model_dir.name, "messages": [{"role": "user", "content": "x"}], "stream": True}
        texts: list[str] = []
        thread = threading.Thread(
            target=lambda: texts.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20).text)
        )
        thread.start()
        scripts.until(lambda: rig.worker.num_running == 1, 5.0)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        thread.join()
        assert texts[0].endswith("data: [DONE]\n\n")


def test_a_second_signal_ends_streams_with_an_error_frame(rig: Any, model_dir: Path, scripts: Any) -> None:
    rig.worker.script = scripts.say([5] * 4000, wait_s=0.05)
    with gateway(rig, model_dir) as (process, url, _):
        ready(url)
        body = {"model": model_dir.name, "prompt": "x", "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            last = [line for line in lines if line.startswith("data")][-1]
        assert json.loads(last[6:])["error"]["code"] == "draining"
        assert process.wait(timeout=5) == 0
        assert time.monotonic() - started < 3


def test_a_taken_port_is_one_line_with_the_remedy(rig: Any, model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = command("--model", str(model_dir), "--controller", rig.controller.address, "--port", port)
        ended = subprocess.run(flags, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "choose another with --port" in ended.stderr


def test_dry_run_shows_the_settings_and_hides_the_keys(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(f"model: {model_dir}\ncontroller: host:1\nport: 9\napi_key: [hidden]\n")
    assert main(["--config", str(file), "--port", "10", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "port: 10" in shown
    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "/nowhere", "--controller", "a:1"), "not a directory"),
        (("--model", ".", "--controller", "a"), "is not HOST:PORT"),
        (("--model", ".", "--controller", "a:1"), "config.json"),
        (("--model", ".", "--controller", "a:1", "--port", "70000"), "--port: 70000 is not within 0 to 65535"),
        (("--model", ".", "--controller", "a:1", "--drain-s", "-1"), "--drain-s: -1 is not within 0 to 86400"),
        (("--controller", "a:1"), "--model"),
    ],
)
def test_bad_settings_are_one_line(
    flags: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert words in shown


def test_neither_torch_nor_ray_is_imported(model_dir: Path) -> None:
    code = (
        "import sys, expertfleet.gateway.server as s, expertfleet.gateway.config as c; from pathlib import Path;"
        f"s.GatewayServer(c.GatewayConfig(model=Path({str(model_dir)!r}), controller='a:1'));"
        "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EXPERTFLEET_")}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, env=environment, check=True
    )
    assert ended.stdout.strip() == "[]"
