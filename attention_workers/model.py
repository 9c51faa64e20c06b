"""The model without its routed experts, in reading order: embedding, latent attention, gate, dense and shared MLP, head.

Knows nothing of sequences' fate, of shards, and of the wire: routed experts are awaited from the router. Formulas:
DeepSeek-V2 (arXiv 2405.04434, section 2.1) and V3 (arXiv 2412.19437), as in transformers' ``modeling_deepseek_v3.py``;
attention in its absorbed form. Every operation is row-exact: a row's bits do not depend on its neighbours in the step.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

import torch

from ..checkpoint.model_config import ModelConfig
from ..kernels.activation import silu_mul
from ..kernels.batch_invariant_linear import BatchInvariantHeads, BatchInvariantLinear
from ..kernels.mla import DecodePlan, mla_attend, mla_decode
from ..kernels.norm import rms_norm
from ..kernels.rope import RopeTable, rotate
from ..kernels.row_rule import RowRule
from ..proto.errors import FleetError
from ..router.dispatch.gate import Gate
from ..router.router import Router
from .kv_cache import PAGE_SIZE, LatentCache, PageAllocator, slots_of
from .scheduler import Chunk

Watcher = Callable[[int, torch.Tensor], None]


# Decode rows of sequences up to this many splits are attended together, on a copy of their pages; longer ones alone.
_TOGETHER = 16


@dataclass(frozen=True)
class DecodeGroup:
    """Chunks of one row each whose attention is one call."""

    rows: torch.Tensor  # [B] int64, ascending
    pages: torch.Tensor | slice  # P of them, all of the first sequence, then of the second …
    plan: DecodePlan


@dataclass(frozen=True)
class Batch:
    """One forward step: the tokens of several chunks, one after the other."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    slots: torch.Tensor  # [T] int64, where each token's latent goes
    fresh_pages: list[int]  # pages whose first position is among them
    together: DecodeGroup | None
    alone: list[tuple[int, Chunk]]  # the other chunks, and the row at which each begins
    sampled_rows: torch.Tensor  # [S] int64, the last row of every chunk that samples
    priority: int
    chunks: list[Chunk]

    @staticmethod
    def of(chunks: list[Chunk], dtype: torch.dtype) -> "Batch":
        """``dtype`` is that of the hidden rows."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled: list[int] = []
        together: list[tuple[int, Chunk]] = []
        alone: list[tuple[int, Chunk]] = []
        for chunk in chunks:
            short = chunk.count == 1 and PageAllocator.needed(chunk.first + 1) <= _TOGETHER
            (together if short else alone).append((len(token_ids), chunk))
            last = chunk.first + chunk.count
            token_ids += chunk.sequence.tokens[chunk.first : last]
            positions += range(chunk.first, last)
            slots += slots_of(chunk.sequence.pages, chunk.first, chunk.count)
            if chunk.samples:
                sampled.append(len(token_ids) - 1)
        return Batch(
            torch.tensor(token_ids),
            torch.tensor(positions),
            torch.tensor(slots),
            [slot // PAGE_SIZE for slot in slots if slot % PAGE_SIZE == 0],
            _decode_group(together, dtype),
            alone,
            torch.tensor(sampled, dtype=torch.int64),
            min(chunk.sequence.priority for chunk in chunks),
            chunks,
        )

    def fail(self, faults: Mapping[int, FleetError]) -> None:
        """The sequences whose rows these are end when the step lands; the others go on."""
        begin = 0
        for chunk in self.chunks:
            end = begin + chunk.count
            chunk.sequence.fault = chunk.sequence.fault or next(
                (faults[row] for row in range(begin, end) if row in faults), None
            )
            begin = end


def _decode_group(members: list[tuple[int, Chunk]], dtype: torch.dtype) -> DecodeGroup | None:
    if not members:
        return None
    lengths = [chunk.first + 1 for _, chunk in members]
    pages = [
        page
        for (_, chunk), length in zip(members, lengths, strict=True)
        for page in chunk.sequence.pages[: PageAllocator.needed(length)]
    ]
    side_by_side = pages == list(range(pages[0], pages[0] + len(pages)))
    return DecodeGroup(
        torch.tensor([row for row, _ in members]),
        slice(pages[0], pages[0] + len(pages)) if side_by_side else torch.tensor(pages),
        DecodePlan.of(lengths, dtype),
    )


@dataclass(frozen=True)
class Attention:
    """Multi-head latent attention of one layer."""

    config: ModelConfig
    layer: int
    down: BatchInvariantLinear  # [kv_lora_rank + rope + q_lora_rank, H]: latent, shared key, and low-rank query if there is one
    kv_norm: torch.Tensor  # [kv_lora_rank]
    q_norm: torch.Tensor | None  # [q_lora_rank]; None: q_up takes the hidden row itself
    q_up: BatchInvariantLinear  # [heads · (nope + rope), q_lora_rank or H]
    absorb_key: BatchInvariantHeads  # W_UK [heads, nope, kv_lora_rank]
    absorb_value: BatchInvariantHeads  # W_UV transposed [heads, kv_lora_rank, v]
    out: BatchInvariantLinear  # [H, heads · v]
    scale: float  # of the scores before softmax
    rule: RowRule  # counts of query rows that give a row the same bits

    def __call__(self, x: torch.Tensor, batch: Batch, cache: LatentCache, angles: RopeTable) -> torch.Tensor:
        """[T, H] normalised hidden rows to [T, H]; the rows' latents are in the cache afterwards.

        ``angles`` are those of the rows' positions, [T, 1, rope / 2].
        """
        config, T = self.config, x.shape[0]
        rank, nope = config.kv_lora_rank, config.qk_nope_head_dim
        down = self.down(x)
        latent = rms_norm(down[:, :rank], self.kv_norm, config.latent_norm_eps)
        if self.q_norm is not None:
            x = rms_norm(down[:, config.latent_width :], self.q_norm, config.latent_norm_eps)
        query = self.q_up(x).view(T, config.num_heads, config.qk_head_dim)
        key = down[:, None, rank : config.latent_width]
        turned = rotate(torch.cat((query[..., nope:], key), dim=1), angles)  # [T, heads + 1, rope]
        cache.write(self.layer, batch.slots, torch.cat((latent, turned[:, -1]), dim=-1))

        q_latent = self.absorb_key(query[..., :nope])  # [T, heads, rank]
        attended = self._attend(q_latent, turned[:, :-1], batch, cache)
        return self.out(self.absorb_value(attended).reshape(T, -1))

    def _attend(
        self, q_latent: torch.Tensor, q_rope: torch.Tensor, batch: Batch, cache: LatentCache
    ) -> torch.Tensor:  # [T, heads, rank]
        """Each chunk over the latents of its own sequence."""
        group = batch.together
        if group is not None and not batch.alone:
            return mla_decode(q_latent, q_rope, cache.pages(self.layer, group.pages), group.plan, self.scale, self.rule)
        attended = torch.empty_like(q_latent)
        if group is not None:
            rows, splits = group.rows, cache.pages(self.layer, group.pages)
            attended[rows] = mla_decode(q_latent[rows], q_rope[rows], splits, group.plan, self.scale, self.rule)
        for row, chunk in batch.alone:
            chunk_rows = slice(row, row + chunk.count)
            latents = cache.gather(self.layer, chunk.sequence.pages, chunk.first + chunk.count)
            attended[chunk_rows] = mla_attend(
                q_latent[chunk_rows], q_rope[chunk_rows], latents, chunk.first, self.scale, self.rule
            )
        return attended


@dataclass(frozen=True)
class Mlp:
    """SwiGLU: the dense layers' MLP, and the shared expert."""

    gate_up: BatchInvariantLinear  # [2F, H]
    down: BatchInvariantLinear  # [H, F]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        both = self.gate_up(x)
        return self.down(silu_mul(both[:, : self.down.num_in], both[:, self.down.num_in :]))


@dataclass(frozen=True)
class Layer:
    """One decoder layer; ``gate`` is None for a dense one, whose MLP is then all there is."""

    attention_norm: torch.Tensor  # [H]
    attention: Attention
    mlp_norm: torch.Tensor  # [H]
    mlp: Mlp
    gate: Gate | None


class Model:
    """All layers; ``forward`` is a coroutine that stops wherever experts of other machines are needed."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: torch.Tensor,  # [V, H]
        layers: list[Layer],
        norm: torch.Tensor,  # [H]
        head: BatchInvariantLinear,  # [V, H]
        rope: RopeTable,
    ) -> None:
        self.config = config
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._head = head
        self._rope = rope

    async def forward(
        self, batch: Batch, cache: LatentCache, router: Router, watch: Watcher | None = None
    ) -> torch.Tensor:
        """Logits [S, V] fp32 of the sampled rows; ``watch`` sees (layer, hidden [T, H]) after every layer."""
        eps = self.config.rms_norm_eps
        cache.clear(batch.fresh_pages)
        angles = self._rope.at(batch.positions[:, None])
        x = self._embedding[batch.token_ids]
        for index, layer in enumerate(self._layers):
            x = x + layer.attention(rms_norm(x, layer.attention_norm, eps), batch, cache, angles)
            normed = rms_norm(x, layer.mlp_norm, eps)
            if layer.gate is None:
                x = x + layer.mlp(normed)
            else:
                routed, faults = await moe_forward(index, layer, layer.gate, normed, router, batch.priority)
                x = x + routed
                if faults:
                    batch.fail(faults)
                    x[list(faults)] = 0  # whatever they were, from here on they disturb nobody
            if watch is not None:
                watch(index, x)
        return self._head(rms_norm(x[batch.sampled_rows], self._norm, eps)).float()


async def moe_forward(
    index: int, layer: Layer, gate: Gate, x: torch.Tensor, router: Router, priority: int
) -> tuple[torch.Tensor, Mapping[int, FleetError]]:
    """Routed experts plus shared expert [T, H], computed while the routed rows travel; and rows that have no output."""
    topk_ids, topk_weights = gate(x)
    with closing(router.dispatch(index, x, topk_ids, topk_weights, priority)) as dispatch:
        shared = layer.mlp(x)
        await dispatch
        return (dispatch.combined() + shared.float()).to(x.dtype), dispatch.faults
