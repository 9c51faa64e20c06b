"""The self-test at a worker's start: finds the rules for its real shapes, proves them, and names its numerics class.

Knows nothing of workers or checkpoints: it gets shapes, a dtype and today's thread count, and makes its own numbers.
1. Rules are chosen (row_rule.py) for every product of the given shapes; 2. results of one row alone and inside batches
are compared bit for bit over many row counts, experts and attention as a whole; 3. results of canned inputs, half of
them rounding noise alone so that another order of summation shows, are hashed into the class name.
Two processes with one class name compute the same bits; thread counts do not enter it unless they change bits.
"""

import hashlib
import importlib.metadata
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from . import int4
from .activation import silu_mul
from .batch_invariant_linear import (
    BatchInvariantHeads,
    BatchInvariantLinear,
    BatchInvariantScores,
    heads_rule,
    linear_rule,
)
from .errors import KernelError
from .expert_backend import ExpertBackend, TritonRules, make_backend
from .expert_layer import ExpertLayer, Projection
from .grouped_gemm import grouped_gemm
from .mla import SPLIT, DecodePlan, attention_rule, mla_attend, mla_decode
from .norm import rms_norm
from .processor import bf16_instructions
from .row_rule import RuleCache, bits_of
from .self_test_inputs import cancelling, cancelling_row, canned, scattered_pairs
from .top_k_gate import TopKGate

KERNEL_VERSION = 1  # raised whenever a change of the code changes bits
_COUNTS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 300)
_SINGLES = 6  # rows of a batch that are compared with the same row alone
_BUDGET_FLOPS = 2e10  # a shape's counts are thinned out to stay below this: half a second or less
_SCALE_STEP = 1 / 64


@dataclass(frozen=True)
class NumericsReport:
    class_name: str  # what a worker registers
    rules: RuleCache
    details: dict[str, str]  # what was found, for people


@dataclass(frozen=True)
class AttentionShapes:
    """The products of an attention worker: dense ones and gates, both [out, in], and the heads' widths."""

    linears: tuple[tuple[int, int], ...]
    gates: tuple[tuple[int, int], ...]
    num_heads: int
    nope_width: int
    value_width: int
    num_latent: int
    num_rope: int
    norm_widths: tuple[int, ...]


def expert_self_test(
    backend: str, device: str, dtype: torch.dtype, hidden: int, width: int, group_size: int
) -> tuple[ExpertBackend, NumericsReport]:
    """The backend with its rules and the report; KernelError if rows are not exact."""
    rules = RuleCache()
    made = make_backend(backend, device, dtype, hidden, width, group_size, rules=rules)
    layer = made.new_layer()
    layer.add(0, *_canned_expert(made, 21))
    layer.add(1, *_canned_expert(made, 31))
    counts = _affordable(6 * hidden * width)
    x = canned((counts[-1], hidden), 41).to(dtype)
    _require_exact("grouped_gemm", lambda rows: _one_expert(rows, layer), x, counts)
    digest = hashlib.sha256(_noise_through(layer).numpy().tobytes())
    digest.update(bits_of(_one_expert(x[:4], layer)).numpy().tobytes())
    name = _class_name(made.name, _machine(made), dtype, digest.hexdigest())
    return made, NumericsReport(name, rules, rules.described() | {"backend": made.description})


def attention_self_test(shapes: AttentionShapes, dtype: torch.dtype, beside: Iterable[bytes] = ()) -> NumericsReport:
    """Chooses and proves the rules of everything an attention worker computes; KernelError if rows are not exact.

    ``beside`` are results of what no kernel knows of and the class shall depend on as well.
    """
    rules = RuleCache()
    digest = hashlib.sha256()
    for num_out, num_in in shapes.linears:
        for piece in sorted({stop - start for start, stop, _ in linear_rule(rules, num_out, num_in, dtype).pieces}):
            row, weight = cancelling(piece, num_in, dtype, salt=piece)
            linear = BatchInvariantLinear(weight, linear_rule(rules, piece, num_in, dtype))
            digest.update(bits_of(linear(row[None])).numpy().tobytes())
    for result in _gates_results(shapes, dtype, rules):
        digest.update(bits_of(result).numpy().tobytes())
    for result in (*_heads_results(shapes, dtype, rules), _attention_result(shapes, dtype, rules)):
        digest.update(bits_of(result).numpy().tobytes())
    for result in _elementwise_results(shapes, dtype):
        digest.update(bits_of(result).numpy().tobytes())
    for result_bytes in beside:
        digest.update(result_bytes)
    return NumericsReport(
        _class_name("cpu-attention", _instruction_set(), dtype, digest.hexdigest()), rules, rules.described()
    )


def _gates_results(shapes: AttentionShapes, dtype: torch.dtype, rules: RuleCache) -> list[torch.Tensor]:
    results = []
    for (num_out, num_in), stored in itertools.product(shapes.gates, (torch.bfloat16, torch.float32)):
        row, weight = cancelling(num_out, num_in, stored, salt=num_out)
        scores = BatchInvariantScores(weight, rules)
        x = canned((_COUNTS[-1], num_in), 71).to(dtype)
        _require_exact("gate", scores, x, _COUNTS)
        results.append(scores(row[None].to(dtype)))
    for num_out, _ in shapes.gates:
        logits, choose = canned((_COUNTS[-1], num_out), 72) * 8, partial(_weights_of_all, bias=torch.zeros(num_out))
        _require_exact("the gate's choice", choose, logits, _COUNTS)
        results.append(choose(logits[:2]))
    return results


def _weights_of_all(logits: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return TopKGate(len(bias))(logits, bias)[1]


def _heads_results(shapes: AttentionShapes, dtype: torch.dtype, rules: RuleCache) -> list[torch.Tensor]:
    results = []
    for num_in, num_out in ((shapes.nope_width, shapes.num_latent), (shapes.num_latent, shapes.value_width)):
        row, flat = cancelling(shapes.num_heads * num_out, num_in, dtype, salt=num_in)
        weight = flat.view(shapes.num_heads, num_out, num_in).transpose(1, 2)
        heads = BatchInvariantHeads(weight, heads_rule(rules, shapes.num_heads, num_in, num_out, dtype))
        results.append(heads(row.expand(1, shapes.num_heads, num_in)))
    return results


def _attention_result(shapes: AttentionShapes, dtype: torch.dtype, rules: RuleCache) -> torch.Tensor:
    """A chunk over two split borders, proved against each of its rows alone with the latents that row may see."""
    heads, num_latent, num_rope = shapes.num_heads, shapes.num_latent, shapes.num_rope
    rule = attention_rule(rules, num_latent, num_rope, dtype)
    first, num_rows = SPLIT - 3, SPLIT + 7
    latent = canned((first + num_rows, num_latent + num_rope), 51).to(dtype)
    query = (canned((num_rows, heads, num_latent + num_rope), 52) * 4).to(dtype)

    def attend(start: int, stop: int) -> torch.Tensor:
        rows, seen = query[start:stop], latent[: first + stop]
        return mla_attend(rows[..., :num_latent], rows[..., num_latent:], seen, first + start, 0.3, rule)

    chunk = attend(0, num_rows)
    for row in (0, 2, 3, 4, num_rows // 2, SPLIT + 2, SPLIT + 3, num_rows - 1):
        _require_equal("mla_attend", f"row {row} of {num_rows}", chunk[row], attend(row, row + 1)[0])
    _require_equal("mla_attend", "rows 1 to 17", chunk[1:17], attend(1, 17))
    ends = (first + 1, first + num_rows)
    gathered = torch.cat((latent[:SPLIT], _whole_splits(latent[: ends[1]]))).view(-1, SPLIT, latent.shape[1])
    last = query[[0, -1]]
    decoded = mla_decode(
        last[..., :num_latent], last[..., num_latent:], gathered, DecodePlan.of(ends, dtype), 0.3, rule
    )
    _require_equal("mla_decode", "two sequences", decoded, chunk[[0, -1]])
    return chunk[:: num_rows - 1]


def _whole_splits(latent: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(latent, (0, 0, 0, -len(latent) % SPLIT))


def _elementwise_results(shapes: AttentionShapes, dtype: torch.dtype) -> list[torch.Tensor]:
    results = []
    for width in shapes.norm_widths:
        x = canned((_COUNTS[-1], width), 61).to(dtype)
        weight = canned((width,), 62).to(dtype)
        _require_exact("rms_norm", partial(rms_norm, weight=weight, eps=1e-5), x, _COUNTS)
        _require_exact("silu_mul", lambda rows: silu_mul(rows * 8, rows), x, _COUNTS)
        results += [rms_norm(x[:2], weight, 1e-5), silu_mul(x[:2] * 8, x[:2])]
    return results


def _require_exact(
    what: str, call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, counts: Sequence[int]
) -> None:
    """Each row of batches of every count equals that row alone; batches are cut from the end of x."""
    singles = min(counts[-1], _SINGLES)
    alone = torch.cat([call(x[row : row + 1]) for row in range(len(x) - singles, len(x))])
    for count in counts:
        batch = call(x[len(x) - count :])
        compared = min(count, len(alone))
        _require_equal(what, f"the last {compared} of {count} rows", batch[-compared:], alone[-compared:])


def _require_equal(what: str, which: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    unequal = int((bits_of(found) != bits_of(wanted)).sum())
    if unequal:
        raise KernelError(
            f"{what}: {which} and the same alone differ in {unequal} of {found.numel()} values "
            f"({torch.get_num_threads()} threads, {_instruction_set()}, {found.dtype})"
        )


def _affordable(flops_per_row: int) -> tuple[int, ...]:
    """The row counts whose sum fits the budget, small ones first, the largest always."""
    chosen: list[int] = []
    rows = 0
    for count in _COUNTS:
        rows += count
        if rows * flops_per_row <= _BUDGET_FLOPS or not chosen:
            chosen.append(count)
    return tuple(chosen)


def _one_expert(rows: torch.Tensor, layer: ExpertLayer) -> torch.Tensor:
    return grouped_gemm(rows, torch.arange(len(rows)), torch.zeros(len(rows), dtype=torch.int64), layer)


def _noise_through(layer: ExpertLayer) -> torch.Tensor:
    """Bits of rows for which every gate and up value is rounding noise, so that any other order of summation shows."""
    rows = torch.stack([cancelling_row(layer.shape.hidden, salt) for salt in range(4)])
    places = torch.arange(4)
    return bits_of(grouped_gemm((rows * 2.0**16).to(layer.dtype), places, places % 2, layer))


def _canned_expert(backend: ExpertBackend, salt: int) -> tuple[Projection, Projection, Projection]:
    hidden, width = backend.shape.hidden, backend.shape.width
    group = backend.shape.group_size
    gate, up = (_canned_projection(width, hidden, group, salt + part, cancel=True) for part in (0, 1))
    return gate, up, _canned_projection(hidden, width, group, salt + 2, cancel=False)


def _canned_projection(num_out: int, num_in: int, group_size: int, salt: int, *, cancel: bool) -> Projection:
    """Codes 1..15 with one scale per output; paired inputs have opposite values if they shall cancel."""
    rows = min(num_out, 61)
    codes = (canned((rows, num_in), salt).add_(1).mul_(7.5).floor_() + 1).to(torch.uint8)
    if cancel:
        first, second = scattered_pairs(num_in)
        codes[:, second] = 16 - codes[:, first]
    codes = codes.repeat(-(-num_out // rows), 1)[:num_out]
    scales = (canned((num_out, 1), salt + 100).abs_() + 0.5).mul_(_SCALE_STEP).to(torch.bfloat16)
    return int4.pack(codes), scales.expand(num_out, num_in // group_size).contiguous()


def _class_name(kind: str, machine: str, dtype: torch.dtype, digest: str) -> str:
    parts = (kind, f"v{KERNEL_VERSION}", machine, str(dtype).removeprefix("torch."), digest[:8])
    return "-".join(part for part in parts if part)


def _machine(backend: ExpertBackend) -> str:
    """What beside the kernel's version decides its bits: nothing for the native one, as its digest proves anywhere."""
    if backend.name == "cpu-native":
        return ""
    if isinstance(backend.rules, TritonRules):
        gpu = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(backend.rules.device).lower())
        return f"{gpu}-triton{importlib.metadata.version('triton')}"
    return _instruction_set()


def _instruction_set() -> str:
    """For people: what the class's hash is worth is decided by the results alone."""
    return bf16_instructions() or torch.backends.cpu.get_cpu_capability().lower()
