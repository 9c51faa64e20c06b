"""kt-kernel (KTransformers' CPU experts, method RAWINT4) as a rival of bench_experts_cpu.py, in an environment of its own:

    python -m venv /some/where && /some/where/bin/pip install torch==2.13.0 safetensors gguf
    /some/where/bin/pip install --no-deps kt-kernel==0.7.2
    python benchmarks/bench_experts_cpu.py --rival "kt-kernel=/some/where/bin/python benchmarks/adapters/rawint4_kt_kernel.py"

It quantises rows to 8 bits. It wants pinned memory, which there is no use for without a GPU.
"""

import json
import sys
import time
from typing import Any

import torch


def main() -> None:
    setup = json.loads(sys.stdin.readline())
    torch.set_num_threads(setup["threads"])
    _without_pinned_memory()
    import kt_kernel

    experts = kt_kernel.KTMoEWrapper(
        layer_idx=1,
        num_experts=setup["experts"],
        num_experts_per_tok=setup["top_k"],
        hidden_size=setup["hidden"],
        moe_intermediate_size=setup["width"],
        gpu_experts_mask=None,
        cpuinfer_threads=setup["threads"],
        threadpool_count=1,
        weight_path=setup["folder"],
        chunked_prefill_size=max(64, setup["most_tokens"]),
        method="RAWINT4",
    )
    experts.load_weights(torch.arange(setup["experts"]))
    _say({"ready": f"kt-kernel {kt_kernel.__version__}, {kt_kernel.__cpu_variant__}, {type(experts.moe).__name__}"})
    for line in sys.stdin:
        job = json.loads(line)
        seconds, result = _run(experts, torch.load(job["x"]), torch.tensor(job["experts"]))
        if "result" in job:
            torch.save(result, job["result"])
        _say({"seconds": seconds})


def _run(experts: Any, x: torch.Tensor, chosen: torch.Tensor) -> tuple[float, torch.Tensor]:
    num_tokens, top_k = chosen.shape
    weights, result = torch.ones(num_tokens, top_k), torch.zeros_like(x)
    batch = torch.tensor([num_tokens], dtype=torch.int32)
    pointers = (tensor.data_ptr() for tensor in (chosen, weights, x, result))
    task = experts.moe.forward_task(batch.data_ptr(), top_k, *pointers, False)
    start = time.perf_counter()
    experts.cpu_infer.submit(task)
    experts.cpu_infer.sync(0)
    return time.perf_counter() - start, result


def _without_pinned_memory() -> None:
    zeros = torch.zeros
    torch.zeros = lambda *shape, pin_memory=False, **more: zeros(*shape, **more)  # type: ignore[assignment]


def _say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
