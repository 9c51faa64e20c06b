"""Flags are grouped, common ones first, and their help says the default as a user writes it."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from expertfleet.settings.flags import add_flags
from expertfleet.settings.option import Settings, option


@dataclass(frozen=True)
class Config(Settings):
    model: Path = option(help="where it lies", group="model")
    wait_s: float = option(30.0, "seconds, 100 % of them", group="failure")
    threads: int | None = option(None, "threads", group="workers")
    dtype: Literal["bfloat16", "float32"] = option("bfloat16", "of activations", group="workers", common=True)
    names: tuple[str, ...] = option((), "names", group="model", common=True)
    quiet: bool = option(True, "say little", group="network")
    loud: bool = option(False, "say much", group="network", common=True)


@dataclass(frozen=True)
class Beside(Settings):
    retries: int = option(2, "tries", group="failure", common=True)


@pytest.fixture
def shown() -> str:
    parser = argparse.ArgumentParser(prog="it")
    add_flags(parser, Beside, Config, positional="MODEL")
    return parser.format_help()


def test_groups_of_all_configurations_come_in_one_order_and_empty_ones_are_left_out(shown: str) -> None:
    titles = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["options:", "model:", "workers:", "network:", "failure:"]
    assert shown.startswith("usage: it [OPTION ...] MODEL\n")


def test_common_options_come_first(shown: str) -> None:
    flags = [line.split()[0].rstrip(",") for line in shown.splitlines() if line.startswith("  --")]
    assert flags == ["--names", "--model", "--dtype", "--threads", "--loud", "--quiet", "--retries", "--wait-s"]


@pytest.mark.parametrize(
    "line",
    [
        "--model PATH where it lies (required)",
        "--wait-s N seconds, 100 % of them (default: 30)",
        "--threads N threads",
        "--dtype bfloat16|float32 of activations (default: bfloat16)",
        "--names TEXT [TEXT ...] names",
        "--quiet, --no-quiet say little (default: yes)",
        "--loud, --no-loud say much (default: no)",
    ],
)
def test_help_names_value_and_default_in_plain_words(shown: str, line: str) -> None:
    words = " ".join(shown.split())
    assert f" {line} " in f"{words} "


@pytest.mark.parametrize("columns", ["30", "200"])
def test_help_is_the_same_on_every_terminal(shown: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    parser = argparse.ArgumentParser(prog="it")
    add_flags(parser, Beside, Config, positional="MODEL")
    assert parser.format_help() == shown
    assert max(map(len, shown.splitlines())) <= 80
