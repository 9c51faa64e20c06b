"""The compiled kernel: every instruction set of this processor gives the same bits, whatever the rows beside a row."""

import os
import random
import subprocess
import sys
import threading

import pytest
import torch

from expertfleet.kernels import int4, native
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.expert_backend import make_backend
from expertfleet.kernels.expert_layer import ExpertLayer, Projection
from expertfleet.kernels.grouped_gemm import grouped_gemm, grouped_gemm_reference
from expertfleet.kernels.row_rule import bits_of

ExpertWeights = tuple[Projection, Projection, Projection]


def loaded() -> native.Native:
    library = native.load()
    assert isinstance(library, native.Native), library
    return library


INSTRUCTION_SETS = loaded().instruction_sets


def _random_three(hidden: int, width: int, group: int) -> ExpertWeights:
    def projection(num_out: int, num_in: int) -> Projection:
        scales = torch.rand(num_out, num_in // group).mul_(0.05).add_(0.001).bfloat16()
        return int4.pack(torch.randint(0, 16, (num_out, num_in))), scales

    return projection(width, hidden), projection(width, hidden), projection(hidden, width)


def _layers(
    dtype: torch.dtype, hidden: int, width: int, group: int, experts: dict[int, ExpertWeights]
) -> list[ExpertLayer]:
    layers = []
    for name in INSTRUCTION_SETS:
        layer = make_backend("cpu-native", "cpu", dtype, hidden, width, group, instruction_set=name).new_layer()
        for expert_id, three in experts.items():
            layer.add(expert_id, *three)
        layers.append(layer)
    return layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("hidden", "width", "group"),
    [(32, 32, 32), (96, 64, 32), (320, 96, 32), (512, 192, 64), (512, 256, 256), (896, 256, 32)],
)
def test_all_instruction_sets_and_thread_counts_give_the_same_bits(
    threads: int, dtype: torch.dtype, hidden: int, width: int, group: int
) -> None:
    experts = {expert_id: _random_three(hidden, width, group) for expert_id in (0, 2, 9)}
    layers = _layers(dtype, hidden, width, group, experts)
    num_rows = random.randint(1, 40)
    # Rows of very different sizes, and groups of zeros within them.
    x = (torch.randn(num_rows, hidden) * 10 ** torch.empty(num_rows, 1).uniform_(-3, 3)).to(dtype)
    x[:, : min(32, hidden // 2)] = 0
    rows = torch.randint(0, num_rows, (150,))
    routed = torch.tensor([0, 2, 9])[torch.randint(0, 3, (150,))]
    routed[:70] = 2
    found = [bits_of(grouped_gemm(x, rows, routed, layer)) for layer in layers]
    assert all(torch.equal(found[0], other) for other in found[1:]), INSTRUCTION_SETS
    for index in random.sample(range(150), 20):
        for layer in layers:
            alone = grouped_gemm(x[rows[index] : rows[index] + 1], torch.tensor([0]), routed[index : index + 1], layer)
            assert torch.equal(bits_of(alone)[0], found[0][index])
    wanted = grouped_gemm_reference(x, rows, routed, experts)
    result = grouped_gemm(x, rows, routed, layers[0]).double()
    error = ((result - wanted).norm(dim=1) / wanted.norm(dim=1).clamp(min=1e-30)).max()
    assert error <= (4e-3 if dtype is torch.bfloat16 else 4e-6)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_one_to_256_rows_of_one_expert(name: str) -> None:
    backend = make_backend("cpu-native", "cpu", torch.bfloat16, 128, 64, 32, instruction_set=name)
    layer = backend.new_layer()
    layer.add(0, *_random_three(128, 64, 32))
    x = torch.randn(256, 128).bfloat16()
    zeros = torch.zeros(256, dtype=torch.int64)
    alone = torch.cat([grouped_gemm(x[row : row + 1], zeros[:1], zeros[:1], layer) for row in range(256)])
    for count in range(1, 257):
        found = grouped_gemm(x[:count], torch.arange(count), zeros[:count], layer)
        assert torch.equal(bits_of(found), bits_of(alone[:count])), count


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_an_outlier_costs_the_other_values_of_its_group_little(name: str) -> None:
    """One value 300 times the others: they keep 6 bits less, and the result as a whole bf16's precision."""
    three = _random_three(256, 64, 32)
    backend = make_backend("cpu-native", "cpu", torch.bfloat16, 256, 64, 32, instruction_set=name)
    layer = backend.new_layer()
    layer.add(0, *three)
    x = torch.randn(8, 256)
    x[:, ::32] *= 300
    rows, routed = torch.arange(8), torch.zeros(8, dtype=torch.int64)
    found = grouped_gemm(x.bfloat16(), rows, routed, layer).double()
    wanted = grouped_gemm_reference(x.bfloat16(), rows, routed, {0: three})
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() <= 4e-3


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_harms_no_other(name: str, bad: float) -> None:
    backend = make_backend("cpu-native", "cpu", torch.bfloat16, 64, 32, 32, instruction_set=name)
    layer = backend.new_layer()
    layer.add(0, *_random_three(64, 32, 32))
    x = torch.randn(20, 64).bfloat16()
    rows, routed = torch.arange(20), torch.zeros(20, dtype=torch.int64)
    before = grouped_gemm(x, rows, routed, layer)
    x[11, 40] = bad
    after = grouped_gemm(x, rows, routed, layer)
    others = rows != 11
    assert torch.equal(bits_of(after[others]), bits_of(before[others]))
    assert not after[11].isfinite().any()


def test_experts_come_while_others_go() -> None:
    three = _random_three(64, 32, 32)
    (layer, *_) = _layers(torch.bfloat16, 64, 32, 32, dict.fromkeys(range(100), three))
    coming = threading.Thread(target=lambda: [layer.add(expert, *three) for expert in range(100, 200)])
    coming.start()
    x, none = torch.randn(1, 64).bfloat16(), torch.zeros(1, dtype=torch.int64)
    for expert in range(100):
        layer.remove(expert)
        with pytest.raises(KernelError, match=f"expert {expert} is not held"):
            grouped_gemm(x, none, none + expert, layer)
    coming.join()
    for expert in range(100):
        with pytest.raises(KernelError, match=f"expert {expert} is not held"):
            grouped_gemm(x, none, none + expert, layer)
    every = torch.arange(100, 200)
    found = grouped_gemm(x, none.expand(100), every, layer)
    assert torch.equal(found, found[:1].expand_as(found))


def test_calls_from_many_threads_at_once() -> None:
    (layer, *_) = _layers(torch.bfloat16, 128, 64, 32, {0: _random_three(128, 64, 32)})
    x = torch.randn(6, 128).bfloat16()
    rows, routed = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    wanted = grouped_gemm(x, rows, routed, layer)
    wrong: list[int] = []

    def run(number: int) -> None:
        torch.set_num_threads(1 + number % 2)
        for _ in range(50):
            if not torch.equal(grouped_gemm(x, rows, routed, layer), wanted):
                wrong.append(number)

    running = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not wrong


_FORKED = """
import os, torch
from expertfleet.kernels import int4
from expertfleet.kernels.grouped_gemm import grouped_gemm, make_backend
torch.set_num_threads(2)
layer = make_backend("cpu-native", "cpu", torch.bfloat16, 64, 32, 32).new_layer()
def projection(num_out, num_in):
    return int4.pack(torch.randint(0, 16, (num_out, num_in))), torch.ones(num_out, num_in // 32).bfloat16()
layer.add(0, projection(32, 64), projection(32, 64), projection(64, 32))
x, zeros = torch.ones(1, 64).bfloat16(), torch.zeros(1, dtype=torch.int64)
first = grouped_gemm(x, zeros, zeros, layer)
child = os.fork()
if not child:
    os._exit(0 if torch.equal(grouped_gemm(x, zeros, zeros, layer), first) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_has_threads_of_its_own() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", _FORKED], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert ended.stdout.strip() == "0", ended.stderr
