import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from expertfleet import __version__
from expertfleet.cluster.__main__ import main


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """`serve` puts handlers of its own in place, and a process of its own would end with them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(argv)
    out, err = capsys.readouterr()
    return status, out, err


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    status, out, err = run(capsys, *argv)
    assert (status, out) == (1, "")
    (line,) = [line for line in err.splitlines() if not line.startswith("checking ")]
    assert line.startswith("expertfleet: error: ")
    return line


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"expertfleet {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["serve", "--no-such-flag"]])
def test_a_wrong_command_line_is_status_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: expertfleet" in capsys.readouterr().err


def test_a_shared_directory_completes_the_model_s(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = Path(shutil.copytree(tiny, tmp_path / "part"))
    next(part.glob("*.safetensors")).unlink()
    status, _, err = run(capsys, "serve", str(part), "--dry-run")
    assert status == 1
    assert "which does not exist in" in err
    whole, shared = (
        yaml.safe_load(run(capsys, "serve", *words, "--dry-run")[1])
        for words in ((str(tiny),), (str(part), "--shared-model", str(tiny)))
    )
    assert shared["plan"] == whole["plan"]


def test_dry_run_prints_settings_and_plan_with_secrets_masked(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["serve", str(tiny), "--dry-run", "--expert-shards", "5", "--api-key", "hunter2"]
    status, out, _ = run(capsys, *argv)
    assert status == 0
    assert "hunter2" not in out
    shown = yaml.safe_load(out)
    assert shown["settings"]["expert_shards"] == 5
    assert [worker["experts"] for worker in shown["plan"]["workers"]] == [0, 39, 39, 38, 38, 38]


def test_settings_come_from_file_environment_and_flags(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(f"model: {tiny}\nport: 1111\nexpert-shards: 3\nreplicas: 2\n")
    monkeypatch.setenv("EXPERTFLEET_PORT", "2222")
    status, out, _ = run(capsys, "serve", "--config", str(file), "--replicas", "3", "--dry-run")
    settings = yaml.safe_load(out)["settings"]
    assert status == 0
    assert (settings["port"], settings["expert_shards"], settings["replicas"]) == (2222, 3, 3)
    file.write_text(f"model: {tiny}\nport: 70000\n")
    monkeypatch.setenv("EXPERTFLEET_PORT", "65536")
    assert "EXPERTFLEET_PORT: 65536 is not within 0 to 65535" in error_of(capsys, "serve", "--config", str(file))
    monkeypatch.delenv("EXPERTFLEET_PORT")
    assert f"--config {file}: port: 70000 is not within 0 to 65535" in error_of(capsys, "serve", "--config", str(file))
    file.write_text("modle: x\n")
    assert "unknown setting 'modle' (did you mean 'model'?)" in error_of(capsys, "serve", "--config", str(file))


def test_user_errors_are_one_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing: --model" in error_of(capsys, "serve")
    assert "model: /no/such is not a directory" in error_of(capsys, "serve", "/no/such")
    assert "--replicas: 9 is not within 1 to 2" in error_of(capsys, "serve", str(tiny), "--replicas", "9")
    assert "too little memory" in error_of(capsys, "serve", str(tiny), "--cache-gib", "9999")
    assert "memory_gib: " in error_of(capsys, "serve", str(tiny), "--memory-gib", "0.001")
    for number in ("nan", "inf", "0", "-1"):
        assert error_of(capsys, "scale", "--replicas", number).startswith("expertfleet: error: replicas: ")
    assert "wait_s: nan is not within" in error_of(capsys, "scale", "--replicas", "1", "--wait-s", "nan")
    assert "wait_s: -1 is not within" in error_of(capsys, "drain", "expert-1", "--wait-s=-1")
    assert "does not answer" in error_of(capsys, "status", "--url", "http://127.0.0.1:9")
    assert "does not answer" in error_of(capsys, "chat", "--url", "http://127.0.0.1:9")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "a-machine"])
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_an_api_open_to_strangers_wants_a_key_or_the_wish_before_anything_starts(
    tiny: Path, capsys: pytest.CaptureFixture[str], host: str, more: tuple[str, ...]
) -> None:
    said = error_of(capsys, "serve", str(tiny), "--host", host, *more)
    assert said.startswith(f"expertfleet: error: --host: {host} can be reached by strangers")
    assert "--api-key-file" in said
    assert "--open" in said
    with_both = error_of(capsys, "serve", str(tiny), "--host", host, "--open", "--api-key", "secret", *more)
    assert "open: true serves whoever comes" in with_both


@pytest.mark.parametrize(
    "words",
    [("--attention-workers", "500"), ("--expert-shards", "1000"), ("--memory-gib", "0.001"), ("--cache-gib", "9999")],
)
def test_a_dry_run_says_no_where_serve_does(
    words: tuple[str, ...], tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_figures(line: str) -> str:
        return re.sub(r"[0-9.]+", "", line)

    told = [error_of(capsys, "serve", str(tiny), *words, *more) for more in ((), ("--dry-run",))]
    assert without_figures(told[0]) == without_figures(told[1])


def test_a_damaged_checkpoint_names_file_and_tensor_before_anything_starts(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    index = broken / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    name, file = next((name, file) for name, file in document["weight_map"].items() if "experts.3." in name)
    path = broken / file
    path.write_bytes(path.read_bytes()[:-64])
    assert file in error_of(capsys, "serve", str(broken))
    shutil.copy(tiny / file, path)
    document["weight_map"][name] = "not-there.safetensors"
    index.write_text(json.dumps(document))
    assert "not-there.safetensors" in error_of(capsys, "serve", str(broken))


@pytest.mark.parametrize(
    ("file", "document", "problem"),
    [
        ("generation_config.json", {"eos_token_id": 2048}, "eos_token_id: 2048 must be below vocab_size, 2048"),
        ("generation_config.json", {"repetition_penalty": 0}, "repetition_penalty: 0 is out of range"),
        ("tokenizer_config.json", {}, "added_tokens_decoder: missing"),
    ],
)
def test_what_no_request_could_be_served_with_is_named_before_anything_starts(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, document: object, problem: str
) -> None:
    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    (broken / file).write_text(json.dumps(document))
    assert error_of(capsys, "serve", str(broken)).startswith(f"expertfleet: error: {broken / file}: {problem}")
    assert run(capsys, "checkpoint", "check", str(broken))[0] == 1


def test_checkpoint_verbs_are_part_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "checkpoint", "make-tiny", str(tmp_path / "m"), "--seed", "5")
    assert status == 0
    assert "random" in out


HELPS = [
    *([name] for name in ("serve", "head", "gateway", "status", "scale", "drain", "chat")),
    *(["node", role] for role in ("attention", "expert")),
    *(["checkpoint", verb] for verb in ("make-tiny", "check", "pull")),
]


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_help_has_80_columns_on_every_terminal(
    command: list[str], columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = help_of(capsys, *command)
    assert shown.startswith(f"usage: expertfleet {' '.join(command)} ")
    assert 50 < max(map(len, shown.splitlines())) <= 80


def test_help_of_serve_is_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(capsys, "serve")
    titles = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    groups = ["model:", "workers:", "memory:", "network:", "limits:", "failure:"]
    assert titles == ["positional arguments:", "options:", *groups]


@pytest.mark.parametrize("command", [[], ["serve"], ["gateway"], ["head"], ["scale"]], ids=" ".join)
def test_help_imports_neither_torch_nor_ray(command: list[str]) -> None:
    heavy = ("torch", "ray", "transformers", *(() if command else ("grpc", "numpy", "httpx", "yaml")))
    code = (
        "import sys\nfrom expertfleet.cluster.__main__ import main\n"
        f"try: main({[*command, '--help']})\n"
        f"except SystemExit: print([name for name in {heavy} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
