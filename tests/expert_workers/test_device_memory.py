"""A shard's memory is that of the device on which its experts lie."""

from pathlib import Path

import pytest
import torch

from expertfleet.expert_workers import device_memory
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.device_memory import available_on
from expertfleet.expert_workers.server import ExpertServer
from expertfleet.kernels.errors import KernelError

HOST, FREE = 7_000_000_000, {"cuda": 90_000_000, "cuda:0": 90_000_000, "cuda:1": 30_000_000}


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "available_memory", lambda: HOST)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE[device], 141 << 30))


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize("device", ["cpu", *FREE])
def test_what_is_free_is_asked_of_the_device(device: str) -> None:
    assert available_on(device) == FREE.get(device, HOST)


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize(("memory_gib", "num_bytes"), [(None, 0.9 * 30_000_000), (0.125, 1 << 27)])
def test_a_shard_s_capacity_is_the_gpu_s_or_what_it_was_told(
    small_checkpoint: Path, memory_gib: float | None, num_bytes: float
) -> None:
    server = ExpertServer(ExpertConfig(small_checkpoint, device="cuda:1", memory_gib=memory_gib))
    assert server._capacity() == int(num_bytes) // server.checkpoint.config.expert_bytes > 1
    on_cpu = ExpertServer(ExpertConfig(small_checkpoint))
    assert on_cpu._capacity() == int(0.9 * HOST) // server.checkpoint.config.expert_bytes


@pytest.mark.usefixtures("_two_gpus")
def test_a_gpu_that_there_is_not_is_refused_by_its_name() -> None:
    with pytest.raises(KernelError, match=r"device: 'cuda:2' is wanted, but torch sees 2 here, the last is 'cuda:1'"):
        available_on("cuda:2")


def test_without_any_gpu_the_shard_says_so(small_checkpoint: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    server = ExpertServer(ExpertConfig(small_checkpoint, device="cuda"))
    server.start()
    server._loader.join(30)
    assert server.registration.state == "failed"
    assert "device: 'cuda' is wanted, but torch" in server.registration.error
    assert server.stop(5)
