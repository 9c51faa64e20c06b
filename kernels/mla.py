"""Multi-head latent attention in absorbed form whose rows never depend on the rows computed beside them.

Knows nothing of projections, caches or sequences: it takes one sequence's latents as one contiguous tensor.
1. Positions are cut into aligned splits of 256, whatever the row; 2. per split torch's CPU flash attention (form
``flash``; ``plain`` products where that is missing) gives the normalised P·V and the log-sum-exp, with query rows
(tokens times heads) padded to counts that proved equal; 3. splits are joined in order in float32. A split that a row does not see is masked and weighs exactly 0, so a decode row equals
the same row inside any chunk.
Measured with AMX, 1 thread, 64 heads: one token at 8,192 positions takes 7.9 ms, 32 tokens 0.14 s, where float32 scores
with bf16 P·V take 0.78 s. The operator gives other bits for a single query row, for the last one of 33 (float32 also of
65), and at small widths below and above 64 rows, which is why the counts are tested.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from .row_rule import RowCall, RowRule, RuleCache, choose_rule
from .self_test_inputs import cancelling

SplitCall = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]

SPLIT = 256
_QUERY_SIZES = (16, 32, 48, 64, 96, 128, 192, 256)
_TILE_VALUES = 1 << 25  # query rows × splits × width held at once
_FEW_ROWS = 128  # up to here tiles of 32 are faster: from 64 rows on the operator rearranges all keys first
_SMALL_TILE = 32
_NOISE_SCALE = 1000.0  # makes rounding noise in scores as large as scores are


def attention_rule(book: RuleCache, num_latent: int, num_rope: int, dtype: torch.dtype) -> RowRule:
    """The counts of query rows (tokens × heads) to run, for latents of this width."""
    width = num_latent + num_rope
    name = str(dtype).removeprefix("torch.")
    return book.find(f"attention {num_latent}+{num_rope} {name}", lambda: _choose(width, dtype))


def mla_attend(
    q_latent: torch.Tensor,  # [R, heads, C]
    q_rope: torch.Tensor,  # [R, heads, D]
    latent: torch.Tensor,  # [S, C + D] contiguous: normalised latents, then rotated keys
    first_position: int,  # row r sees positions 0 .. first_position + r
    scale: float,
    rule: RowRule,
) -> torch.Tensor:  # [R, heads, C]
    num_rows, num_heads, num_latent = q_latent.shape
    num_positions = first_position + num_rows
    assert latent.shape[0] >= num_positions, f"{latent.shape[0]} latents given, {num_positions} needed"
    assert latent.is_contiguous(), "latents must be contiguous"
    query = torch.cat((q_latent, q_rope), dim=-1).view(num_rows * num_heads, -1)
    positions = torch.arange(first_position, num_positions).repeat_interleave(num_heads)  # [R * heads]
    result = torch.empty((num_rows * num_heads, num_latent), dtype=query.dtype)
    tile = _tile_rows(rule, len(query), -(-num_positions // SPLIT) * query.shape[1])
    for start in range(0, len(query), tile):
        stop = min(start + tile, len(query))
        parts, log_sums = _attend_tile(query[start:stop], positions[start:stop], latent, scale, rule)
        result[start:stop] = _join(parts, log_sums, num_latent)[: stop - start]
    return result.view(num_rows, num_heads, num_latent)


@dataclass(frozen=True)
class DecodePlan:
    """What ``mla_decode`` derives from the lengths alone: the same in every layer of a step."""

    counts: tuple[int, ...]  # [B] splits of each sequence
    owners: torch.Tensor  # [P] int64, the sequence of each split
    mask: torch.Tensor  # [P, 1, 1, 256], what of each split is not seen

    @staticmethod
    def of(num_positions: Sequence[int], dtype: torch.dtype) -> "DecodePlan":
        """``num_positions`` of each sequence are at least 1."""
        counts = tuple(-(-number // SPLIT) for number in num_positions)
        owners = [sequence for sequence, count in enumerate(counts) for _ in range(count)]
        seen = [min(number - start, SPLIT) for number in num_positions for start in range(0, number, SPLIT)]
        unseen = torch.arange(SPLIT) >= torch.tensor(seen)[:, None]
        mask = torch.zeros(len(seen), SPLIT, dtype=dtype).masked_fill_(unseen, float("-inf"))
        return DecodePlan(counts, torch.tensor(owners), mask[:, None, None])


def mla_decode(
    q_latent: torch.Tensor,  # [B, heads, C], the newest row of each of B sequences
    q_rope: torch.Tensor,  # [B, heads, D]
    splits: torch.Tensor,  # [P, 256, C + D], all splits of the first sequence, then of the second …; tails finite
    plan: DecodePlan,  # of the sequences' lengths
    scale: float,
    rule: RowRule,
) -> torch.Tensor:  # [B, heads, C]
    """As ``mla_attend`` with one row for each sequence, bit for bit, in one call for all of them.

    It wants the splits side by side, which may cost a copy: worth it for short contexts, where calls are what is dear.
    """
    num_sequences, num_heads, num_latent = q_latent.shape
    assert len(plan.counts) == num_sequences, f"{len(plan.counts)} lengths for {num_sequences} rows"
    assert len(plan.owners) == len(splits), f"{len(plan.owners)} splits needed, {len(splits)} given"
    query = torch.cat((q_latent, q_rope), dim=-1)
    tile = _tile_rows(rule, num_heads, len(splits) * query.shape[2])
    tiles = []
    for start in range(0, num_heads, tile):
        heads = query[:, start : start + tile]
        missing = rule.size_for(heads.shape[1]) - heads.shape[1]
        rows = torch.nn.functional.pad(heads, (0, 0, 0, missing))  # [B, M, C + D]
        if len(splits) > num_sequences:
            rows = rows[plan.owners]  # [P, M, C + D]
        part, log_sum = _FORMS[rule.form](rows, splits[:, None], plan.mask, scale)
        joined = _join_each(part, log_sum, plan.counts, num_latent)
        tiles.append(joined[:, : heads.shape[1]].to(query.dtype))
    return tiles[0].contiguous() if len(tiles) == 1 else torch.cat(tiles, dim=1)


def _tile_rows(rule: RowRule, num_rows: int, values_per_row: int) -> int:
    """The largest tested count that is worth its while and whose results of all splits fit the budget."""
    limit = _SMALL_TILE if num_rows <= _FEW_ROWS else num_rows
    fitting = [size for size in rule.sizes if size <= limit and size * values_per_row <= _TILE_VALUES]
    return max(fitting, default=rule.sizes[0])


def _attend_tile(
    query: torch.Tensor,  # [M, C + D]
    positions: torch.Tensor,  # [M] int64, ascending
    latent: torch.Tensor,  # [S, C + D]
    scale: float,
    rule: RowRule,
) -> tuple[list[torch.Tensor], torch.Tensor]:  # per split [padded M, C + D]; [splits, padded M] float32
    num_rows, width = query.shape
    size = rule.size_for(num_rows)
    if size > num_rows:
        query = torch.cat((query, query.new_zeros((size - num_rows, width))))
        positions = torch.cat((positions, positions[-1:].expand(size - num_rows)))
    attend = _FORMS[rule.form]
    num_clear = (int(positions[0]) + 1) // SPLIT  # splits that every row sees whole
    num_splits = int(positions[-1]) // SPLIT + 1
    parts: list[torch.Tensor] = []
    log_sums: list[torch.Tensor] = []
    if num_clear:
        keys = latent[: num_clear * SPLIT].view(num_clear, 1, SPLIT, width)
        part, log_sum = attend(query, keys, query.new_zeros((1, 1, 1, SPLIT)), scale)
        parts.extend(part)
        log_sums.append(log_sum)
    if num_clear < num_splits:
        keys = _padded_splits(latent, num_clear, num_splits)
        part, log_sum = _masked_splits(attend, query, keys, positions - num_clear * SPLIT, scale)
        parts.extend(part)
        log_sums.append(log_sum)
    return parts, torch.cat(log_sums)


def _padded_splits(latent: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """Splits ``first`` to ``stop`` with zeros behind the last latent: [splits, 1, 256, C + D]."""
    given = latent[first * SPLIT : stop * SPLIT]
    missing = (stop - first) * SPLIT - len(given)
    if missing:
        given = torch.cat((given, given.new_zeros((missing, given.shape[1]))))
    return given.view(stop - first, 1, SPLIT, -1)


def _masked_splits(
    attend: SplitCall, query: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``attend``, each row seeing keys up to its position (counted from the first of these splits)."""
    num_splits = keys.shape[0]
    visible = torch.arange(num_splits * SPLIT).view(num_splits, 1, SPLIT) <= positions[:, None]  # [splits, M, 256]
    blind = ~visible[:, :, 0]  # rows before the split begins: shown one key, then weighed 0
    visible[:, :, 0] = True
    mask = query.new_zeros(visible.shape).masked_fill_(~visible, float("-inf"))
    part, log_sum = attend(query, keys, mask[:, None], scale)
    return part, log_sum.masked_fill_(blind, float("-inf"))


def _flash(
    query: torch.Tensor,  # [M, C + D], or [splits, M, C + D] where splits have queries of their own
    keys: torch.Tensor,  # [splits, 1, 256, C + D], values as well
    mask: torch.Tensor,  # [1 or splits, 1, 1 or M, 256]
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # [splits, M, C + D], [splits, M] float32
    expanded = query.expand(keys.shape[0], *query.shape[-2:])[:, None]
    part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        expanded, keys, keys, 0.0, False, attn_mask=mask, scale=scale
    )
    return part[:, 0], log_sum[:, 0]


def _plain(
    query: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``_flash``: float32 scores (in bf16 they lose 1.3e-2), P·V in the query's dtype."""
    expanded = query.float().expand(keys.shape[0], *query.shape[-2:])
    scores = torch.bmm(expanded, keys[:, 0].float().transpose(1, 2)).mul_(scale).add_(mask[:, 0])  # [splits, M, 256]
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    share = weights.sum(-1, keepdim=True)
    part = torch.bmm(weights.to(query.dtype), keys[:, 0]).float().div_(share)
    return part, share.log_().add_(top)[:, :, 0]


_FORMS: dict[str, SplitCall] = {"flash": _flash, "plain": _plain}


def _join_each(part: torch.Tensor, log_sum: torch.Tensor, counts: tuple[int, ...], num_latent: int) -> torch.Tensor:
    """Each sequence's splits, [P, M, C + D] and [P, M] float32, to [B, M, C]; one split each needs no joining."""
    if len(part) == len(counts):
        return part[:, :, :num_latent]
    both = zip(part.split_with_sizes(counts), log_sum.split_with_sizes(counts), strict=True)
    return torch.stack([_join(list(parts), log_sums, num_latent) for parts, log_sums in both])


def _join(parts: list[torch.Tensor], log_sums: torch.Tensor, num_latent: int) -> torch.Tensor:
    """Splits' results and log-sum-exps → [M, C] in the parts' dtype, added in float32 in split order."""
    if len(parts) == 1:
        return parts[0][:, :num_latent]  # its weight is exactly 1
    weights = (log_sums - log_sums.amax(0)).exp_()[:, :, None]  # [splits, M, 1]
    total = torch.zeros((log_sums.shape[1], num_latent))
    share = torch.zeros((log_sums.shape[1], 1))
    for part, weight in zip(parts, weights, strict=True):
        total.addcmul_(part[:, :num_latent].float(), weight)
        share += weight
    return total.div_(share).to(parts[0].dtype)


def _choose(width: int, dtype: torch.dtype) -> RowRule:
    """Tests scores that are rounding noise (seen by the log-sum) and P·V that is (seen with a query of zeros)."""
    row, keys = cancelling(2 * SPLIT, width, dtype, salt=11)
    noisy_keys = keys.view(2, 1, SPLIT, width)
    noisy_values = cancelling(width, SPLIT, dtype, salt=13)[1].t().contiguous().expand(2, 1, SPLIT, width).contiguous()
    unmasked = torch.zeros((1, 1, 1, SPLIT), dtype=dtype)

    def probe(attend: SplitCall, query: torch.Tensor) -> torch.Tensor:
        part, log_sum = attend(query, noisy_keys, unmasked, _NOISE_SCALE)
        level = attend(query * 0, noisy_values, unmasked, 1.0)[0]
        return torch.cat((part[1].float(), level[1].float(), log_sum[1, :, None]), dim=1)

    def forms() -> Iterator[tuple[str, RowCall]]:
        for name, attend in _FORMS.items():
            call = partial(probe, attend)
            try:
                call(row.expand(_QUERY_SIZES[-1], width))
            except RuntimeError:  # torch's operator does not serve this processor
                continue
            yield name, call

    return choose_rule(forms(), row, _QUERY_SIZES)
