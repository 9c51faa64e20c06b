"""A worker reads its own tensors and no other byte, and holds little more than those bytes."""

import os
import random
import time
from pathlib import Path

import psutil
import pytest
import torch

from expertfleet.attention_workers.config import AttentionConfig
from expertfleet.attention_workers.server import AttentionServer
from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.expert_workers.config import ExpertConfig
from expertfleet.expert_workers.expert_store import ExpertStore
from expertfleet.expert_workers.server import ExpertServer
from expertfleet.expert_workers.sources import ExpertSources
from expertfleet.kernels.grouped_gemm import make_backend
from expertfleet.membership.epoch import ExpertSet


def ranges(checkpoint: Checkpoint, names: list[str]) -> set[tuple[str, int]]:
    """Every byte of the named tensors, in steps of their own granularity: (file, offset) of each tensor's bytes."""
    bytes_of: set[tuple[str, int]] = set()
    for name in names:
        info = checkpoint.info(name)
        bytes_of.update((info.file, offset) for offset in range(info.start, info.end))
    return bytes_of


def bytes_read(checkpoint: Checkpoint) -> set[tuple[str, int]]:
    return {(file, offset) for file, start, end in checkpoint.ranges_read for offset in range(start, end)}


def wait_loaded(server: ExpertServer | AttentionServer) -> None:
    deadline = time.monotonic() + 60
    while server.registration.state != "ready":
        assert time.monotonic() < deadline
        assert server.registration.state != "failed", server.registration.error
        time.sleep(0.02)


@pytest.fixture(scope="module")
def minute_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small enough to compare byte by byte."""
    directory = tmp_path_factory.mktemp("minute") / "model"
    make_tiny(directory, hidden=64, layers=3, experts=8, top_k=2, expert_width=32, dense_width=64, vocab=512)
    return directory


def test_a_shard_reads_the_bytes_of_its_experts_and_no_others(minute_checkpoint: Path) -> None:
    held = sorted(random.sample(range(8), 3))
    server = ExpertServer(ExpertConfig(minute_checkpoint, experts=",".join(map(str, held))))
    server.start()
    wait_loaded(server)
    checkpoint = server.checkpoint
    names = [
        name
        for layer in checkpoint.config.moe_layers
        for expert in held
        for pair in checkpoint.expert_names(layer, expert)
        for name in pair
    ]
    assert bytes_read(checkpoint) == ranges(checkpoint, names)
    server.stop(0)


def test_a_shard_becomes_what_it_is_told_and_reads_only_what_is_new(minute_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(minute_checkpoint)
    config = checkpoint.config
    backend = make_backend("reference", "cpu", torch.bfloat16, config.hidden_size, config.moe_intermediate_size, 32)
    store, given_back = ExpertStore(checkpoint, "bfloat16", ExpertSources(checkpoint)), []

    def become(*experts: int, stale_after: int = 1000) -> bool:
        wanted = ExpertSet.from_pairs(
            [(layer, expert) for layer in config.moe_layers for expert in experts],
            config.num_layers,
            config.num_experts,
        )
        checks = iter(range(1000))
        return store.apply_assignment(wanted, backend, give_back, lambda: next(checks) >= stale_after)

    def give_back(layer: int, experts: list[int]) -> None:
        assert not any(store.held.holds(layer, expert) for expert in experts)
        given_back.append((layer, experts))
        for expert in experts:
            store.layers[layer].remove(expert)

    assert become(1, 3, 5)
    assert (store.held.count, store.bytes_loaded) == (6, 6 * config.expert_bytes)
    before = bytes_read(checkpoint)
    assert become(3, 6)
    assert given_back == [(1, [1, 5]), (2, [1, 5])]
    names = [name for layer in (1, 2) for pair in checkpoint.expert_names(layer, 6) for name in pair]
    assert bytes_read(checkpoint) - before == ranges(checkpoint, names)
    assert store.held.experts(1) == store.held.experts(2) == (3, 6)
    assert (store.bytes_loaded, store.bytes_total) == (4 * config.expert_bytes, 4 * config.expert_bytes)
    assert not become(3, 6, 7, stale_after=1)
    assert store.held.count == 5
    with pytest.raises(ValueError, match="an order for"):
        store.apply_assignment(ExpertSet.empty(1, 1), backend, give_back, lambda: False)


def test_the_next_experts_are_on_their_way_while_one_is_packed_and_nothing_else_is(
    minute_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(minute_checkpoint)
    config = checkpoint.config
    events: list[tuple[str, str]] = []  # what happened to which tensor
    names = {(info.file, info.start, info.num_bytes): name for name, info in checkpoint.tensors.items()}

    def expect(descriptor: int, start: int, num_bytes: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        file = Path(f"/proc/self/fd/{descriptor}").readlink().name
        events.append(("expected", names[file, start, num_bytes]))

    def read(name: str, *more: object) -> torch.Tensor:
        events.append(("read", name))
        return real(name, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "posix_fadvise", expect)
    real = checkpoint.read
    monkeypatch.setattr(checkpoint, "read", read)
    backend = make_backend("reference", "cpu", torch.bfloat16, config.hidden_size, config.moe_intermediate_size, 32)
    store = ExpertStore(checkpoint, "bfloat16", ExpertSources(checkpoint))
    wanted = ExpertSet.from_pairs([(1, expert) for expert in range(5)], config.num_layers, config.num_experts)
    assert store.apply_assignment(wanted, backend, lambda layer, experts: None, lambda: False)
    by_expert = [[name for pair in checkpoint.expert_names(1, expert) for name in pair] for expert in range(5)]
    for what in ("expected", "read"):
        assert [name for event, name in events if event == what] == [name for mine in by_expert for name in mine]
    for expert in range(5):
        expected = {
            name for event, name in events[: events.index(("read", by_expert[expert][0]))] if event == "expected"
        }
        assert len(expected) == 6 * min(5, expert + 3)


def test_an_attention_worker_reads_everything_but_routed_experts(minute_checkpoint: Path) -> None:
    server = AttentionServer(AttentionConfig(minute_checkpoint, shards=("127.0.0.1:1",), max_model_len=512))
    server.start()
    wait_loaded(server)
    checkpoint = server.checkpoint
    names = [name for name in checkpoint.tensors if ".mlp.experts." not in name]
    assert bytes_read(checkpoint) == ranges(checkpoint, names)
    server.stop(0)


def test_nothing_of_the_checkpoint_stays_mapped(minute_checkpoint: Path) -> None:
    server = ExpertServer(ExpertConfig(minute_checkpoint))
    server.start()
    wait_loaded(server)
    mapped = [region.path for region in psutil.Process(os.getpid()).memory_maps(grouped=True)]
    assert not [path for path in mapped if str(minute_checkpoint) in path]
    server.stop(0)
