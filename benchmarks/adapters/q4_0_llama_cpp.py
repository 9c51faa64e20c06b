"""llama.cpp's experts (ggml's mul_mat_id on Q4_0) as a rival of bench_experts_cpu.py, through ggml's shared libraries:

    cmake -S llama.cpp -B /some/where -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON
    cmake --build /some/where --target ggml-cpu
    python benchmarks/bench_experts_cpu.py --rival "llama.cpp=python benchmarks/adapters/q4_0_llama_cpp.py /some/where/bin"

Q4_0 has K2's groups of 32 and its codes; a scale becomes a half. Weights lie where llama.cpp itself would put them: in
its repacked buffer where it has one for this processor. It quantises rows to 8 bits.
"""

import ctypes
import json
import sys
import time
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_F32, _Q4_0, _I32 = 0, 2, 26  # enum ggml_type
_GROUP = 32
_CONTEXT_BYTES = 1 << 20


class _InitParams(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class Ggml:
    """The few functions wanted; every pointer is opaque."""

    def __init__(self, folder: Path) -> None:
        libraries = [ctypes.CDLL(str(_find(folder, name)), mode=ctypes.RTLD_GLOBAL) for name in ("base", "cpu")]
        self._base, self._cpu = libraries
        new_tensor = (c_void_p, [c_void_p, c_int, c_int64, c_int64, c_int64])
        self.init = _typed(self._base.ggml_init, c_void_p, [_InitParams])
        self.free = _typed(self._base.ggml_free, None, [c_void_p])
        self.tensor = _typed(self._base.ggml_new_tensor_3d, *new_tensor)
        self.mul_mat_id = _typed(self._base.ggml_mul_mat_id, c_void_p, [c_void_p] * 4)
        self.swiglu = _typed(self._base.ggml_swiglu_split, c_void_p, [c_void_p] * 3)
        self.new_graph = _typed(self._base.ggml_new_graph, c_void_p, [c_void_p])
        self.expand = _typed(self._base.ggml_build_forward_expand, None, [c_void_p] * 2)
        self.allocate = _typed(self._base.ggml_backend_alloc_ctx_tensors_from_buft, c_void_p, [c_void_p] * 2)
        self.free_buffer = _typed(self._base.ggml_backend_buffer_free, None, [c_void_p])
        self.default_buffers = _typed(self._base.ggml_backend_get_default_buffer_type, c_void_p, [c_void_p])
        self.buffers_name = _typed(self._base.ggml_backend_buft_name, c_char_p, [c_void_p])
        self.set = _typed(self._base.ggml_backend_tensor_set, None, [c_void_p, c_void_p, c_size_t, c_size_t])
        self.get = _typed(self._base.ggml_backend_tensor_get, None, [c_void_p, c_void_p, c_size_t, c_size_t])
        self.compute = _typed(self._base.ggml_backend_graph_compute, c_int, [c_void_p] * 2)
        self.supports = _typed(self._base.ggml_backend_supports_op, c_bool, [c_void_p] * 2)
        self.backend = _typed(self._cpu.ggml_backend_cpu_init, c_void_p, [])()
        self._device = _typed(self._base.ggml_backend_get_device, c_void_p, [c_void_p])(self.backend)

    def set_threads(self, threads: int) -> None:
        _typed(self._cpu.ggml_backend_cpu_set_n_threads, None, [c_void_p, c_int])(self.backend, threads)

    def context(self) -> Any:
        return self.init(_InitParams(_CONTEXT_BYTES, None, True))

    def extra_buffers(self) -> list[Any]:
        """Buffer types that the CPU backend offers beside the plain one, the favourites first."""
        registry = _typed(self._base.ggml_backend_dev_backend_reg, c_void_p, [c_void_p])(self._device)
        find = _typed(self._base.ggml_backend_reg_get_proc_address, c_void_p, [c_void_p, c_char_p])
        address = find(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(self._device)
        found = []
        while listed and listed[len(found)]:
            found.append(listed[len(found)])
        return found


class Experts:
    """Gate, up and down of one layer in the first buffer type with which the backend can multiply them."""

    def __init__(self, ggml: Ggml, folder: str, hidden: int, width: int, experts: int) -> None:
        self._ggml, self._hidden, self._experts = ggml, hidden, experts
        plain = ggml.default_buffers(ggml.backend)
        for buffers in (*ggml.extra_buffers(), plain):
            context = ggml.context()
            up_shape, down_shape = (hidden, width), (width, hidden)
            shapes = {"gate": up_shape, "up": up_shape, "down": down_shape}
            self.weights = {name: ggml.tensor(context, _Q4_0, *each, experts) for name, each in shapes.items()}
            buffer = ggml.allocate(context, buffers)
            if buffer and self._can_multiply():
                break
            if buffer:
                ggml.free_buffer(buffer)
            ggml.free(context)
        self.buffers = ggml.buffers_name(buffers).decode()
        tensors = load_file(Path(folder) / "model.safetensors")
        for name, weight in self.weights.items():
            keys = (f"model.layers.1.mlp.experts.{index}.{name}_proj" for index in range(experts))
            blocks = [_blocks(tensors[f"{key}.weight_packed"], tensors[f"{key}.weight_scale"]) for key in keys]
            every = torch.cat(blocks)
            ggml.set(weight, every.data_ptr(), 0, every.nbytes)

    def run(self, x: torch.Tensor, chosen: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Seconds of the graph, and the sum over each token's experts [tokens, hidden]; x [tokens, hidden]."""
        ggml = self._ggml
        num_tokens, top_k = chosen.shape
        context = ggml.context()
        rows, ids = ggml.tensor(context, _F32, self._hidden, 1, num_tokens), _matrix(ggml, context, top_k, num_tokens)
        gate, up = (ggml.mul_mat_id(context, self.weights[name], rows, ids) for name in ("gate", "up"))
        result = ggml.mul_mat_id(context, self.weights["down"], ggml.swiglu(context, gate, up), ids)
        graph = ggml.new_graph(context)
        ggml.expand(graph, result)
        buffer = ggml.allocate(context, ggml.default_buffers(ggml.backend))
        for tensor, values in ((rows, x.float().contiguous()), (ids, chosen.int().contiguous())):
            ggml.set(tensor, values.data_ptr(), 0, values.nbytes)
        start = time.perf_counter()
        status = ggml.compute(ggml.backend, graph)
        seconds = time.perf_counter() - start
        assert status == 0, f"ggml_backend_graph_compute said {status}"
        found = torch.empty(num_tokens, top_k, self._hidden)
        ggml.get(result, found.data_ptr(), 0, found.nbytes)
        ggml.free_buffer(buffer)
        ggml.free(context)
        return seconds, found.sum(1)

    def _can_multiply(self) -> bool:
        ggml = self._ggml
        context = ggml.context()
        rows, ids = ggml.tensor(context, _F32, self._hidden, 1, 1), _matrix(ggml, context, 1, 1)
        able = ggml.supports(ggml.backend, ggml.mul_mat_id(context, self.weights["gate"], rows, ids))
        ggml.free(context)
        return bool(able)


def main() -> None:
    setup = json.loads(sys.stdin.readline())
    ggml = Ggml(Path(sys.argv[1]))
    ggml.set_threads(setup["threads"])
    experts = Experts(ggml, setup["folder"], setup["hidden"], setup["width"], setup["experts"])
    _say({"ready": f"ggml in {sys.argv[1]}, weights in {experts.buffers}"})
    for line in sys.stdin:
        job = json.loads(line)
        seconds, result = experts.run(torch.load(job["x"]), torch.tensor(job["experts"]))
        if "result" in job:
            torch.save(result, job["result"])
        _say({"seconds": seconds})


def _matrix(ggml: Ggml, context: Any, columns: int, rows: int) -> Any:
    return ggml.tensor(context, _I32, columns, rows, 1)


def _blocks(words: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """K2's words int32 [out, in / 8] and scales [out, in / 32] as Q4_0: a half, then codes 0-15 beside codes 16-31."""
    nibbles = (words[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    codes = nibbles.to(torch.uint8).view(-1, _GROUP)
    halves = scales.half().view(-1, 1).view(torch.uint8)
    low, high = codes.view(-1, 2, _GROUP // 2).unbind(1)
    return torch.cat((halves, low | high << 4), dim=1).flatten()


def _find(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(f"libggml-{name}.so*"))
    if not found:
        sys.exit(f"llama_cpp: {folder} has no libggml-{name}.so")
    return found[0]


def _typed(function: Any, result: Any, arguments: list[Any]) -> Any:
    function.restype, function.argtypes = result, arguments
    return function


def _say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
