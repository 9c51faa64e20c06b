"""The self-test of all that decides an attention worker's tokens: the kernels', and what they do not know of.

Knows nothing of weights: inputs come from a fixed formula (kernels/self_test_inputs.py), with the model's own shapes and settings. The gate's
choice, rotary positions, every way of the combine, and the sampler go into the numerics class, so that another order of summation or
another draw is another class, whoever forgets to say so.
"""

import dataclasses
import struct
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from ..checkpoint.model_config import ModelConfig
from ..kernels.errors import KernelError
from ..kernels.native import Native, load, tensor_at
from ..kernels.numerics import NumericsReport, attention_self_test
from ..kernels.rope import rope_table, rotate, softmax_scale
from ..kernels.row_rule import bits_of
from ..kernels.self_test_inputs import canned
from ..proto.rows import Rows
from ..router.dispatch.combine import Answers, combine
from .sampler import distribution, sample, uniform
from .sequence import SamplingParams, Sequence, ThinkingBudget, TokenOut
from .weights import attention_shapes, gate_choice

_TOKENS = 11  # more routes than a combine writes down one by one, for a model with 8 experts a token
_ROPE_POSITIONS = 4096
_GRAIN = 16  # logits are multiples of 1 / 16, as bf16 ones are of something: many are equal
_TOP_LOGPROBS = 20
_LOGITS = 95  # salt
_DRAWS = ((0, 1), (1, 17), (2**63 + 5, 300), (2**64 - 1, 5000))  # (seed, position)


def self_test(config: ModelConfig, dtype: torch.dtype) -> NumericsReport:
    """Chooses and proves the kernels' rules, and names the class of everything. Raises KernelError if rows are not exact."""
    return attention_self_test(attention_shapes(config), dtype, _beside_kernels(config, dtype))


def _beside_kernels(config: ModelConfig, dtype: torch.dtype) -> Iterator[bytes]:
    yield from _gate_results(config)
    yield from _rope_results(config, dtype)
    yield from _combine_results(config, dtype)
    yield from sampler_results(config.vocab_size)


def _gate_results(config: ModelConfig) -> Iterator[bytes]:
    logits, bias = canned((_TOKENS, config.num_experts), 81) * 8, canned((config.num_experts,), 82) / 8
    for result in gate_choice(config)(logits, bias):
        yield _bytes_of(result)


def _rope_results(config: ModelConfig, dtype: torch.dtype) -> Iterator[bytes]:
    dim = config.qk_rope_head_dim
    angles = rope_table(_ROPE_POSITIONS, dim, config.rope_theta, config.yarn).at(
        torch.tensor([[0], [1], [100], [4095]])
    )
    yield _bytes_of(angles.cos) + _bytes_of(angles.sin)
    yield _bytes_of(rotate(canned((4, config.num_heads, dim), 83).to(dtype), angles))
    yield struct.pack("<d", softmax_scale(config.qk_head_dim, config.yarn))


def _combine_results(config: ModelConfig, dtype: torch.dtype) -> Iterator[bytes]:
    found = combine_in_every_way(*_cancelling_answers(config.top_k, config.hidden_size, dtype))
    if not torch.equal(bits_of(found["rows"]), bits_of(found["addresses"])):
        raise KernelError("combine: sums of rows and sums by their addresses have other bits")
    for total in found.values():
        yield _bytes_of(total)


def combine_in_every_way(rows: torch.Tensor, weights: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """rows [T, K, H], weights [T, K] float32 → [T, H] by torch, from rows that come in pieces, and from their addresses.

    Without a compiler all are torch's.
    """
    T, K, H = rows.shape
    flat = rows.view(T * K, H)
    by_rows = Answers(weights, H, rows.dtype)
    for routes in (np.arange(0, T * K, 7), np.delete(np.arange(T * K), np.s_[::7])):
        by_rows.add(routes, Rows.of(flat[torch.from_numpy(routes)]))
    found = {"torch": combine(rows, weights), "rows": by_rows.combined()[0]}
    if not isinstance(load(), Native):
        return found | {"addresses": found["rows"]}
    by_address = Answers(weights, H, rows.dtype)
    first, stride = flat.data_ptr(), flat.stride(0) * flat.element_size()
    tensor_at(by_address.places, (T * K,), torch.int64).copy_(first + stride * torch.arange(T * K))
    by_address.note(np.arange(T * K))
    return found | {"addresses": by_address.combined()[0]}


def _cancelling_answers(top_k: int, hidden: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each two ranks one takes away what the other gives, all at other magnitudes, so that a sum is the rounding of its order."""
    rows = canned((_TOKENS, top_k, hidden), 91) * torch.exp2(canned((_TOKENS, top_k, hidden), 92) * 6)
    weights = canned((_TOKENS, top_k), 93).abs() + 0.1
    half = top_k // 2
    rows[:, top_k - half :], weights[:, top_k - half :] = -rows[:, :half], weights[:, :half]
    return rows.to(dtype), weights


def sampler_results(vocab_size: int) -> Iterator[bytes]:
    """Tokens and their log-probabilities for every parameter, alone and with others, and once what they are drawn from.

    A few draws alone would seldom show that a probability has other last bits.
    """
    yield struct.pack(f"<{len(_DRAWS)}d", *(uniform(*draw) for draw in _DRAWS))
    logits = (canned((vocab_size,), _LOGITS) * 12 * _GRAIN).round() / _GRAIN
    for sequence in sampled_sequences(vocab_size):
        yield _packed(sample(logits, sequence))
        params, position = sequence.sampling, len(sequence.tokens)
        if params.temperature and (params.seed, position) == _DRAWS[-1]:
            _, cumulative, ids = distribution(logits, sequence)
            yield _bytes_of(cumulative) + (_bytes_of(ids) if ids is not None else b"")


def sampled_sequences(vocab_size: int) -> Iterator[Sequence]:
    """Each set of parameters at every draw; then a thinking section whose budget is spent."""
    ranked = canned((vocab_size,), _LOGITS).argsort(descending=True, stable=True)
    said = [*ranked[: max(1, min(200, vocab_size // 50))].tolist(), *ranked[:: max(1, vocab_size // 50)].tolist()]
    for params in _parameters(vocab_size):
        for seed, position in _DRAWS:
            yield _sequence(dataclasses.replace(params, seed=seed), position, said)
    spent = _sequence(SamplingParams(), 17, said)
    start, end = spent.tokens[-1], (spent.tokens[-1] + 1) % vocab_size
    spent.budget = ThinkingBudget(0, start, end, (end,))
    yield spent


def _parameters(vocab_size: int) -> Iterator[SamplingParams]:
    bias = {token_id: 8.0 / (1 + token_id) for token_id in range(min(3, vocab_size))}
    yield from (SamplingParams(temperature=value) for value in (0.0, 0.3, 1.0, 2.5))
    yield from (SamplingParams(top_p=value) for value in (0.2, 0.9, 0.999))
    yield from (SamplingParams(top_k=value) for value in (1, 7, 50, 3000))
    yield from (SamplingParams(min_p=value) for value in (0.01, 0.5))
    yield SamplingParams(0, 0.7, 0.8, 20, 0.01)
    for temperature in (0.0, 1.0):
        yield SamplingParams(temperature=temperature, presence_penalty=1.1)
        yield SamplingParams(temperature=temperature, frequency_penalty=0.7)
        yield SamplingParams(temperature=temperature, repetition_penalty=1.3)
        yield SamplingParams(temperature=temperature, logit_bias=bias)
    yield SamplingParams(0, 0.7, 0.95, 500, 0.001, 0.55, -0.3, 0.9, bias)


def _sequence(params: SamplingParams, position: int, said: list[int]) -> Sequence:
    """So many tokens, the smaller half of them the prompt; likely ones were said before and some of all others, some of them often."""
    tokens = [said[place * place % len(said)] for place in range(position)]
    return Sequence(
        "self-test", tokens, position // 2, position + 1, params, lambda update: None, num_top_logprobs=_TOP_LOGPROBS
    )


def _packed(token: TokenOut) -> bytes:
    assert token.logprob is not None
    ids, values = zip(*((token.token_id, token.logprob), *token.top), strict=True)
    return struct.pack(f"<{len(ids)}q{len(values)}f", *ids, *values)


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
