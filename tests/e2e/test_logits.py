"""The whole path against the oracle: a model in this process, its experts on real shard processes over real lanes."""

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from expertfleet.attention_workers.config import AttentionConfig
from expertfleet.attention_workers.kv_cache import PageAllocator
from expertfleet.attention_workers.model import Batch
from expertfleet.attention_workers.scheduler import Chunk
from expertfleet.attention_workers.sequence import SamplingParams, Sequence
from expertfleet.attention_workers.server import AttentionServer


class Probe:
    """Runs forward passes of an attention server's model outside its engine, keeping every row."""

    def __init__(self, server: AttentionServer, run_forward: Callable[..., Any]) -> None:
        self._server, self._run_forward = server, run_forward

    def logits(self, token_ids: list[int], chunk: int = 512) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits [T, V] of a prompt computed in chunks, and the hidden rows [T, H] after every layer."""
        sequence = Sequence("probe", token_ids, len(token_ids), 1, SamplingParams(), lambda update: None)
        pages = self._server.pages
        sequence.pages = pages.take(PageAllocator.needed(len(token_ids)))
        logits, hidden = [], []
        for first in range(0, len(token_ids), chunk):
            count = min(chunk, len(token_ids) - first)
            rows, layers = self._forward(Chunk(sequence, first, count))
            logits.append(rows)
            hidden.append(layers)
        pages.give_back(sequence.pages)
        return torch.cat(logits), [torch.cat(parts) for parts in zip(*hidden, strict=True)]

    def _forward(self, chunk: Chunk) -> tuple[torch.Tensor, list[torch.Tensor]]:
        server, layers = self._server, []
        batch = Batch.of([chunk], server.dtype)
        batch = dataclasses.replace(batch, sampled_rows=torch.arange(chunk.count))
        assert server._model is not None
        forward = server._model.forward(batch, server.cache, server.router, lambda layer, rows: layers.append(rows))
        return self._run_forward(server, forward), layers


@pytest.fixture
def probe(
    start: Callable[..., Any], small_checkpoint: Path, run_forward: Callable[..., Any]
) -> Iterator[Callable[[str], Probe]]:
    """``probe(dtype)``: a model whose experts live on two shard processes."""
    servers = []

    def make(dtype: str) -> Probe:
        halves = ("0-20,40-50", "21-39,51-63")
        shards = [
            start(
                "expert_workers",
                "--model",
                small_checkpoint,
                "--dtype",
                dtype,
                "--seat",
                f"expert-{n}",
                "--experts",
                half,
            )
            for n, half in enumerate(halves)
        ]
        addresses = tuple(shard.address() for shard in shards)
        server = AttentionServer(AttentionConfig(small_checkpoint, shards=addresses, dtype=dtype))
        server.start()
        servers.append(server)
        assert server.router.wait_usable(60), server.registration.report()
        return Probe(server, run_forward)

    yield make
    for server in servers:
        server.stop(0)


def prompts(vocab_size: int) -> list[list[int]]:
    """16 random prompts of 1 to 200 tokens."""
    rng = random.Random()
    lengths = [1, 2, 200, *(rng.randint(1, 200) for _ in range(13))]
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]


# Two experts whose scores are closer than this are a tie in float32.
TIE = 1e-5


def compare_float32(oracle: ModuleType, model: Any, ours: Probe, prompt: list[int]) -> tuple[torch.Tensor, int]:
    """Each row's largest log-probability difference [T], and the first row where the oracle's gate had a tie.

    Greedy tokens must agree wherever a row agrees and the oracle's two best are more than 1e-3 apart.
    """
    with torch.inference_mode(), oracle.gate_gaps(model) as gaps:
        reference = model(torch.tensor([prompt])).logits[0].double().log_softmax(-1)
    mine = ours.logits(prompt)[0].double().log_softmax(-1)
    ties = (torch.stack(gaps).amin(0) < TIE).nonzero().flatten().tolist()
    difference = (mine - reference).abs().amax(-1)
    best = reference.topk(2, dim=-1)
    clear = (best.values[:, 0] - best.values[:, 1] > 1e-3) & (difference <= 1e-3)
    assert torch.equal(mine.argmax(-1)[clear], best.indices[clear, 0])
    return difference, min(ties, default=len(prompt))


def test_float32_log_probabilities_equal_the_oracles(
    probe: Callable[[str], Probe], oracle: ModuleType, small_checkpoint: Path
) -> None:
    model = oracle.load_oracle(small_checkpoint, torch.float32)
    ours = probe("float32")
    num_rows = num_off = 0
    largest = 0.0
    for prompt in prompts(model.config.vocab_size):
        difference, first_tie = compare_float32(oracle, model, ours, prompt)
        assert (difference[:first_tie] <= 1e-3).all(), (float(difference[:first_tie].max()), first_tie, len(prompt))
        largest = max(largest, float(difference[:first_tie].max()) if first_tie else 0.0)
        num_rows += len(prompt)
        num_off += int((difference > 1e-3).sum())
    print(f"largest log-probability difference of rows without a tie before them: {largest:.1e}")
    assert num_off <= 0.1 * num_rows, f"{num_off} of {num_rows} rows after a tie differ by more than 1e-3"


@pytest.mark.slow
def test_float32_beyond_the_original_context(
    probe: Callable[[str], Probe], oracle: ModuleType, small_checkpoint: Path
) -> None:
    """A tie in one row's routing reaches every row that looks back at it: a few times 1e-3; a wrong YaRN is 0.3 and more."""
    model = oracle.load_oracle(small_checkpoint, torch.float32)
    rng = random.Random()
    prompt = [rng.randrange(model.config.vocab_size) for _ in range(4096 + rng.randint(10, 120))]
    difference, first_tie = compare_float32(oracle, model, probe("float32"), prompt)
    assert (difference[:first_tie] <= 1e-3).all(), (float(difference[:first_tie].max()), first_tie)
    for rows in (difference, difference[4096:]):
        assert (rows <= 1e-2).float().mean() >= 0.9, f"largest {float(rows.max())}, median {float(rows.median())}"


def test_bfloat16_errs_no_more_than_transformers_bfloat16(
    probe: Callable[[str], Probe], oracle: ModuleType, small_checkpoint: Path
) -> None:
    """Over some 6,000 rows: the few whose routing rounding flips dominate, and fewer rows would leave it to chance."""
    exact = oracle.load_oracle(small_checkpoint, torch.float32)
    rounded = oracle.load_oracle(small_checkpoint, torch.bfloat16)
    ours, vocab_size = probe("bfloat16"), exact.config.vocab_size
    long = [[random.randrange(vocab_size) for _ in range(200)] for _ in range(24)]
    kl = torch.zeros(2, dtype=torch.float64)  # ours, theirs
    squares = torch.zeros(2, exact.config.num_hidden_layers - 1, dtype=torch.float64)
    for prompt in prompts(vocab_size) + long:
        with torch.inference_mode():
            reference = exact(torch.tensor([prompt]), output_hidden_states=True)
            theirs = rounded(torch.tensor([prompt]), output_hidden_states=True)
        logits, layers = ours.logits(prompt)
        goal = reference.logits[0].double().log_softmax(-1)
        kl += torch.stack([divergence(goal, logits), divergence(goal, theirs.logits[0])])
        # transformers' last hidden state is the normalised one: every layer but the last is compared.
        for layer, hidden in enumerate(reference.hidden_states[1:-1]):
            for side, rows in enumerate((layers[layer], theirs.hidden_states[layer + 1][0])):
                squares[side, layer] += (rows.double() - hidden[0].double()).square().sum()
    print(f"KL ours / theirs: {float(kl[0] / kl[1]):.3f}; hidden by layer: {(squares[0] / squares[1]).sqrt().tolist()}")
    assert kl[0] <= 1.2 * kl[1], kl
    assert (squares[0].sqrt() <= 1.2 * squares[1].sqrt()).all(), squares


def divergence(goal: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(goal ‖ logits) summed over the rows; ``goal`` holds log-probabilities."""
    other = logits.double().log_softmax(-1)
    return (goal.exp() * (goal - other)).sum()
