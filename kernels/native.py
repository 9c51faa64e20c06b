"""The compiled kernel for experts on CPUs (``cpp/``), called through ctypes: packing, and experts applied to routes,
and for routers: the gate, who of several is asked, what each shard is asked, and the exact combine.

Between two layers the caches are swept by the experts' weights, so each torch or numpy operation costs tens of microseconds, and one
call of what is compiled as much as one of them.

Knows nothing of layers or routes' origin. What it computes is exact where order could matter: a row is read as integers,
32 values with one power-of-two step and 14 bits beside the sign (22 for float32 rows), sums over 32 inputs are int32, and
all else is single float32 operations in one order. So a row's bits are the same for every number of rows and threads, and
on every instruction set. The library is built with the package; without a compiler at that time it is missing.
"""

import ctypes
import importlib.util
import math
from array import array
from collections.abc import Sequence
from functools import cache

import torch

from .errors import KernelError

GROUP = 32  # inputs and outputs come in multiples of this, and group sizes as well
_LIBRARY = "native_library"
_WORTH_THREADS = 1 << 20
_DTYPES = (torch.bfloat16, torch.float32)
_WRITABLE = 0x200  # PyBUF_WRITE
_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.argtypes, _memory_at.restype = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int], ctypes.py_object

Words = torch.Tensor  # int32 [out, in / 8]
Scales = torch.Tensor  # bf16 [out, in / group]


class Native:
    """``instruction_sets`` are those of this processor, the best first."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._library = library = ctypes.CDLL(path)
        pointer, count, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        library.expertfleet_instruction_set.argtypes = [integer]
        library.expertfleet_instruction_set.restype = ctypes.c_char_p
        library.expertfleet_tile_bytes.argtypes = [count, count]
        library.expertfleet_tile_bytes.restype = count
        library.expertfleet_advise.argtypes = [pointer, count]
        library.expertfleet_pack_gate_up.argtypes = [pointer] * 4 + [count] * 3 + [pointer]
        library.expertfleet_pack_down.argtypes = [pointer] * 2 + [count] * 3 + [pointer]
        library.expertfleet_apply_experts.argtypes = [ctypes.c_char_p, integer, integer, pointer, *[count] * 5]
        library.expertfleet_apply_experts.argtypes += [pointer, pointer, count, pointer, pointer, pointer]
        library.expertfleet_multiply.argtypes = [ctypes.c_char_p, integer, integer, pointer, *[count] * 2]
        library.expertfleet_multiply.argtypes += [pointer, count, count, integer, pointer]
        library.expertfleet_combine.argtypes = [integer, integer, pointer, pointer, *[count] * 3, pointer]
        library.expertfleet_choose.argtypes = [integer, pointer, pointer, *[count] * 5, integer, ctypes.c_float]
        library.expertfleet_choose.argtypes += [pointer, pointer]
        library.expertfleet_gate.argtypes = [ctypes.c_char_p, *[integer] * 3, pointer, count, pointer, *[count] * 2]
        library.expertfleet_gate.argtypes += [pointer, *[count] * 3, integer, ctypes.c_float, pointer, pointer]
        library.expertfleet_choose_replicas.argtypes = [pointer, *[count] * 3, pointer, count, pointer]
        library.expertfleet_partition_routes.argtypes = [
            pointer,
            count,
            count,
            pointer,
            pointer,
            *[count] * 3,
            *[pointer] * 7,
        ]
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
        x: int,  # address of [R, H], float32 if ``float32``, else bf16
        float32: bool,
        num_rows: int,
        hidden: int,
        route_rows: int,  # address of int32 [N], below R
        route_experts: int,  # address of int32 [N]
        num_routes: int,
        blocks: "Blocks",
        width: int,
        group_size: int,
        instruction_set: str,
        out: int,  # address of [N, H], as x
    ) -> None:
        """On as many threads as torch has in this thread. Raises KernelError for a row that there is not, and for such an expert."""
        problem = self._library.expertfleet_apply_experts(
            instruction_set.encode(), torch.get_num_threads(), float32, x, num_rows, hidden, width, group_size, num_routes,
            route_rows, route_experts, blocks.num_experts, blocks.gate_up, blocks.down, out,
        )  # fmt: skip
        if problem:
            rows, experts = (tensor_at(at, (num_routes,), torch.int32).tolist() for at in (route_rows, route_experts))
            foreign = next((expert for expert in experts if not blocks.has(expert)), None)
            raise KernelError(
                {
                    1: f"backend: cpu-native: the instruction set {instruction_set} is not there",
                    2: f"backend: cpu-native: no memory for {num_routes} routes",
                    3: f"route rows {rows}, but there are {num_rows} rows",
                    4: f"expert {foreign} is not held",
                }[problem]
            )

    def multiply(self, x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, instruction_set: str) -> torch.Tensor:
        """x [R, in] bf16 or float32, weight [out, in] bf16, in a multiple of 16 → [R, out] in ``dtype``; with heads x is
        [R, heads, in], the weight [heads, out, in] and the result [R, heads, out].

        Summed in float32, exact by row. Few products are worth less than waking other threads.
        """
        x = x.contiguous()
        assert x.dtype in _DTYPES, f"x is {x.dtype}"
        assert dtype in _DTYPES, f"wanted {dtype}"
        assert weight.dtype is torch.bfloat16, f"the weight is {weight.dtype}"
        assert weight.is_contiguous(), f"the weight has strides {weight.stride()}"
        (num_rows, *row_shape), (*heads, num_out, num_in) = x.shape, weight.shape
        assert row_shape == [*heads, num_in], (
            f"x is {tuple(x.shape)}, wanted [R, {', '.join(map(str, (*heads, num_in)))}]"
        )
        out = torch.empty(num_rows, *heads, num_out, dtype=dtype)
        threads = torch.get_num_threads() if num_rows * weight.numel() >= _WORTH_THREADS else 1
        problem = self._library.expertfleet_multiply(
            instruction_set.encode(), threads, x.dtype is torch.float32, x.data_ptr(), num_rows, *(heads or (1,)),
            weight.data_ptr(), num_in, num_out, dtype is torch.float32, out.data_ptr(),
        )  # fmt: skip
        assert not problem, f"instruction set {instruction_set!r}"
        return out

    def choose(
        self,
        logits: torch.Tensor,  # [T, E] float32
        bias: torch.Tensor,  # [E] float32
        top_k: int,
        num_groups: int,
        num_kept_groups: int,
        normalise: bool,
        scaling_factor: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gate's choice, as ``router.gate`` says: ids [T, K] int64 and weights [T, K] float32, the best first.

        Of experts with equal scores the one with the smaller id is the better one.
        """
        num_tokens, num_experts = logits.shape
        assert logits.dtype is torch.float32, f"logits are {logits.dtype}"
        _check_choice(bias, num_experts, top_k, num_groups, num_kept_groups)
        logits, bias = logits.contiguous(), bias.contiguous()
        topk_ids, topk_weights = torch.empty(num_tokens, top_k, dtype=torch.int64), torch.empty(num_tokens, top_k)
        threads = torch.get_num_threads() if logits.numel() * top_k >= _WORTH_THREADS else 1
        self._library.expertfleet_choose(
            threads, logits.data_ptr(), bias.data_ptr(), num_tokens, num_experts, top_k, num_groups, num_kept_groups,
            normalise, scaling_factor, topk_ids.data_ptr(), topk_weights.data_ptr(),
        )  # fmt: skip
        return topk_ids, topk_weights

    def choose_replicas(self, replicas: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """bool [S, E], contiguous rows of them, int64 [N] below E → int64 [E], as ``router.routing_table.choose_replicas`` says."""
        assert replicas.dtype is torch.bool, f"replicas are {replicas.dtype}"
        assert replicas.stride(1) == 1, f"replicas have strides {replicas.stride()}"
        assert experts.dtype is torch.int64, f"experts are {experts.dtype}"
        assert experts.is_contiguous(), f"experts have strides {experts.stride()}"
        num_shards, num_experts = replicas.shape
        owners = torch.empty(num_experts, dtype=torch.int64)
        problem = self._library.expertfleet_choose_replicas(
            replicas.data_ptr(), num_shards, replicas.stride(0), num_experts, experts.data_ptr(), experts.numel(),
            owners.data_ptr(),
        )  # fmt: skip
        if problem:
            raise IndexError(f"an expert of {experts.tolist()} is not below {num_experts}")
        return owners

    def partition_routes(
        self,
        owners: torch.Tensor,  # int64 [E]
        num_shards: int,
        experts: torch.Tensor,  # int64, N of them
        routes: int | None,  # address of int64 [N]
        top_k: int,
        num_rows: int,
    ) -> "array[int]":
        """int64 [3 N + 3 S + 2], as ``router.shares.partition_routes`` says.

        They are N routes, at most N rows, the N experts and then the N places of the routes, two to an int64, S + 1 ends of
        routes, S + 1 ends of rows and S numbers of experts. Without ``routes`` they are 0 to N - 1.
        """
        assert owners.dtype is experts.dtype is torch.int64, "wanted int64"
        assert owners.is_contiguous(), f"owners have strides {owners.stride()}"
        assert experts.is_contiguous(), f"experts have strides {experts.stride()}"
        num_routes, num_experts = experts.numel(), owners.shape[0]
        found = array("q", bytes(8 * (3 * num_routes + 3 * num_shards + 2)))
        sorted_routes, _ = found.buffer_info()
        rows = sorted_routes + 8 * num_routes
        sorted_experts = rows + 8 * num_routes
        route_ends = sorted_experts + 8 * num_routes
        row_ends = route_ends + 8 * (num_shards + 1)
        problem = self._library.expertfleet_partition_routes(
            owners.data_ptr(), num_experts, num_shards, experts.data_ptr(), routes, num_routes, top_k,
            num_rows, sorted_routes, rows, route_ends, row_ends, row_ends + 8 * (num_shards + 1), sorted_experts,
            sorted_experts + 4 * num_routes,
        )  # fmt: skip
        if problem:
            raise IndexError(f"an expert of {experts.tolist()} is not below {num_experts}")
        return found

    def pin(self, processors: Sequence[int]) -> None:
        """From now on each thread of a call keeps to one of these, the calling thread to the first."""
        given = (ctypes.c_int * len(processors))(*processors)
        self._library.expertfleet_pin(given, len(processors))

    def read(self, memory: torch.Tensor, instruction_set: str) -> None:
        """Does nothing but read it on torch's number of threads: what a kernel's speed is compared with."""
        threads = torch.get_num_threads()
        self._library.expertfleet_read(instruction_set.encode(), threads, memory.data_ptr(), memory.nbytes)

    def in_large_pages(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory for what is read from end to end, on large pages where there are some: fewer addresses to look up."""
        memory = torch.empty(shape, dtype=dtype)
        self._library.expertfleet_advise(memory.data_ptr(), memory.nbytes)
        return memory

    def _block(self, tiles: int, num_in: int, group_size: int) -> torch.Tensor:
        return self.in_large_pages((tiles * self._library.expertfleet_tile_bytes(num_in, group_size),), torch.uint8)

    def _instruction_sets(self) -> list[str]:
        found: list[str] = []
        while name := self._library.expertfleet_instruction_set(len(found)):
            found.append(name.decode())
        return found


class GateCall:
    """A gate's products and the choice after them in one call, for a weight bf16 [E, in] and a bias float32 [E] that stay.

    The same bits as ``multiply`` and ``choose`` give one after the other.
    """

    def __init__(
        self,
        native: Native,
        weight: torch.Tensor,
        bias: torch.Tensor,
        top_k: int,
        num_groups: int,
        num_kept_groups: int,
        normalise: bool,
        scaling_factor: float,
    ) -> None:
        assert weight.dtype is torch.bfloat16, f"the weight is {weight.dtype}"
        assert weight.is_contiguous(), f"the weight has strides {weight.stride()}"
        self._num_experts, self._num_in = weight.shape
        assert self._num_in % 16 == 0, f"the weight is {tuple(weight.shape)}, wanted a multiple of 16 inputs"
        _check_choice(bias, self._num_experts, top_k, num_groups, num_kept_groups)
        bias = bias.contiguous()
        self._kept = weight, bias  # what the addresses below are of
        self._gate = native._library.expertfleet_gate
        self._instruction_set = native.instruction_sets[0].encode()
        self._top_k = top_k
        self._weight = weight.data_ptr(), self._num_in, self._num_experts
        self._choice = bias.data_ptr(), top_k, num_groups, num_kept_groups, normalise, scaling_factor

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [T, in] bf16 or float32 → ids [T, K] int64 and weights [T, K] float32, the best first."""
        (num_tokens, num_in), dtype = x.shape, x.dtype
        assert num_in == self._num_in, f"x is {tuple(x.shape)}, wanted [T, {self._num_in}]"
        assert dtype in _DTYPES, f"x is {dtype}"
        x = x.contiguous()
        topk_ids = torch.empty(num_tokens, self._top_k, dtype=torch.int64)
        topk_weights = torch.empty(num_tokens, self._top_k)
        threads, num_logits = torch.get_num_threads(), num_tokens * self._num_experts
        problem = self._gate(
            self._instruction_set, threads if num_logits * num_in >= _WORTH_THREADS else 1,
            threads if num_logits * self._top_k >= _WORTH_THREADS else 1, dtype is torch.float32, x.data_ptr(), num_tokens,
            *self._weight, *self._choice, topk_ids.data_ptr(), topk_weights.data_ptr(),
        )  # fmt: skip
        if problem:
            raise KernelError(f"gate: no memory for the scores of {num_tokens} tokens")
        return topk_ids, topk_weights


class CombineCall:
    """The exact combine of rows that are still on their way: all but one compiled call is done before the last of them is there."""

    def __init__(self, native: Native, weights: torch.Tensor, hidden: int, dtype: torch.dtype) -> None:
        """``weights`` float32 [T, K]; the rows are [hidden] in ``dtype``."""
        assert dtype in _DTYPES, f"rows are {dtype}"
        assert weights.dtype is torch.float32, f"weights are {weights.dtype}"
        (num_tokens, top_k), weights = weights.shape, weights.contiguous()
        # The address of each row; all are written before the call.
        self.places = array("q", bytes(8 * num_tokens * top_k))
        self.places_at, _ = self.places.buffer_info()
        self.total = torch.empty(num_tokens, hidden)  # [T, hidden] float32, summed in K's order
        self._weights = weights  # what an address below is of
        self._combine = native._library.expertfleet_combine
        threads = torch.get_num_threads() if num_tokens * top_k * hidden >= _WORTH_THREADS else 1
        self._given = (
            threads, dtype is torch.float32, self.places_at, weights.data_ptr(), num_tokens, top_k, hidden,
            self.total.data_ptr(),
        )  # fmt: skip

    def __call__(self) -> bool:
        """Whether all of the ``total`` is finite."""
        return bool(self._combine(*self._given))


class Blocks:
    """Where each expert's block of gate_up and of down lies, 0 where an expert is not held; the blocks must be kept."""

    def __init__(self, num_experts: int) -> None:
        self._addresses = torch.zeros((2, num_experts), dtype=torch.int64)
        self.num_experts = num_experts
        self.gate_up = self._addresses.data_ptr()
        self.down = self.gate_up + 8 * num_experts

    def has(self, expert: int) -> bool:
        return 0 <= expert < self.num_experts and bool(self._addresses[0, expert])

    def with_expert(self, expert: int, gate_up: torch.Tensor, down: torch.Tensor) -> "Blocks":
        more = Blocks(max(expert + 1, self.num_experts))
        more._addresses[:, : self.num_experts] = self._addresses
        more._addresses[:, expert] = torch.tensor([gate_up.data_ptr(), down.data_ptr()])
        return more

    def forget(self, expert: int) -> None:
        self._addresses[:, expert] = 0


@cache
def load() -> Native | str:
    """The library, or why it cannot be used here."""
    spec = importlib.util.find_spec(f"{__package__}.{_LIBRARY}")
    if spec is None or spec.origin is None:
        return "it was not built: no C++ compiler when the package was installed"
    try:
        native = Native(spec.origin)
    except AttributeError as error:
        return older(spec.origin, error)
    except OSError as error:
        return f"{spec.origin}: {error}"
    return native if native.instruction_sets else "this processor has neither AVX-512 with VNNI nor AVX2"


def older(path: str, error: AttributeError) -> str:
    """Why a library that lacks a call cannot be used; ctypes says which."""
    return f"{path} is older than the package, install it again ({str(error).rpartition(': ')[2]} is not in it)"


def unsupported(group_size: int) -> str:
    """Why this group size cannot be taken; empty if it can."""
    return (
        "" if group_size % GROUP == 0 else f"group_size: cpu-native cannot take {group_size}, only multiples of {GROUP}"
    )


def tensor_at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A view of memory that somebody else keeps."""
    memory = _memory_at(address, math.prod(shape) * dtype.itemsize, _WRITABLE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def _check_choice(bias: torch.Tensor, num_experts: int, top_k: int, num_groups: int, num_kept_groups: int) -> None:
    assert bias.dtype is torch.float32, f"the bias is {bias.dtype}"
    assert bias.shape == (num_experts,), f"the bias is {tuple(bias.shape)}, wanted {(num_experts,)}"
    assert 0 < top_k <= num_experts // num_groups * num_kept_groups, f"top_k is {top_k} of {num_experts} experts"
    assert num_experts % num_groups == 0, f"{num_experts} experts in {num_groups} groups"
    assert num_groups == 1 or num_experts >= 2 * num_groups, f"{num_experts} experts in {num_groups} groups"


def _contiguous(projection: tuple[Words, Scales]) -> tuple[Words, Scales]:
    words, scales = projection
    return words.contiguous(), scales.contiguous()


def _shape_of(words: Words, scales: Scales) -> tuple[int, int, int]:
    num_out, num_words = words.shape
    return num_out, 8 * num_words, 8 * num_words // scales.shape[1]
