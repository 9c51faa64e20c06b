"""The Dockerfile read, and its steps for the package itself done in an empty folder: what an image has under /opt.

Knows nothing of engines. The packages that the package needs are this environment's, as the image's would take minutes to fetch.
"""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
Instruction = tuple[str, str]


def instructions() -> Iterator[Instruction]:
    """(word, rest) of each instruction, continued lines joined and comments dropped."""
    recipe = (ROOT / "Dockerfile").read_text()
    lines = "\n".join(line for line in recipe.splitlines() if not line.lstrip().startswith("#"))
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


def whole(target: str) -> list[Instruction]:
    """A stage with what it has from the one that it begins with."""
    known = stages()
    (_, rest), *own = known[target]
    base = rest.split(" AS ")[0]
    return [*(whole(base) if base in known else ()), *own]


def is_ignored(path: Path) -> bool:
    """By .dockerignore: the last line that fits the path, or a folder above it, decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        for place in (path, *path.parents):
            tail = place.name if "**/" in line else str(place)
            if place != Path() and fnmatch.fnmatchcase(tail, pattern):
                ignored = not line.startswith("!")
    return ignored


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in listed.stdout.splitlines()]


def run_step(script: str, folder: Path) -> None:
    """A RUN of the recipe, with this Python."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", script], cwd=folder, env={**os.environ, "PATH": path}, check=True, timeout=280)


def build_opt(folder: Path) -> Path:
    """The image's /opt, made in ``folder`` of the build's context alone."""
    context, opt = folder / "context", folder / "opt"
    for path in tracked():
        if not is_ignored(path):
            (context / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, context / path)
    opt.mkdir()
    (step,) = (rest for word, rest in stages()["package"] if word == "RUN" and "pip wheel" in rest)
    run_step(step.replace("/wheels", str(folder / "wheels")).replace("/opt/", f"{opt}/"), context)
    (site,) = opt.glob("venv/lib/python3.*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return opt


def entry_point(opt: Path) -> list[str]:
    """What the image starts, of this /opt or a copy of it."""
    (entry,) = (rest for word, rest in whole("cpu") if word == "ENTRYPOINT")
    return [str(opt / "venv/bin/python"), str(opt / "venv/bin" / entry.strip('[]"'))]
