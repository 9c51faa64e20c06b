"""The compiled kernel for experts on CPUs (``cpp/``), called through ctypes: packing, and experts applied to routes,
and for routers: the exact combine, and who of several is asked.

Knows nothing of layers or routes' origin. What it computes is exact where order could matter: a row is read as integers,
32 values with one power-of-two step and 14 bits beside the sign (22 for float32 rows), sums over 32 inputs are int32, and
all else is single float32 operations in one order. So a row's bits are the same for every number of rows and threads, and
on every instruction set. The library is built with the package; without a compiler at that time it is missing.
"""

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import cache

import torch

from .errors import KernelError

GROUP = 32  # inputs and outputs come in multiples of this, and group sizes as well
_LIBRARY = "cpu_experts"
_WORTH_THREADS = 1 << 20
_DTYPES = (torch.bfloat16, torch.float32)
_PROBLEMS = {1: "the instruction set {} is not there", 2: "no memory for {} routes"}

Words = torch.Tensor  # int32 [out, in / 8]
Scales = torch.Tensor  # bf16 [out, in / group]


class Native:
    """``instruction_sets`` are those of this processor, the best first."""

    def __init__(self, path: str) -> None:
        self._library = library = ctypes.CDLL(path)
        pointer, count, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        library.expertfleet_instruction_set.argtypes = [integer]
        library.expertfleet_instruction_set.restype = ctypes.c_char_p
        library.expertfleet_tile_bytes.argtypes = [count, count]
        library.expertfleet_tile_bytes.restype = count
        library.expertfleet_advise.argtypes = [pointer, count]
        library.expertfleet_pack_gate_up.argtypes = [pointer] * 4 + [count] * 3 + [pointer]
        library.expertfleet_pack_down.argtypes = [pointer] * 2 + [count] * 3 + [pointer]
        library.expertfleet_apply.argtypes = [ctypes.c_char_p, integer, integer, pointer, *[count] * 5]
        library.expertfleet_apply.argtypes += [pointer, pointer, count, pointer, pointer, pointer]
        library.expertfleet_multiply.argtypes = [ctypes.c_char_p, integer, integer, pointer, *[count] * 2]
        library.expertfleet_multiply.argtypes += [pointer, count, count, integer, pointer]
        library.expertfleet_combine.argtypes = [integer, integer, pointer, pointer, *[count] * 3, pointer]
        library.expertfleet_spread.argtypes = [pointer, *[count] * 3, pointer, count, pointer]
        library.expertfleet_pin.argtypes = [pointer, integer]
        library.expertfleet_read.argtypes = [ctypes.c_char_p, integer, pointer, count]
        library.expertfleet_read.restype = count
        self.instruction_sets = tuple(self._instruction_sets())

    def pack_gate_up(self, gate: tuple[Words, Scales], up: tuple[Words, Scales]) -> torch.Tensor:
        """gate and up [F, H] → one block of bytes, as many as they have."""
        (gate_words, gate_scales), (up_words, up_scales) = (_contiguous(each) for each in (gate, up))
        width, hidden, group_size = _shape_of(gate_words, gate_scales)
        packed = self._block(width // GROUP, hidden, group_size)
        self._library.expertfleet_pack_gate_up(
            gate_words.data_ptr(), gate_scales.data_ptr(), up_words.data_ptr(), up_scales.data_ptr(),
            width, hidden, group_size, packed.data_ptr(),
        )  # fmt: skip
        return packed

    def pack_down(self, down: tuple[Words, Scales]) -> torch.Tensor:
        """down [H, F] → one block of bytes, as many as it has if H is a multiple of 64."""
        words, scales = _contiguous(down)
        hidden, width, group_size = _shape_of(words, scales)
        packed = self._block(-(-hidden // (2 * GROUP)), width, group_size)
        self._library.expertfleet_pack_down(
            words.data_ptr(), scales.data_ptr(), hidden, width, group_size, packed.data_ptr()
        )
        return packed

    def apply(
        self,
        x: torch.Tensor,  # [R, H] bf16 or float32
        route_rows: torch.Tensor,  # [N] int64, below R
        route_slots: torch.Tensor,  # [N] int64, below the number of blocks
        gate_up: torch.Tensor,  # int64 [slots]: the blocks' addresses
        down: torch.Tensor,  # int64 [slots]
        width: int,
        group_size: int,
        instruction_set: str,
        out: torch.Tensor,  # [N, H] in x's dtype
    ) -> None:
        """On as many threads as torch has in this thread."""
        assert x.dtype in _DTYPES, f"x is {x.dtype}"
        assert out.dtype is x.dtype, f"out is {out.dtype}, x {x.dtype}"
        assert out.is_contiguous(), f"out has strides {out.stride()}"
        x, route_rows, route_slots = x.contiguous(), route_rows.contiguous(), route_slots.contiguous()
        assert all(each.dtype is torch.int64 for each in (route_rows, route_slots, gate_up, down)), "wanted int64"
        num_routes, hidden = route_rows.shape[0], x.shape[1]
        assert out.shape == (num_routes, hidden), f"out is {tuple(out.shape)}, wanted {(num_routes, hidden)}"
        problem = self._library.expertfleet_apply(
            instruction_set.encode(), torch.get_num_threads(), x.dtype is torch.float32, x.data_ptr(), x.shape[0],
            hidden, width, group_size, num_routes, route_rows.data_ptr(), route_slots.data_ptr(), gate_up.shape[0],
            gate_up.data_ptr(), down.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        if problem:
            raise KernelError(
                f"backend: cpu-native: {_PROBLEMS[problem].format((instruction_set, num_routes)[problem - 1])}"
            )

    def multiply(self, x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, instruction_set: str) -> torch.Tensor:
        """x [R, heads, in] bf16 or float32, weight [heads, out, in] bf16, in a multiple of 16 → [R, heads, out] in ``dtype``.

        Summed in float32, exact by row. Few products are worth less than waking other threads.
        """
        x = x.contiguous()
        assert x.dtype in _DTYPES, f"x is {x.dtype}"
        assert dtype in _DTYPES, f"wanted {dtype}"
        assert weight.dtype is torch.bfloat16, f"the weight is {weight.dtype}"
        assert weight.is_contiguous(), f"the weight has strides {weight.stride()}"
        heads, num_out, num_in = weight.shape
        assert x.shape[1:] == (heads, num_in), f"x is {tuple(x.shape)}, wanted [R, {heads}, {num_in}]"
        out = torch.empty(len(x), heads, num_out, dtype=dtype)
        threads = torch.get_num_threads() if len(x) * weight.numel() >= _WORTH_THREADS else 1
        problem = self._library.expertfleet_multiply(
            instruction_set.encode(), threads, x.dtype is torch.float32, x.data_ptr(), len(x), heads,
            weight.data_ptr(), num_in, num_out, dtype is torch.float32, out.data_ptr(),
        )  # fmt: skip
        assert not problem, f"instruction set {instruction_set!r}"
        return out

    def combine(
        self, rows: torch.Tensor, weights: torch.Tensor, hidden: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, bool]:
        """int64 addresses [T, K] of rows [hidden] in ``dtype``, weights [T, K] → float32 [T, hidden], summed in K's order.

        And whether all of that is finite.
        """
        assert dtype in _DTYPES, f"rows are {dtype}"
        assert rows.dtype is torch.int64, f"addresses are {rows.dtype}"
        assert weights.dtype is torch.float32, f"weights are {weights.dtype}"
        assert rows.shape == weights.shape, f"{tuple(rows.shape)} rows, {tuple(weights.shape)} weights"
        (num_tokens, top_k), weights = rows.shape, weights.contiguous()
        out = torch.empty(num_tokens, hidden)
        threads = torch.get_num_threads() if rows.numel() * hidden >= _WORTH_THREADS else 1
        is_finite = self._library.expertfleet_combine(
            threads, dtype is torch.float32, rows.contiguous().data_ptr(), weights.data_ptr(), num_tokens, top_k, hidden,
            out.data_ptr(),
        )  # fmt: skip
        return out, bool(is_finite)

    def spread(self, replicas: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """bool [S, E], contiguous rows of them, int64 [N] below E → int64 [N], as ``router.plan.spread`` says."""
        assert replicas.dtype is torch.bool, f"replicas are {replicas.dtype}"
        assert replicas.stride(1) == 1, f"replicas have strides {replicas.stride()}"
        assert experts.dtype is torch.int64, f"experts are {experts.dtype}"
        assert experts.is_contiguous(), f"experts have strides {experts.stride()}"
        owners, (num_shards, num_experts) = torch.empty_like(experts), replicas.shape
        problem = self._library.expertfleet_spread(
            replicas.data_ptr(), num_shards, replicas.stride(0), num_experts, experts.data_ptr(), experts.shape[0],
            owners.data_ptr(),
        )  # fmt: skip
        if problem:
            raise IndexError(f"an expert of {experts.tolist()} is not below {num_experts}")
        return owners

    def pin(self, processors: Sequence[int]) -> None:
        """From now on each thread of a call keeps to one of these, the calling thread to the first."""
        given = (ctypes.c_int * len(processors))(*processors)
        self._library.expertfleet_pin(given, len(processors))

    def read(self, memory: torch.Tensor, instruction_set: str) -> None:
        """Does nothing but read it on torch's number of threads: what a kernel's speed is compared with."""
        threads = torch.get_num_threads()
        self._library.expertfleet_read(instruction_set.encode(), threads, memory.data_ptr(), memory.nbytes)

    def _block(self, tiles: int, num_in: int, group_size: int) -> torch.Tensor:
        block = torch.empty(tiles * self._library.expertfleet_tile_bytes(num_in, group_size), dtype=torch.uint8)
        self._library.expertfleet_advise(block.data_ptr(), block.nbytes)
        return block

    def _instruction_sets(self) -> list[str]:
        found: list[str] = []
        while name := self._library.expertfleet_instruction_set(len(found)):
            found.append(name.decode())
        return found


@cache
def load() -> Native | str:
    """The library, or why it cannot be used here."""
    spec = importlib.util.find_spec(f"{__package__}.{_LIBRARY}")
    if spec is None or spec.origin is None:
        return "it was not built: no C++ compiler when the package was installed"
    try:
        native = Native(spec.origin)
    except (OSError, AttributeError) as error:
        return f"{spec.origin}: {error}"
    return native if native.instruction_sets else "this processor has neither AVX-512 with VNNI nor AVX2"


def unsupported(group_size: int) -> str:
    """Why this group size cannot be taken; empty if it can."""
    return (
        "" if group_size % GROUP == 0 else f"group_size: cpu-native cannot take {group_size}, only multiples of {GROUP}"
    )


def addresses(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """int64 [blocks]; the blocks must be kept."""
    return torch.tensor([block.data_ptr() for block in blocks], dtype=torch.int64)


def _contiguous(projection: tuple[Words, Scales]) -> tuple[Words, Scales]:
    words, scales = projection
    return words.contiguous(), scales.contiguous()


def _shape_of(words: Words, scales: Scales) -> tuple[int, int, int]:
    num_out, num_words = words.shape
    return num_out, 8 * num_words, 8 * num_words // scales.shape[1]
