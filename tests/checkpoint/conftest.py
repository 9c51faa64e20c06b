"""A generated checkpoint shared by all tests of the folder, and copies of it to damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only: a small checkpoint with two MoE layers."""
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    make_tiny(directory, seed=7, hidden=64, layers=3, experts=8, top_k=2, expert_width=32, dense_width=64, threads=2)
    return directory


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.from_dir(tiny)


@pytest.fixture(scope="session")
def config_data(tiny: Path) -> Callable[[], dict[str, Any]]:
    """A fresh ``config.json`` as a dict to change."""
    return lambda: json.loads((tiny / "config.json").read_text())
