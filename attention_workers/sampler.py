"""The sampler: one row of logits and a sequence to one token.

Knows nothing of batches: each row is sampled alone, so its neighbours cannot change it. The noise is a counter-based
hash of (seed, position), so a sequence continued elsewhere draws what it would have drawn here.
"""

import numpy as np
import torch

from ..proto.errors import Code, FleetError
from .sequence import SamplingParams, Sequence, TokenOut

_MASK = (1 << 64) - 1
# A nucleus is nearly always found among this many most likely tokens; if not, the whole row is sorted.
_NUCLEUS = 1024


def sample(logits: torch.Tensor, sequence: Sequence) -> TokenOut:
    """``logits`` [V] fp32 of the sequence's newest position to its next token."""
    token_id = sequence.forced_token()
    if token_id is None:
        token_id = _choose(logits, sequence)
    if sequence.num_top_logprobs is None:
        return TokenOut(token_id, None, ())
    logprobs = torch.log_softmax(logits, dim=-1)
    best = logprobs.topk(min(sequence.num_top_logprobs, len(logprobs)))
    top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenOut(token_id, float(logprobs[token_id]), top)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same for the same arguments everywhere (the SplitMix64 finaliser, applied twice)."""
    return (_mix(_mix(seed & _MASK) ^ (position * 0x9E3779B97F4A7C15 & _MASK)) >> 11) * 2.0**-53


def distribution(logits: torch.Tensor, sequence: Sequence) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What is drawn from, at a temperature above 0: probabilities, their running sums, and their token ids unless all are in id order."""
    params = sequence.sampling
    probabilities = torch.softmax(_penalise(logits, sequence).double() / params.temperature, dim=-1)
    probabilities, ids = _filtered(probabilities, params)
    return probabilities, probabilities.cumsum(0), ids


def _choose(logits: torch.Tensor, sequence: Sequence) -> int:
    params = sequence.sampling
    if params.temperature == 0:
        return int(_penalise(logits, sequence).argmax())
    probabilities, cumulative, ids = distribution(logits, sequence)
    target = uniform(params.seed, len(sequence.tokens)) * float(cumulative[-1])
    index = int(torch.searchsorted(cumulative, target, right=True))
    index = min(index, int(probabilities.nonzero()[-1]))
    return index if ids is None else int(ids[index])


def _filtered(probabilities: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Kept probabilities, and their token ids unless all are kept in id order."""
    if params.min_p > 0:
        probabilities = probabilities * (probabilities >= params.min_p * probabilities.max())
    if params.top_k == 0 and params.top_p >= 1:
        return probabilities, None
    num_kept = min(params.top_k or len(probabilities), len(probabilities))
    best = probabilities.topk(min(num_kept, _NUCLEUS))
    if num_kept > _NUCLEUS and float(best.values.sum()) < params.top_p * float(probabilities.sum()):
        best = probabilities.topk(num_kept)
    values, ids = best.values, best.indices
    if params.top_p < 1:
        whole = values.sum() if params.top_k else probabilities.sum()
        before = values.cumsum(0) - values
        values = values * (before < params.top_p * whole)
    return values, ids


def _penalise(logits: torch.Tensor, sequence: Sequence) -> torch.Tensor:
    """Biases and penalties as OpenAI and vLLM define them, on a copy where there are any."""
    params = sequence.sampling
    repeats = params.repetition_penalty not in (0.0, 1.0)
    if not (repeats or params.presence_penalty or params.frequency_penalty or params.logit_bias):
        return logits
    logits = logits.clone()
    if repeats:
        seen = torch.tensor(sorted(set(sequence.tokens)))
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    output = sequence.tokens[sequence.num_prompt :]
    if output and (params.presence_penalty or params.frequency_penalty):
        ids, counts = map(torch.from_numpy, np.unique(output, return_counts=True))
        logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    if not torch.isfinite(logits).all():
        raise FleetError(Code.NON_FINITE, "the sequence's logits are not finite, penalties and biases applied")
    return logits


def _mix(value: int) -> int:
    """The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
