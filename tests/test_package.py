"""The package holds every room, its version is the changelog's, and imports run one way."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import expertfleet

ROOT = Path(__file__).parents[1]
ROOMS = {
    "proto": set(),
    "transport": {"proto"},
    "settings": set(),
    "checkpoint": {"proto"},
    "kernels": {"proto"},
    "membership": {"proto", "settings", "transport"},
    "router": {"kernels", "membership", "checkpoint", "proto", "transport"},
    "expert_workers": {"router", "kernels", "membership", "checkpoint", "proto", "transport", "settings"},
    "attention_workers": {"router", "kernels", "membership", "checkpoint", "proto", "transport", "settings"},
    "gateway": {"checkpoint", "membership", "proto", "settings"},
    "cluster": {
        *("gateway", "attention_workers", "expert_workers", "router", "membership", "checkpoint", "proto", "settings"),
    },
    "demo": {"cluster", "checkpoint", "kernels"},
}
# Within a room: what each folder of it may import of its sisters.
SUB_ROOMS = {
    "cluster/controller": set(),
    "cluster/ray": {"controller"},
    "cluster/commands": {"controller", "ray"},
    "gateway/http": set(),
    "gateway/access": set(),
    "gateway/events": set(),
    "gateway/engine": {"http", "events"},
    "gateway/openai": {"http", "events", "engine"},
    "router/placement": set(),
    "router/lanes": set(),
    "router/dispatch": {"lanes"},
}


def tracked(pattern: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listed.splitlines()]


def test_every_package_is_in_the_wheel() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [".".join(("expertfleet", *path.parent.parts)) for path in tracked("*__init__.py")]
    assert sorted(declared) == sorted(found)


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == expertfleet.__version__


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_imports_run_one_way(room: str) -> None:
    for path in tracked(f"{room}/*.py"):
        if "generated" in path.parts:
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == len(path.parts) and node.module:
                other = node.module.split(".")[0]
                assert other in ROOMS[room] | {"__version__"}, f"{path} imports {other}"


@pytest.mark.parametrize("room", sorted(SUB_ROOMS))
def test_imports_within_a_room_run_one_way(room: str) -> None:
    parent, own = room.split("/")
    sisters = {name.split("/")[1] for name in SUB_ROOMS if name.startswith(f"{parent}/")} - {own}
    for path in tracked(f"{room}/*.py"):
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
                other = node.module.split(".")[0]
                assert other not in sisters - SUB_ROOMS[room], f"{path} imports {other}"


def test_the_readme_has_a_caption_for_every_folder() -> None:
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    folders = {path.parts[0] for path in tracked("*") if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    captions = set(re.findall(r"^    (\w+)/ ", tree, re.MULTILINE))
    assert folders == captions
