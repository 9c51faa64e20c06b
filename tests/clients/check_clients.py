"""Holds tool loops with the client libraries of requirements.txt against a live fleet of the bundled model.

    python tests/clients/check_clients.py [--venv DIR]

It installs the libraries into a virtual environment of their own (a temporary one, unless DIR names one that stays), serves
nano-k2, and runs loops.py there. It exits with 1 if a loop goes wrong. It is not part of the test suite: the libraries
take a minute and half a gigabyte.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from expertfleet.demo.bundled import NANO_K2
from expertfleet.demo.served import Served

_HERE = Path(__file__).parent
_FLAGS = ("--expert-shards=2", "--max-model-len=4096", "--cache-gib=0.25", "--drain-s=5")


def install(venv: Path) -> Path:
    """The interpreter of ``venv``, in which the pinned libraries are."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*pip, "-r", str(_HERE / "requirements.txt")], check=True)
    return python


def run_loops(python: Path, tmp: Path) -> int:
    served = Served(NANO_K2, tmp, *_FLAGS)
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    try:
        url = served.wait_ready()
        status = subprocess.run([str(python), str(_HERE / "loops.py"), url], check=False, env=environment).returncode
        ended, left = served.end()
    finally:
        served.kill()
    if ended or left:
        print(f"the fleet ended with status {ended}, left behind: {', '.join(left) or 'nothing'}")
    return status or ended or len(left)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--venv", type=Path, help="where the libraries are installed and stay")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clients-") as folder:
        fleet = Path(folder, "f")
        fleet.mkdir()
        return run_loops(install(arguments.venv or Path(folder, "venv")), fleet)


if __name__ == "__main__":
    sys.exit(main())
