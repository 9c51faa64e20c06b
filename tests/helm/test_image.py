"""The image's recipe keeps to what the chart needs of it, and its own steps make a package that starts.

No engine builds images here: the Dockerfile is read and linted, and what it does to this repository is done in an empty folder.
test_processes.py runs the chart's commands from there.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import fleet_chart as chart
import pytest
import torch
from fleet_process import RoleProcess, plain_environment
from image import entry_point, instructions, is_ignored, run_step, stages, tracked, whole

from expertfleet.demo.bundled import NANO_K2

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


def test_a_linter_finds_nothing(tmp_path: Path) -> None:
    hadolint = str(Path(sys.executable).with_name("hadolint"))
    done = subprocess.run(
        [hadolint, "--no-color", str(chart.ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp\n")
    careless = subprocess.run([hadolint, str(tmp_path / "Dockerfile")], capture_output=True, text=True, check=False)
    assert careless.returncode != 0
    assert "DL3006" in careless.stdout


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
def test_it_starts_as_the_user_that_the_chart_names(target: str) -> None:
    words = whole(target)
    assert [rest for word, rest in words if word == "ENTRYPOINT"] == ['["expertfleet"]']
    assert words[-1] == ("USER", "10001:10001")
    (user,) = {pod["spec"]["securityContext"]["runAsUser"] for _, pod in chart.pods(chart.render())}
    assert user == 10001


def test_the_targets_differ_in_packages_and_tritons_compiler_alone() -> None:
    def own(target: str) -> set[tuple[str, str]]:
        return {(word, rest.replace(f"packages-{target}", "packages")) for word, rest in stages()[target][1:]}

    more = own("cuda") - own("cpu")
    assert not own("cpu") - own("cuda")
    assert sorted(word for word, _ in more) == ["ENV", "RUN"]
    assert any("gcc" in rest for word, rest in more if word == "RUN")


def test_nothing_is_fetched_by_address_and_nothing_is_left_behind() -> None:
    assert not [rest for word, rest in instructions() if word == "ADD"]
    for word, rest in instructions():
        if word == "RUN":
            assert "curl" not in rest
            assert "wget" not in rest
            assert ("apt-get install" in rest) == ("rm -rf /var/lib/apt/lists/*" in rest)
            num_installs = len(re.findall(r"\bpip (?:--python \S+ )?(?:install|wheel) ", rest))
            assert num_installs == rest.count("--no-cache-dir")


@pytest.mark.parametrize("target", TARGETS)
def test_the_final_layers_hold_no_compiler_but_tritons(target: str) -> None:
    installed = [rest for word, rest in whole(target) if word == "RUN" and "apt-get install" in rest]
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


def test_each_target_installs_what_the_package_declares(tmp_path: Path) -> None:
    shutil.copyfile(chart.ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (listing,) = (rest for word, rest in stages()["wanted"] if word == "RUN")
    run_step(listing, tmp_path)
    declared = tomllib.loads((chart.ROOT / "pyproject.toml").read_text())["project"]
    assert (tmp_path / "cpu.txt").read_text().splitlines() == declared["dependencies"]
    gpu = declared["optional-dependencies"]["gpu"]
    assert (tmp_path / "cuda.txt").read_text().splitlines() == [*declared["dependencies"], *gpu]


@pytest.mark.parametrize("target", TARGETS)
def test_the_constraints_hold_every_package_of_a_target(target: str, tmp_path: Path) -> None:
    """pip resolves what the step would install, and finds it here already, in the very versions of the constraints."""
    shutil.copyfile(chart.ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    shutil.copyfile(chart.ROOT / "constraints.txt", tmp_path / "constraints.txt")
    (listing,) = (rest for word, rest in stages()["wanted"] if word == "RUN")
    run_step(listing, tmp_path)
    (install,) = (rest for word, rest in stages()[f"packages-{target}"] if word == "RUN" and f"-r {target}.txt" in rest)
    (flags,) = re.findall(r"pip install --no-cache-dir (.*)$", install)
    words = ["-m", "pip", "install", "--dry-run", "--no-index", "--disable-pip-version-check", *flags.split()]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout
    resolved = {re.sub(r"[._]", "-", name).lower() for name in re.findall(r"satisfied: ([\w.-]+)", done.stdout)}
    pinned = re.findall(r"^([\w.-]+)==", (chart.ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert len(resolved) > 30
    assert resolved <= {re.sub(r"[._]", "-", name).lower() for name in pinned}


def test_pytorchs_cpu_build_is_of_the_version_that_the_constraints_name() -> None:
    (install,) = (rest for word, rest in stages()["packages-cpu"] if word == "RUN" and "sed" in rest)
    (sed,) = re.findall(r"\$\((sed .*?)\)", install)
    wanted = subprocess.run(["bash", "-c", sed], cwd=chart.ROOT, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+\+cpu\n", wanted)


def run(opt: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EXPERTFLEET_")}
    return subprocess.run(
        [*entry_point(opt), *words], cwd="/", env=environ, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_the_packages_own_steps_make_a_command_that_starts(opt: Path) -> None:
    (site,) = opt.glob("venv/lib/python3.*/site-packages")
    assert list((site / "expertfleet" / "kernels").glob("native_library*.so"))
    assert list((site / "expertfleet" / "checkpoint").glob("*.jinja"))
    for command in COMMANDS:
        done = run(opt, *command.split(), "--help")
        assert done.returncode == 0, done.stderr
        assert f"expertfleet {command}" in done.stdout


@pytest.mark.slow
def test_the_bundled_model_lies_where_the_chart_says(opt: Path) -> None:
    told = {
        argument.removeprefix("--model=")
        for _, container in chart.containers(chart.render())
        for argument in container["args"]
        if argument.startswith("--model=")
    }
    assert told == {"/opt/expertfleet/nano-k2"}
    bundled = opt / "expertfleet" / "nano-k2"
    assert {path.name for path in bundled.iterdir()} == {path.name for path in NANO_K2.iterdir()}


@pytest.mark.slow
def test_a_shard_of_the_cuda_target_says_that_there_is_no_gpu(opt: Path) -> None:
    """As far as it starts on a machine without one, with its own command instead of a node's, which would wait for a head."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (group,) = (name for name, _ in chart.containers(chart.render("k2-hybrid")) if name.endswith("-gpu/expert"))
    container = dict(chart.containers(chart.render("k2-hybrid")))[group]
    assert "--device=cuda" in container["args"]
    python = entry_point(opt)[0]
    words = ("--seat=expert-100", f"--model={opt}/expertfleet/nano-k2", "--port=0", "--threads=1", "--device=cuda")
    shard = RoleProcess([python, "-m", "expertfleet.expert_workers", *words], plain_environment(os.environ))
    shard.wait_for("device: 'cuda' is wanted, but")
    assert shard.end() == 0
