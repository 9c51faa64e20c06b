"""Writes the stubs of the ``.proto`` files into ``proto/generated``, or checks that they are what they would be.

``python -m expertfleet.proto.make_stubs [--check]``. Knows nothing of the services. Needs the pinned grpcio-tools:
stubs written by a newer one refuse to load on protobuf 6.
"""

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PACKAGE = "expertfleet/proto/generated"


def write(target: Path) -> None:
    """Generates into ``target/expertfleet/proto/generated``."""
    names = sorted(path.name for path in HERE.glob("*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"-I{PACKAGE}={HERE}", *outputs, *(f"{PACKAGE}/{name}" for name in names)])
    if code:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m expertfleet.proto.make_stubs")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the stubs have drifted")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        fresh = sorted((Path(folder) / PACKAGE).iterdir())
        if not arguments.check:
            for path in fresh:
                (HERE / "generated" / path.name).write_bytes(path.read_bytes())
            return
        drifted = [path.name for path in fresh if not _same(path, HERE / "generated" / path.name)]
    if drifted:
        sys.exit(f"stubs differ from their .proto files (run `make proto`): {', '.join(drifted)}")


def _same(fresh: Path, kept: Path) -> bool:
    return kept.exists() and filecmp.cmp(fresh, kept, shallow=False)


if __name__ == "__main__":
    main()
