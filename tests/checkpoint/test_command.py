import argparse
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from expertfleet.checkpoint.command import fill_parser
from expertfleet.checkpoint.model_config import ModelConfig


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    fill_parser(parser)
    args = parser.parse_args([*map(str, arguments)])
    return int(args.run(args))


class Handler(http.server.SimpleHTTPRequestHandler):
    """A plain server of one folder, which wants a token."""

    def send_head(self):  # type: ignore[no-untyped-def]
        if self.headers["Authorization"] != "Bearer s3cret":
            return self.send_error(401)
        return super().send_head()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tiny)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_option_of_make_tiny_reaches_the_checkpoint(tmp_path: Path) -> None:
    options = {
        "seed": 3, "hidden": 96, "layers": 4, "dense-layers": 2, "experts": 6, "top-k": 2, "expert-width": 64,
        "dense-width": 32, "shared-experts": 2, "heads": 2, "q-lora-rank": 64, "kv-lora-rank": 96,
        "nope-head-dim": 24, "rope-head-dim": 16, "v-head-dim": 40, "groups": 3, "topk-groups": 2, "vocab": 700,
        "context": 50_000,
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    assert run("make-tiny", tmp_path / "m", *flags) == 0
    config = ModelConfig.from_dir(tmp_path / "m")
    assert (config.hidden_size, config.num_layers, config.num_dense_layers, config.num_experts) == (96, 4, 2, 6)
    assert (config.top_k, config.moe_intermediate_size, config.intermediate_size) == (2, 64, 32)
    assert (config.num_shared_experts, config.num_heads, config.q_lora_rank, config.kv_lora_rank) == (2, 2, 64, 96)
    assert (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim) == (24, 16, 40)
    assert (config.n_group, config.topk_group, config.vocab_size, config.max_position_embeddings) == (3, 2, 700, 50_000)


def test_check_says_what_it_found(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", tiny) == 0
    out, err = capsys.readouterr()
    assert "tensors are as they must be" in out
    assert "fingerprint " in out
    assert err == ""


def test_pull_says_in_one_line_what_it_brought(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXPERTFLEET_PULL_TOKEN", "s3cret\n")
    assert run("pull", url, tmp_path / "deep" / "m", "--jobs", 3) == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.startswith(
        f"{tmp_path}/deep/m: 10 files of 0.00 GB are as they must be, 0.00 GB came now, fingerprint "
    )
    assert err.splitlines() == [
        "no checksum is known for 10 of 10 files: chat_template.jinja, config.json and 8 more",
    ]


def test_pull_checks_what_it_brought(
    url: str, tiny: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of the right size whose checksum nobody knows is left alone, but not believed."""
    monkeypatch.setenv("EXPERTFLEET_PULL_TOKEN", "s3cret")
    shard = copy / "model-00003-of-000004.safetensors"
    shard.write_bytes(bytes(shard.stat().st_size))
    assert run("pull", url, copy) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"expertfleet checkpoint pull: {shard}: ")


def test_faults_of_pull_are_one_line_and_status_one(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pull", url, tmp_path / "m") == 1
    assert run("pull", url, tmp_path / "m", "--jobs", 0) == 1
    assert run("pull", url, tmp_path / "m", "--sha256sums", tmp_path / "none") == 1
    out, err = capsys.readouterr()
    assert out == ""
    first, second, third = err.splitlines()
    assert first == f"expertfleet checkpoint pull: {url}/SHA256SUMS: HTTP 401"
    assert second == "expertfleet checkpoint pull: --jobs 0: must be 1 or more"
    assert "No such file" in third


def test_a_fault_is_one_line_and_status_one(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "model-00001-of-000004.safetensors").unlink()
    assert run("check", copy) == 1
    assert run("make-tiny", copy / "config.json") == 1
    assert run("make-tiny", copy.parent / "new", "--hidden", 33) == 1
    out, err = capsys.readouterr()
    assert out == ""
    first, second, third = err.splitlines()
    assert "model-00001-of-000004.safetensors, which does not exist" in first
    assert "config.json: is in the way" in second
    assert "--hidden 33: must be a multiple of 32" in third


def test_an_unknown_option_ends_with_status_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("make-tiny", tmp_path / "m", "--hiden", 64)
    assert caught.value.code == 2
    assert "--hiden" in capsys.readouterr().err
