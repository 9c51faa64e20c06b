"""A whole shard with the Triton backend: settings, self-test, loading, frames; the interpreter stands in for the device."""

import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.expert_workers import device_memory
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.server import ExpertServer
from expertfleet.kernels import expert_backend, numerics
from expertfleet.kernels.grouped_gemm import grouped_gemm_reference
from expertfleet.kernels.triton_layer import TritonLayer
from expertfleet.membership.epoch import Epoch, EpochId, Member
from expertfleet.proto.codec import Hello
from expertfleet.router.router import Router
from expertfleet.transport.io_thread import IoThread
from expertfleet.transport.reactor import Reactor

LAYER = 1
FREE_OF_GPU = 100_000


@pytest.fixture
def _interpreted_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shard asks of a GPU is answered, and its tensors stay on the CPU."""
    monkeypatch.setattr(expert_backend, "check_triton", lambda *arguments: None)
    monkeypatch.setattr(
        expert_backend, "TritonLayer", lambda shape, device: TritonLayer(shape, {"cuda:0": "cpu"}[device])
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: {"cuda:0": "NVIDIA H100 80GB HBM3"}[device])
    monkeypatch.setattr(numerics, "_COUNTS", (2, 9, 20))
    monkeypatch.setattr(device_memory, "_free_of_gpu", lambda device: {"cuda:0": FREE_OF_GPU}[device])


@pytest.mark.usefixtures("_interpreted_device")
def test_a_shard_on_a_gpu_answers_as_float64_does_and_names_its_class(tmp_path: Path) -> None:
    make_tiny(tmp_path / "model", hidden=64, layers=2, experts=8, expert_width=32, dense_width=32, vocab=512)
    checkpoint = Checkpoint.open(tmp_path / "model")
    server = ExpertServer(ExpertConfig(tmp_path / "model", device="cuda:0"))
    server.start()
    while server.registration.state not in ("ready", "failed"):
        time.sleep(0.05)
    assert server.registration.state == "ready"
    assert server.numerics.startswith("triton-v1-nvidia_h100_80gb_hbm3-triton3.")
    assert server._capacity() == int(0.9 * FREE_OF_GPU) // checkpoint.config.expert_bytes > 1
    assert server.backend is not None
    assert "triton bfloat16, 64→32→64 group 32; any number of rows on NVIDIA H100" in server.backend.description

    io, reactor = IoThread("test-io"), Reactor()
    router = Router(io, reactor, Hello("attention-0", checkpoint.fingerprint, "bfloat16", 1 << 20), 60.0)
    member = Member("expert-0", server.address, server.numerics, server.store.held)
    router.set_epoch(Epoch(EpochId(1, 1), checkpoint.fingerprint, "bfloat16", (member,), (), True))
    assert reactor.run(lambda: router.usable, 60)
    x = torch.randn(3, 64).bfloat16()
    weights, ids = torch.rand(3, 8).topk(2)
    with closing(router.dispatch(LAYER, x, ids, weights)) as dispatch:
        assert reactor.run(lambda: dispatch.done, 60)
        assert dispatch.error is None
        found = dispatch.combined()
    router.close()
    io.stop()
    assert server.stop()

    rows, routed = torch.arange(3).repeat_interleave(2), ids.flatten()
    experts = {
        expert: tuple((checkpoint.read(p), checkpoint.read(s)) for p, s in checkpoint.expert_names(LAYER, expert))
        for expert in routed.tolist()
    }
    each = grouped_gemm_reference(x, rows, routed, experts)  # type: ignore[arg-type]
    wanted = (each.view(3, 2, 64) * weights[..., None]).sum(1)
    assert float((found.double() - wanted).norm() / wanted.norm()) <= 1e-2  # short sums scatter
