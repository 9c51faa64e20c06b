"""Every kernel is compiled for GPUs that are not here, in a process without an interpreter, and its figures are bounded."""

import csv
import io
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'expertfleet[gpu]'")

ONLY = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"


def _run(code: str, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_no_kernel_spills_and_all_products_take_one_instruction(arch: str) -> None:
    printed = _run("import sys; from expertfleet.kernels.triton_compile import main; main(sys.argv[1:])", arch)
    lines = list(csv.DictReader(io.StringIO(printed)))
    assert len(lines) >= 16
    for line in lines:
        assert (line["spilled_bytes"], line["stack_bytes"]) == ("0", "0"), line
        assert int(line["shared_bytes"]) <= 99 * 1024, line  # what a program may have on sm_80
        products = line["kernel"].startswith(("gate_up", "down", "gate logits"))
        assert line["instructions"] == (ONLY if products else ""), line


_CODES_STAY = """
from expertfleet.kernels.triton_compile import compiled, variants
for variant in variants():
    if variant.name in ("gate_up routes", "gate_up blocks 16", "down blocks 8"):
        found = compiled(variant, 90)
        operands = {line.split("kWidth = ")[1][0] for line in found.ttgir.splitlines() if "tt.dot " in line}
        loop = found.ttgir[found.ttgir.index("scf.for"):]
        loop = loop[:loop.index("scf.yield")]
        print(variant.name, operands == {"4"}, "local_alloc" not in loop, "shfl" not in found.ptx,
              ", 0x10," in found.ptx, ", 0x4," not in found.ptx, sep=";")  # copies of 16 bytes, none of 4
"""


def test_codes_go_from_memory_to_the_tensor_core_without_crossing_threads() -> None:
    lines = [line.split(";") for line in _run(_CODES_STAY).splitlines()]
    assert [name for name, *_ in lines] == ["gate_up routes", "down blocks 8", "gate_up blocks 16"]
    for name, *facts in lines:
        assert facts == ["True"] * 5, (name, facts)


_COMBINE = """
from expertfleet.kernels.triton_compile import compiled, variants
for variant in variants():
    if variant.name in ("rows combine", "gate top-k"):
        print("fma.rn" in compiled(variant, 90).ptx)
"""


def test_combine_and_top_k_never_fuse_a_product_with_a_sum() -> None:
    assert _run(_COMBINE).split() == ["False", "False"]
