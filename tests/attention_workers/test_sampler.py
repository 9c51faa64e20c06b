"""Sampling follows the distribution it is given, filtered as asked, from (seed, position) alone."""

import math

import pytest
import torch

from expertfleet.attention_workers.sampler import sample, uniform
from expertfleet.attention_workers.sequence import SamplingParams, Sequence
from expertfleet.proto.errors import Code, FleetError


def make(params: SamplingParams, tokens: list[int] | None = None, **more: object) -> Sequence:
    tokens = tokens or [1, 2, 3]
    return Sequence("r", tokens, 2, 100, params, lambda update: None, **more)


def draw(logits: torch.Tensor, params: dict, count: int = 4000) -> torch.Tensor:
    ids = [sample(logits, make(SamplingParams(seed=seed, **params))).token_id for seed in range(count)]
    return torch.bincount(torch.tensor(ids), minlength=len(logits)) / count


def test_greedy_takes_the_first_best() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0])
    assert sample(logits, make(SamplingParams(temperature=0.0))).token_id == 1


def test_frequencies_follow_the_softmax() -> None:
    logits = torch.randn(20)
    for temperature in (0.5, 1.0, 2.0):
        expected = torch.softmax(logits / temperature, 0)
        assert (draw(logits, {"temperature": temperature}) - expected).abs().max() < 0.04


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_p": 0.6}, 2),
        ({"top_p": 0.4}, 1),
        ({"min_p": 0.5}, 2),
        ({"top_k": 3, "top_p": 0.99}, 3),
    ],
)
def test_filters_keep_the_most_likely(params: dict, kept: int) -> None:
    probabilities = torch.tensor([0.1, 0.45, 0.15, 0.3])
    frequencies = draw(probabilities.log(), params, 1500)
    order = probabilities.argsort(descending=True)[:kept]
    expected = torch.zeros(4)
    expected[order] = probabilities[order] / probabilities[order].sum()
    assert (frequencies - expected).abs().max() < 0.06
    assert set(frequencies.nonzero().flatten().tolist()) <= set(order.tolist())


def test_a_flat_distribution_wider_than_the_nucleus_is_sorted_whole() -> None:
    logits = torch.randn(5000) * 1e-3
    ids = {sample(logits, make(SamplingParams(seed=seed, top_p=0.999))).token_id for seed in range(400)}
    assert len(ids) > 350


def test_noise_depends_on_seed_and_position_alone() -> None:
    logits = torch.randn(1000)
    one = make(SamplingParams(seed=5), [1, 2, 3, 4])
    other = make(SamplingParams(seed=5), [9, 9, 9, 9])
    assert sample(logits, one).token_id == sample(logits, other).token_id
    values = [uniform(seed, position) for seed in range(50) for position in range(50)]
    assert len(set(values)) == 2500
    assert 0.47 < sum(values) / 2500 < 0.53
    assert all(0 <= value < 1 for value in values)


def test_penalties_and_bias_change_the_choice() -> None:
    logits = torch.tensor([1.0, 2.0, 1.5])
    greedy = {"temperature": 0.0}
    assert sample(logits, make(SamplingParams(presence_penalty=1.5, **greedy), [0, 0, 1])).token_id == 2
    assert sample(logits, make(SamplingParams(frequency_penalty=0.4, **greedy), [0, 0, 1, 1])).token_id == 2
    assert sample(logits, make(SamplingParams(repetition_penalty=4.0, **greedy), [1, 0, 0])).token_id == 2
    assert sample(logits, make(SamplingParams(logit_bias={0: 10.0}, **greedy))).token_id == 0
    assert logits.tolist() == [1.0, 2.0, 1.5]


def test_logprobs_are_the_models_own() -> None:
    logits = torch.randn(30)
    token = sample(logits, make(SamplingParams(temperature=0.0, logit_bias={3: 99.0}), num_top_logprobs=5))
    expected = torch.log_softmax(logits, 0)
    assert token.token_id == 3
    assert math.isclose(token.logprob or 0.0, float(expected[3]), abs_tol=1e-6)
    assert [index for index, _ in token.top] == expected.topk(5).indices.tolist()
    assert sample(logits, make(SamplingParams(), num_top_logprobs=0)).top == ()


def test_penalties_that_overflow_are_an_error_and_no_token() -> None:
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, repetition_penalty=1e-40)
        with pytest.raises(FleetError) as caught:
            sample(torch.full((50,), 4.0), make(params))
        assert caught.value.code is Code.NON_FINITE


def test_more_alternatives_than_tokens_give_all_tokens() -> None:
    out = sample(torch.randn(5), make(SamplingParams(), num_top_logprobs=20))
    assert len(out.top) == 5
