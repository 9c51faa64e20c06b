"""Benchmarks that set up shards of their own still do: each runs in a tiny size and prints the lines that it promises."""

import subprocess
import sys
from pathlib import Path

import pytest

from expertfleet.checkpoint.make_tiny import make_tiny

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
_WITHIN_S = 120


def run(bench: str, *flags: object, may_fail: bool = False) -> list[list[str]]:
    """The cells of its lines, without the head; a bench that judges ends with 1 where too few were asked of it."""
    command = [sys.executable, _BENCHMARKS / f"{bench}.py", *map(str, flags)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
    assert ended.returncode in (0, int(may_fail)), ended.stderr
    return [line.split(",") for line in ended.stdout.splitlines()[1:]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "model"
    make_tiny(folder, hidden=256, layers=2, experts=8, expert_width=64, dense_width=64, vocab=512)
    return folder


def test_lanes_of_every_kind_are_timed() -> None:
    flags = ("--hidden", 256, "--experts", 8, "--layers", 2, "--rounds", 1)
    lines = run("bench_lanes", "--tokens", 1, 2, "--shards", 1, *flags)
    assert [line[:3] for line in lines] == [
        [kind, tokens, "1"] for tokens in ("1", "2") for kind in ("local", "tcp", "grpc", "raw", "bare")
    ]


def test_shards_are_asked_free_and_asleep() -> None:
    flags = ("--hidden", 256, "--experts", 8, "--micro-batch", 2, "--processes", 1, "--us-per-expert", 10)
    counts = ("--lanes", 2, "--shards", 1, "--layers", 2, "--layers-per-shard", 2, "--rounds", 1)
    lines = run("bench_scaling", "--tokens", 1, *counts, *flags)
    assert [line[:3] for line in lines] == [
        [experts, kind, count]
        for experts, count in (("free", "2"), ("asleep", "1"))
        for kind in ("local", "tcp", "grpc")
    ]


def test_two_kinds_of_weights_are_compared() -> None:
    (line,) = run("bench_shard", "--hidden", 256, "--expert-width", 64, "--experts", 8, "--tokens", 1, "--calls", 1)
    assert line[:2] == ["1", "1"]


def test_a_slice_is_measured(model: Path) -> None:
    lines = run("bench_slice", "--model", model, "--shards", 1, "--tokens", 1, "--calls", 1, "--load-rounds", 0)
    assert {line[0] for line in lines} > {"gate_us", "dispatch_us", "wait_us", "combine_us", "memory"}


def test_loading_is_measured(model: Path) -> None:
    (line,) = run("bench_loading", "--model", model, "--readers", 1, "--rounds", 1)
    assert line[:2] == ["0", "1"]


def test_frames_are_soaked() -> None:
    lines = run("soak_frames", "--frames", 1000, "--processes", 1, "--seed", 1, may_fail=True)
    assert [line[:3] for line in lines] == [["whole", "1", "1000"], ["mutated", "1", "1000"]]
