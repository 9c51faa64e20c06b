"""Local files, shared files, a peer: in this order, counted, and none of them silently."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from expertfleet.checkpoint.checkpoint_headers import Outline
from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.tensors import Checkpoint
from expertfleet.expert_workers.expert_store import ExpertStore
from expertfleet.expert_workers.peers import Failure, Peers
from expertfleet.expert_workers.sources import ExpertSources, NoSourceError
from expertfleet.kernels.expert_layer import ExpertWeights
from expertfleet.kernels.grouped_gemm import make_backend
from expertfleet.membership.epoch import ExpertSet

LAYER, EXPERT = 1, 3


class OnePeer(Peers):
    """Has everything but ``lacks``; ``copies`` of every expert are known."""

    def __init__(self, checkpoint: Checkpoint, lacks: set[tuple[int, int]] | None = None) -> None:
        self.checkpoint, self.lacks = checkpoint, lacks or set()
        self.asked: list[tuple[int, int]] = []
        self.copies = np.zeros((checkpoint.config.num_layers, checkpoint.config.num_experts), dtype=np.int64)

    def read(self, layer: int, expert: int, file: str) -> ExpertWeights | Failure:
        self.asked.append((layer, expert))
        if (layer, expert) in self.lacks:
            return Failure(["expert-1: has it not", "expert-2: is gone"])
        return weights_of(self.checkpoint, layer, expert)

    def num_copies(self) -> np.ndarray:
        return self.copies


def weights_of(checkpoint: Checkpoint, layer: int, expert: int) -> ExpertWeights:
    names = checkpoint.expert_names(layer, expert)
    gate, up, down = ((checkpoint.read(packed), checkpoint.read(scale)) for packed, scale in names)
    return gate, up, down


def same(found: ExpertWeights, wanted: ExpertWeights) -> bool:
    return all(torch.equal(a, b) for one, two in zip(found, wanted, strict=True) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sources") / "model"
    make_tiny(directory, hidden=64, layers=3, experts=8, top_k=2, expert_width=32, dense_width=64, vocab=512)
    return directory


@pytest.fixture
def local(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "local"))


def cut(folder: Path, checkpoint: Checkpoint) -> Path:
    """Takes the end of the expert's last tensor away; which file that was in."""
    infos = [checkpoint.info(name) for pair in checkpoint.expert_names(LAYER, EXPERT) for name in pair]
    last = max(infos, key=lambda info: info.end)
    os.truncate(folder / last.file, last.end - 1)
    return folder / last.file


def test_the_first_source_that_can_gives_it(whole: Path, local: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = Checkpoint.open(whole)
    wanted = weights_of(reference, LAYER, EXPERT)
    shared = Path(shutil.copytree(whole, local.parent / "shared"))
    sources = ExpertSources(Checkpoint.open(local, shared), peer := OnePeer(reference))
    assert same(sources.read(LAYER, EXPERT), wanted)
    assert sources.counters.loads == {"local": 1, "shared": 0, "peer": 0}
    assert caplog.text == ""
    path = cut(local, reference)
    assert all(same(sources.read(LAYER, EXPERT), wanted) for _ in range(2))
    assert sources.counters.loads == {"local": 1, "shared": 2, "peer": 0}
    assert caplog.text.count(f"{path}: ") == 1
    assert "truncated at byte" in caplog.text
    assert peer.asked == []
    path = cut(shared, reference)
    assert all(same(sources.read(LAYER, EXPERT), wanted) for _ in range(2))
    assert sources.counters.loads == {"local": 1, "shared": 2, "peer": 2}
    assert caplog.text.count("a peer gives it") == 1
    assert str(path) in caplog.text


def test_a_disk_that_fails_is_named_and_left(
    whole: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reference = Checkpoint.open(whole)
    wanted = weights_of(reference, LAYER, EXPERT)
    peer = OnePeer(reference)
    monkeypatch.setattr(peer, "read", lambda layer, expert, file: wanted)
    sources = ExpertSources(Checkpoint.open(whole), peer)

    def fail(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("expertfleet.checkpoint.folders.os.preadv", fail)
    assert same(sources.read(LAYER, EXPERT), wanted)
    assert sources.counters.loads["peer"] == 1
    assert f"{whole}/" in caplog.text
    assert "Input/output error" in caplog.text


def test_when_all_fail_each_one_s_reason_is_told(whole: Path, local: Path) -> None:
    reference = Checkpoint.open(whole)
    sources = ExpertSources(Checkpoint.open(local), OnePeer(reference, lacks={(LAYER, EXPERT)}))
    cut(local, reference)
    with pytest.raises(NoSourceError) as caught:
        sources.read(LAYER, EXPERT)
    told = str(caught.value)
    assert told.startswith(f"expert {EXPERT} of layer {LAYER} cannot be loaded: local files: {local}")
    assert told.endswith("; peers: expert-1: has it not; expert-2: is gone")
    assert (sources.counters.failed, sum(sources.counters.loads.values())) == (1, 0)


def test_without_a_controller_the_files_are_all_there_is(whole: Path, local: Path) -> None:
    sources = ExpertSources(Checkpoint.open(local))
    cut(local, Checkpoint.open(whole))
    with pytest.raises(NoSourceError, match=r"expert 3 of layer 1 cannot be loaded: local files: .*truncated at byte"):
        sources.read(LAYER, EXPERT)
    assert sources.counters.failed == 1


def test_what_nobody_can_give_does_not_keep_a_shard_from_the_rest(whole: Path, local: Path) -> None:
    for path in local.glob("*.safetensors"):
        path.unlink()
    reference = Checkpoint.open(whole)
    checkpoint = Checkpoint.open(local, ask=Outline(whole).heads)
    peer = OnePeer(reference, lacks={(1, 0), (2, 7)})
    peer.copies[:, 4:] = 1
    store, config = ExpertStore(checkpoint, "bfloat16", ExpertSources(checkpoint, peer)), checkpoint.config
    backend = make_backend("reference", "cpu", torch.bfloat16, config.hidden_size, config.moe_intermediate_size, 32)
    everything = ExpertSet.full(config.num_layers, config.num_experts, config.num_dense_layers)

    def become() -> bool:
        return store.apply_assignment(everything, backend, lambda layer, experts: None, lambda: False)

    with pytest.raises(NoSourceError, match=r"expert 0 of layer 1 .*expert-2: is gone \(and 1 others\)"):
        become()
    assert store.held.count == everything.count - 2
    assert peer.asked[:4] == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert [expert for _, expert in peer.asked[:8]] == [0, 1, 2, 3] * 2, "what nobody holds comes first"
    peer.lacks.clear()
    assert become()
    assert peer.asked[16:] == [(1, 0), (2, 7)]
    assert store.held == everything
