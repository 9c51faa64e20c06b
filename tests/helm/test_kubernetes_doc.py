"""Every fenced block of docs/kubernetes.md is used as it stands.

Commands run in the page's order, once with each Helm and its kubectl: these are real and talk to a fake API server; `expertfleet`, curl and
Python talk to a live fleet of this machine, whose shards come and go with the StatefulSet's number. Two are compared instead of run:
docker's, as there is no engine here, with the Dockerfile's targets and the images that the chart pulls, and `kubectl port-forward`,
as the fake has no pods to reach, with the pods' ports; the live fleet's ports stand for the forwarded ones.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fleet_chart as chart
import pytest
from fake_cluster import FakeCluster
from local_fleet import LocalFleet

DOC = chart.ROOT / "docs" / "kubernetes.md"
NODES = ("strong-1", "gpu-1", *(f"cpu-{number}" for number in range(1, 7)))
LANGUAGES = ("sh", "yaml", "python", "text")
EXPERTS = "fleet-expertfleet-expert"
COMMAND_S = 400


@dataclass(frozen=True)
class Block:
    language: str
    line: int
    text: str


def blocks() -> list[Block]:
    found, begun = [], None
    for number, line in enumerate(DOC.read_text().splitlines(), 1):
        if line.startswith("```") and begun is None:
            begun = (line.removeprefix("```"), number, list[str]())
        elif line == "```" and begun is not None:
            found.append(Block(begun[0], begun[1], "\n".join(begun[2])))
            begun = None
        elif begun is not None:
            begun[2].append(line)
    assert begun is None, "the last fence is open"
    return found


def commands() -> list[tuple[int, str]]:
    """(line, command) of everything that is typed into a shell."""
    listed = [(block.line, block.text) for block in blocks() if block.language == "sh"]
    return [(line + at, one) for line, text in listed for at, one in enumerate(text.splitlines(), 1) if one.strip()]


class Stage:
    """A folder with the page's files, a fake cluster, and one version's binaries first on PATH."""

    def __init__(self, version: str, folder: Path) -> None:
        self.version, self.folder = version, folder
        self.cluster = FakeCluster()
        self.cluster.write_kubeconfig(folder / "kubeconfig")
        for name in NODES:
            self.cluster.add({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        for name in ("helm", "benchmarks"):
            (folder / name).symlink_to(chart.ROOT / name)
        for name, _, text in values_files():
            (folder / name).write_text(text)
        tools = folder / "bin"
        tools.mkdir()
        for name, words in (("expertfleet", "-m expertfleet.cluster"), ("python", "")):
            (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
            (tools / name).chmod(0o755)
        paths = (tools, chart.BINARIES / version, os.environ["PATH"])
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("EXPERTFLEET_", "HELM_"))},
            "PATH": ":".join(map(str, paths)),
            "KUBECONFIG": str(folder / "kubeconfig"),
            "HOME": str(folder / "home"),
        }

    def run(self, *words: str) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
        assert done.returncode == 0, f"{words[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def values_files() -> list[tuple[str, str, str]]:
    """(name, the preset that it goes over, text): a block's first line says both."""
    found = []
    for block in blocks():
        if block.language == "yaml":
            named = re.fullmatch(r"# (\S+\.yaml), over values-(\S+)\.yaml", block.text.splitlines()[0])
            assert named is not None, (
                f"line {block.line}: the first line does not say '# NAME, over values-PRESET.yaml'"
            )
            found.append((named[1], named[2], block.text))
    return found


def rewritten(command: str, fleet: LocalFleet) -> str:
    return command.replace("http://127.0.0.1:8000", fleet.url).replace("http://127.0.0.1:8001", fleet.admin_url)


def check_docker(words: list[str]) -> None:
    image = re.compile(r"registry\.example\.com/expertfleet:(?P<tag>[\d.]+)-(?P<target>cpu|cuda)")
    if words[1] == "build":
        _, _, flag, target, tag, name, context = words
        assert (flag, tag, context) == ("--target", "-t", ".")
        assert re.search(rf"^FROM \S+ AS {target}$", (chart.ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert (found := image.fullmatch(name)) is not None
        assert found["target"] == target
    else:
        assert words[1] == "push"
        assert (found := image.fullmatch(words[2])) is not None
        assert f"docker build --target {found['target']} -t {words[2]} ." in [command for _, command in commands()]
    values = {"image": {"repository": "registry.example.com/expertfleet"}}
    pulled = {container["image"] for _, container in chart.containers(chart.render("k2-hybrid", values))}
    assert found[0] in pulled


def check_port_forward(words: list[str], cluster: FakeCluster) -> None:
    _, flag, namespace, verb, target, *ports = words
    assert (flag, verb) == ("-n", "port-forward")
    kind, _, name = target.partition("/")
    assert kind == "deployment"
    (container,) = cluster.get("Deployment", namespace, name)["spec"]["template"]["spec"]["containers"]
    assert {int(port) for port in ports} <= {port["containerPort"] for port in container["ports"]}


def run_command(stage: Stage, command: str, fleet: LocalFleet | None) -> str | None:
    """What it printed; None where there is nothing to run it against. What is not known here fails."""
    words = shlex.split(command)
    assert not {"|", "&&", "||", ";", "&"} & set(words), f"{command}: one command a line"
    match words[0], words[-1], words:
        case "docker", _, _:
            check_docker(words)
            return None
        case "kubectl", _, _ if "port-forward" in words:
            check_port_forward(words, stage.cluster)
            return None
        case "helm" | "kubectl", _, _:
            return stage.run("bash", "-ec", command)
        case "python", "benchmarks/size_fleet.py", _:
            return stage.run("bash", "-ec", command)
        case "expertfleet" | "curl", _, _:
            return stage.run("bash", "-ec", rewritten(command, fleet)) if fleet is not None else None
    raise AssertionError(f"this test does not know how to run {command}")


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    local = LocalFleet(num_shards=2)
    try:
        local.wait_ready()
        yield local
    finally:
        local.end()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, fleet: LocalFleet) -> Iterator[Stage]:
    made = Stage("4", tmp_path_factory.mktemp("stage"))
    made.cluster.on_scale = lambda name, replicas: fleet.scale(replicas) if name == EXPERTS else None
    yield made
    made.cluster.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("line", "command"), commands(), ids=[f"line {line}" for line, _ in commands()])
def test_a_command_does_what_it_is_there_for(stage: Stage, fleet: LocalFleet, line: int, command: str) -> None:
    said = run_command(stage, command, fleet)
    assert not stage.cluster.unknown, line
    if command.startswith("curl"):
        assert said is not None
        assert '"role":"assistant"' in said.replace(" ", "")
    if command.startswith("expertfleet status"):
        assert said is not None
        assert "expert-1" in said
    if command.startswith("expertfleet scale"):
        assert said is not None
        wanted = int(command.split("--expert-shards ")[1].split()[0])
        assert f"{EXPERTS} scaled" in said
        assert f"done: {wanted + 1} workers" in said
        assert stage.cluster.get("StatefulSet", "serving", EXPERTS)["spec"]["replicas"] == wanted
    if command.startswith("python"):
        assert said == "".join(f"{block.text}\n" for block in blocks() if block.language == "text")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "block", [each for each in blocks() if each.language == "python"], ids=lambda block: block.line
)
def test_python_gets_an_answer(stage: Stage, fleet: LocalFleet, block: Block) -> None:
    assert stage.run(sys.executable, "-c", rewritten(block.text, fleet)).strip()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_helm_3_and_its_kubectl_do_the_same(tmp_path: Path) -> None:
    stage = Stage("3", tmp_path)
    numbers = []
    stage.cluster.on_scale = lambda name, replicas: numbers.append(replicas) if name == EXPERTS else None
    try:
        for line, command in commands():
            if command.startswith("expertfleet scale"):
                continue  # it would scale a fleet that is not this cluster's
            run_command(stage, command, None)
            assert not stage.cluster.unknown, line
    finally:
        stage.cluster.close()
    assert numbers == [3], "the upgrades after scaling by hand say the number that there is"


@pytest.mark.parametrize("version", chart.HELMS)
@pytest.mark.parametrize(("name", "preset", "text"), values_files(), ids=[name for name, _, _ in values_files()])
def test_values_render_over_their_preset(version: str, name: str, preset: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    done = chart.template(version, preset, None, "--values", str(tmp_path / name))
    assert done.returncode == 0, done.stderr


def test_every_block_is_of_a_kind_that_is_used() -> None:
    assert {block.language for block in blocks()} == set(LANGUAGES)
    assert len(commands()) > 25
    assert len([block for block in blocks() if block.language == "text"]) == 1


def test_a_command_that_nobody_knows_fails(tmp_path: Path) -> None:
    stage = Stage("4", tmp_path)
    try:
        with pytest.raises(AssertionError, match="does not know how to run terraform apply"):
            run_command(stage, "terraform apply", None)
        with pytest.raises(AssertionError, match="namespaces"):
            run_command(stage, "kubectl -n nowhere scale statefulset fleet --replicas=2", None)
    finally:
        stage.cluster.close()


def test_names_in_the_text_are_those_that_the_chart_makes() -> None:
    objects = [*chart.render("demo"), *chart.render("k2-hybrid", {"fullnameOverride": "k2-expertfleet"})]
    made = {thing["metadata"]["name"] for thing in objects}
    named = set(re.findall(r"\b(?:fleet|k2)-expertfleet-[a-z-]*[a-z]\b", DOC.read_text()))
    assert len(named) > 5
    assert named - {"fleet-expertfleet-model"} <= made, "a pull's volume, which neither release here has"
