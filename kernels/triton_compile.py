# mypy: disable-error-code="import-not-found, import-untyped, no-untyped-call"
"""Compiles every kernel for a GPU that is not there, and reads off what it takes: ``python -m …triton_compile 80 90 100``.

Knows nothing of drivers: Triton brings its own assembler. One CSV line per kernel and tile of the default config, at
K2's shape: registers, spilled bytes, stack, shared memory, and the tensor-core instructions of its PTX.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from . import triton_blocks, triton_experts_kernel, triton_gate, triton_rows
from .triton_configs import DEFAULT, ROWS, Config

HEADER = "arch,kernel,registers,spilled_bytes,stack_bytes,shared_bytes,instructions"
_TENSOR_CORE = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)[.a-z0-9_]*")


@dataclass(frozen=True)
class Variant:
    """A kernel with its argument types (the others are integers or constants), constants and launch options."""

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Compiled:
    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int
    instructions: frozenset[str]
    ptx: str
    ttgir: str


def variants(hidden: int = 7168, width: int = 2048, config: Config = DEFAULT) -> Iterator[Variant]:
    """Everything a launch with ``config`` can ask for."""
    for rows, route_major in [(ROWS[0], True)] + [(rows, False) for rows in ROWS]:
        schedule = "routes" if route_major else f"blocks {rows}"
        for name, kernel, tile in (
            ("gate_up", triton_experts_kernel.gate_up_kernel, config.gate_up[rows]),
            ("down", triton_experts_kernel.down_kernel, config.down[rows]),
        ):
            constants = {"HIDDEN": hidden, "WIDTH": width, "ROUTE_MAJOR": route_major, "BLOCK_R": rows}
            constants |= {"BLOCK_OUT": tile.block_out, "WARPS": tile.num_warps}
            constants |= {"STAGES": tile.num_stages, "INTERPRETED": False}
            options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
            yield Variant(f"{name} {schedule}", kernel, _EXPERT_TYPES, constants, options)
    yield from _small(hidden)


def compiled(variant: Variant, arch: int) -> Compiled:
    names = variant.kernel.arg_names
    signature = {name: variant.types.get(name, "i32") for name in names}
    signature |= dict.fromkeys(variant.constants, "constexpr")
    aligned = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if signature[name].startswith("*")
    }
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=aligned)
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(variant.options))
    ptx = result.asm["ptx"]
    report = _assembled(ptx, arch, bool(variant.options.get("enable_fp_fusion", True)))
    spilled = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = re.search(r"Used (\d+) registers", report)
    assert spilled is not None, f"ptxas said: {report}"
    assert registers is not None, f"ptxas said: {report}"
    return Compiled(
        registers=int(registers[1]),
        spilled_bytes=int(spilled[2]) + int(spilled[3]),
        stack_bytes=int(spilled[1]),
        shared_bytes=result.metadata.shared,
        instructions=frozenset(_TENSOR_CORE.findall(ptx)),
        ptx=ptx,
        ttgir=result.asm["ttgir"],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="compile every Triton kernel without a GPU")
    parser.add_argument("arch", type=int, nargs="+", help="compute capability: 80, 90, 100")
    options = parser.parse_args(arguments)
    print(f"# triton {triton.__version__}", file=sys.stderr)
    print(HEADER)
    for arch in options.arch:
        for variant in variants():
            found = compiled(variant, arch)
            sizes = f"{found.registers},{found.spilled_bytes},{found.stack_bytes},{found.shared_bytes}"
            print(f"{arch},{variant.name},{sizes},{' '.join(sorted(found.instructions))}", flush=True)


_EXPERT_TYPES = {"x": "*bf16", "inner": "*bf16", "y": "*bf16", "experts": "*i64"}
_EXPERT_TYPES |= dict.fromkeys(("slots", "starts", "counts", "order", "rows"), "*i32")


def _small(hidden: int) -> Iterator[Variant]:
    """The gate at K2's 384 experts, the block list, and what moves rows."""
    constants: dict[str, Any]
    for tokens in triton_gate.TOKENS:
        constants = {"HIDDEN": hidden, "NUM_EXPERTS": 384, "BLOCK_T": tokens, "BLOCK_E": triton_gate.BLOCK_E}
        constants |= {"SPLIT": triton_gate.SPLIT, "INTERPRETED": False}
        types = {"x": "*bf16", "weight": "*bf16", "partials": "*fp32"}
        yield Variant(f"gate logits {tokens}", triton_gate.logits_kernel, types, constants, triton_gate.LOGITS_OPTIONS)
    constants = {"NUM_EXPERTS": 384, "TOP_K": 8, "NORMALISE": True, "SCALING_FACTOR": 2.827}
    constants |= {"SPLITS": triton.cdiv(hidden, triton_gate.SPLIT), "BLOCK_E": 512, "BLOCK_K": 8}
    types = {"partials": "*fp32", "bias": "*fp32", "topk_ids": "*i32", "topk_weights": "*fp32"}
    yield Variant("gate top-k", triton_gate.top_k_kernel, types, constants, triton_gate.TOP_K_OPTIONS)
    constants = {"HIDDEN": hidden, "BLOCK": triton_rows.BLOCK}
    types = {"source": "*bf16", "target": "*bf16", "places": "*i32"}
    yield Variant("rows gather", triton_rows.gather_kernel, types, constants, triton_rows.MOVE_OPTIONS)
    yield Variant("rows scatter", triton_rows.scatter_kernel, types, constants, triton_rows.MOVE_OPTIONS)
    types = {"rows": "*bf16", "places": "*i32", "topk_weights": "*fp32", "sums": "*fp32"}
    constants |= {"TOP_K": 8, "PLACED": True}
    yield Variant("rows combine", triton_rows.combine_kernel, types, constants, triton_rows.COMBINE_OPTIONS)
    types = dict.fromkeys(("slots", "order", "ranks", "totals"), "*i32")
    constants = {"CHUNK": triton_blocks.CHUNK, "SCAN": triton_blocks.SCAN}
    yield Variant("blocks rank", triton_blocks.rank_kernel, types, constants, {"num_warps": 4})
    types |= dict.fromkeys(("block_slots", "block_starts", "block_counts"), "*i32")
    yield Variant("blocks list", triton_blocks.block_kernel, types, constants | {"BLOCK_R": 8}, {"num_warps": 4})


def _assembled(ptx: str, arch: int, fusion: bool) -> str:
    """What ptxas says of registers and spills, assembling as Triton does."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target, "the PTX names no target"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target[1]}", file.name, "-o", "/dev/null"]
        command += [] if fusion else ["--fmad=false"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


if __name__ == "__main__":
    main()
