"""The image's recipe keeps to what the chart needs of it, and its own steps make a package that starts.

No engine builds images here: the Dockerfile is read, and what it does to this repository is done in an empty folder.
"""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import fleet_chart as chart
import pytest

RECIPE = (chart.ROOT / "Dockerfile").read_text()
TARGETS = ("cpu", "cuda")
COMMANDS = (
    "serve",
    "head",
    "node expert",
    "node attention",
    "gateway",
    "status",
    "scale",
    "drain",
    "chat",
    "checkpoint pull",
)
Instruction = tuple[str, str]


def instructions() -> Iterator[Instruction]:
    """(word, rest) of each instruction, continued lines joined and comments dropped."""
    lines = "\n".join(line for line in RECIPE.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest


def stages() -> dict[str, list[Instruction]]:
    found: dict[str, list[Instruction]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split(" AS ")[1]] = []
        if found:
            found[list(found)[-1]].append((word, rest))
    return found


def is_ignored(path: Path) -> bool:
    """By .dockerignore: the last line that fits the path, or a folder above it, decides."""
    ignored = False
    for line in (chart.ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        for place in (path, *path.parents):
            tail = place.name if "**/" in line else str(place)
            if place != Path() and fnmatch.fnmatchcase(tail, pattern):
                ignored = not line.startswith("!")
    return ignored


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=chart.ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in listed.stdout.splitlines()]


def test_both_targets_are_there() -> None:
    assert set(TARGETS) <= set(stages())


def test_what_it_builds_on_is_pinned() -> None:
    (python,) = (rest for word, rest in instructions() if word == "ARG")
    assert re.fullmatch(r"PYTHON=\d+\.\d+\.\d+-slim-\w+", python)
    known = stages()
    for word, rest in instructions():
        if word == "FROM":
            base = rest.split(" AS ")[0]
            assert base == "python:${PYTHON}" or base in known
    for stage in known.values():
        for word, rest in stage:
            for install in re.findall(r"pip install [^&]*", rest if word == "RUN" else ""):
                assert "-c constraints.txt" in install or "--no-deps /wheels/" in install, install


def test_it_resolves_with_the_python_that_the_constraints_are_for() -> None:
    (python,) = (rest for word, rest in instructions() if word == "ARG")
    wanted = tomllib.loads((chart.ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == ">=" + ".".join(python.removeprefix("PYTHON=").split(".")[:2])


@pytest.mark.parametrize("target", TARGETS)
def test_it_ends_as_the_user_that_the_chart_names(target: str) -> None:
    words = stages()[target]
    assert words[-2] == ("USER", "10001:10001")
    assert words[-1] == ("ENTRYPOINT", '["expertfleet"]')
    (user,) = {pod["spec"]["securityContext"]["runAsUser"] for _, pod in chart.pods(chart.render())}
    assert user == 10001


def test_nothing_is_fetched_by_address_and_nothing_is_left_behind() -> None:
    assert not [rest for word, rest in instructions() if word == "ADD"]
    for word, rest in instructions():
        if word == "RUN":
            assert "curl" not in rest
            assert "wget" not in rest
            assert ("apt-get install" in rest) == ("rm -rf /var/lib/apt/lists/*" in rest)
            assert rest.count("pip install") + rest.count("pip wheel") == rest.count("--no-cache-dir")


@pytest.mark.parametrize("target", TARGETS)
def test_the_final_layers_hold_no_compiler_but_tritons(target: str) -> None:
    installed = [rest for word, rest in stages()[target] if word == "RUN" and "apt-get install" in rest]
    assert len(installed) == (1 if target == "cuda" else 0)


def test_every_source_of_a_copy_exists_and_is_not_ignored() -> None:
    sources = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    ]
    assert {"constraints.txt", "pyproject.toml", "."} <= set(sources)
    for source in sources:
        assert (chart.ROOT / source).exists()
        assert source == "." or not is_ignored(Path(source))


def test_what_is_copied_between_stages_is_made_there() -> None:
    known = stages()
    for word, rest in instructions():
        for stage, path in re.findall(r"--from=(\S+) (\S+)", rest) if word == "COPY" else ():
            made = [
                name for kind, text in known[stage] if kind == "RUN" for name in (path, Path(path).name) if name in text
            ]
            assert made, rest


def test_the_context_is_the_package_and_nothing_else() -> None:
    declared = tomllib.loads((chart.ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {name.split(".")[1] for name in declared if "." in name}
    kept = {path for path in tracked() if not is_ignored(path)}
    assert {path.parts[0] for path in kept if len(path.parts) > 1} == rooms
    assert {str(path) for path in kept if len(path.parts) == 1} == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "__init__.py"),
    }
    for unwanted in (
        "tests/conftest.py",
        ".venv/bin/python",
        ".git/config",
        "kernels/a.so",
        "router/__pycache__/a.pyc",
    ):
        assert is_ignored(Path(unwanted)), unwanted


def test_the_bundled_model_lies_where_the_chart_says() -> None:
    told = {
        argument.removeprefix("--model=")
        for _, container in chart.containers(chart.render())
        for argument in container["args"]
        if argument.startswith("--model=")
    }
    assert told == {"/opt/expertfleet/nano-k2"}
    for target in TARGETS:
        (made,) = (rest for word, rest in stages()[target] if word == "RUN" and "ln -s" in rest)
        assert made.endswith(*told)


def test_each_target_installs_what_the_package_declares(tmp_path: Path) -> None:
    shutil.copyfile(chart.ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (listing,) = (rest for word, rest in stages()["wanted"] if word == "RUN")
    run_step(listing, tmp_path)
    declared = tomllib.loads((chart.ROOT / "pyproject.toml").read_text())["project"]
    assert (tmp_path / "cpu.txt").read_text().splitlines() == declared["dependencies"]
    gpu = declared["optional-dependencies"]["gpu"]
    assert (tmp_path / "cuda.txt").read_text().splitlines() == [*declared["dependencies"], *gpu]


def test_pytorchs_cpu_build_is_of_the_version_that_the_constraints_name() -> None:
    (install,) = (rest for word, rest in stages()["packages-cpu"] if word == "RUN" and "sed" in rest)
    (sed,) = re.findall(r"\$\((sed .*?)\)", install)
    wanted = subprocess.run(["bash", "-c", sed], cwd=chart.ROOT, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+\+cpu\n", wanted)


def run_step(script: str, folder: Path) -> None:
    """A RUN of the recipe, with this Python."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", script], cwd=folder, env={**os.environ, "PATH": path}, check=True, timeout=280)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as the image's steps make it from its context alone."""
    context = tmp_path_factory.mktemp("context")
    for path in tracked():
        if not is_ignored(path):
            (context / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(chart.ROOT / path, context / path)
    (build,) = (rest for word, rest in stages()["wheel"] if word == "RUN" and "pip wheel" in rest)
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    script = build.replace("/wheels", str(wheels)).replace("pip wheel", "python -m pip wheel -q")
    run_step(script, context)
    (wheel,) = wheels.glob("*.whl")
    shutil.unpack_archive(wheel, site, "zip")
    return site


@pytest.mark.slow
def test_the_packages_own_steps_make_a_command_that_starts(installed: Path) -> None:
    assert list((installed / "expertfleet" / "kernels").glob("cpu_experts*.so"))
    assert (installed / "expertfleet" / "demo" / "nano-k2" / "config.json").exists()
    assert list((installed / "expertfleet" / "checkpoint").glob("*.jinja"))
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "expertfleet.cluster", *command.split(), "--help"],
            cwd=installed,
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"expertfleet {command}" in done.stdout
