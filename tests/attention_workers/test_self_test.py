"""Whatever decides a worker's tokens decides its numerics class."""

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from expertfleet.attention_workers import sampler, self_test
from expertfleet.attention_workers.sampler import sample
from expertfleet.attention_workers.self_test import combine_in_every_way, sampled_sequences, sampler_results
from expertfleet.attention_workers.sequence import SamplingParams, Sequence
from expertfleet.checkpoint.model_config import ModelConfig
from expertfleet.kernels import native, rope, top_k_gate
from expertfleet.kernels.errors import KernelError
from expertfleet.kernels.numerics import attention_self_test
from expertfleet.kernels.row_rule import bits_of
from expertfleet.kernels.self_test_inputs import canned
from expertfleet.router.dispatch import combine as combine_module
from expertfleet.router.dispatch.combine import Answers, combine

DTYPES = [torch.bfloat16, torch.float32]
VOCAB = 3000


@pytest.fixture(scope="module")
def config(small_checkpoint: Any) -> ModelConfig:
    return ModelConfig.from_dir(small_checkpoint)


def beside(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> bytes:
    return b"".join(self_test._beside_kernels(config, dtype))


@pytest.fixture
def _compiled() -> None:
    if isinstance(native.load(), str):
        pytest.skip("the native kernel was not built")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_class_is_the_same_for_every_start_and_is_of_more_than_the_kernels(
    config: ModelConfig, dtype: torch.dtype
) -> None:
    name = self_test.self_test(config, dtype).class_name
    assert re.fullmatch(rf"cpu-attention-v\d+-\w+-{str(dtype)[6:]}-[0-9a-f]{{8}}", name)
    assert self_test.self_test(config, dtype).class_name == name
    assert attention_self_test(self_test.attention_shapes(config), dtype).class_name != name


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_do_not_change_it(config: ModelConfig, num_threads: int) -> None:
    before, wanted = torch.get_num_threads(), beside(config)
    torch.set_num_threads(num_threads)
    try:
        assert beside(config) == wanted
    finally:
        torch.set_num_threads(before)


def backwards(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return combine(rows.flip(1).contiguous(), weights.flip(1).contiguous())


def by_pairs(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    even, odd = (combine(rows[:, first::2].contiguous(), weights[:, first::2].contiguous()) for first in (0, 1))
    return even + odd


def in_float64(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (rows.double() * weights.double()[:, :, None]).sum(1).float()


@pytest.mark.parametrize("changed", [backwards, by_pairs, in_float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_another_order_of_torch_s_sum_is_another_class(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, changed: Callable[..., torch.Tensor]
) -> None:
    before = self_test.self_test(config, dtype).class_name
    monkeypatch.setattr(self_test, "combine", changed)
    assert self_test.self_test(config, dtype).class_name != before


class Backwards(native.CombineCall):
    """Sums the ranks from the last to the first."""

    def __init__(self, library: native.Native, weights: torch.Tensor, hidden: int, dtype: torch.dtype) -> None:
        super().__init__(library, weights.clone(), hidden, dtype)

    def __call__(self) -> bool:
        width = self._weights.shape[1]
        for first in range(0, len(self.places), width):
            self.places[first : first + width] = self.places[first : first + width][::-1]
        self._weights.copy_(self._weights.flip(1))
        return super().__call__()


@pytest.mark.usefixtures("_compiled")
def test_another_order_of_the_compiled_sum_is_another_class(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = self_test.self_test(config, torch.bfloat16).class_name
    monkeypatch.setattr(combine_module, "CombineCall", Backwards)
    assert self_test.self_test(config, torch.bfloat16).class_name != before


@pytest.mark.usefixtures("_compiled")
def test_a_worker_whose_sums_depend_on_how_rows_came_does_not_start(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(answers: Answers, routes: npt.NDArray[np.int64], rows: Any) -> None:
        add(answers, routes[::-1].copy(), rows)

    add = Answers.add
    monkeypatch.setattr(Answers, "add", swapped)
    with pytest.raises(KernelError, match="sums of rows and sums by their addresses have other bits"):
        self_test.self_test(config, torch.bfloat16)


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top_k", [1, 2, 6, 8])
def test_without_a_compiler_the_sums_are_the_same(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, top_k: int
) -> None:
    given = self_test._cancelling_answers(top_k, 200, dtype)
    compiled = combine_in_every_way(*given)
    for module in (combine_module, self_test):
        monkeypatch.setattr(module, "load", lambda: "not here")
    plain = combine_in_every_way(*given)
    assert list(plain) == list(compiled) == ["torch", "rows", "addresses"]
    for way, total in compiled.items():
        assert torch.equal(bits_of(total), bits_of(plain[way])), way
        assert torch.equal(bits_of(total), bits_of(compiled["torch"])), way


@pytest.mark.parametrize(
    ("module", "name", "changed"),
    [
        (rope, "rotation_scale", lambda yarn: 1.0 + 2**-20),
        (rope, "rope_frequencies", lambda dim, theta: torch.ones(dim // 2) / 3),
        (rope, "yarn_frequencies", lambda dim, theta, yarn: torch.ones(dim // 2) / 3),
        (self_test, "rotate", lambda x, angles: rope.rotate(x, rope.RopeTable(angles.cos, -angles.sin))),
        (self_test, "softmax_scale", lambda width, yarn: 0.2),
        (self_test, "gate_choice", lambda config: top_k_gate.TopKGate(config.top_k, scaling_factor=9.0)),
        (self_test, "gate_choice", lambda config: top_k_gate.TopKGate(config.top_k, normalise=False)),
    ],
)
def test_other_positions_and_another_choice_are_another_class(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, changed: Callable[..., Any]
) -> None:
    used = {"rope_frequencies": config.yarn is None, "yarn_frequencies": config.yarn is not None}
    before = beside(config)
    monkeypatch.setattr(module, name, changed)
    assert (beside(config) != before) is used.get(name, True)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(SamplingParams)])
def test_every_sampling_parameter_counts(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    neutral = SamplingParams()
    honest, before = sampler._choose, list(sampler_results(VOCAB))

    def forgetful(logits: torch.Tensor, sequence: Sequence) -> int:
        changed = dataclasses.replace(sequence.sampling, **{field: getattr(neutral, field)})
        return honest(logits, dataclasses.replace(sequence, sampling=changed))

    monkeypatch.setattr(sampler, "_choose", forgetful)
    assert list(sampler_results(VOCAB)) != before


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("uniform", lambda seed, position: 0.5),
        ("uniform", lambda seed, position: sampler._mix(seed ^ position) * 2.0**-64),
        ("_mix", lambda value: value * 0x9E3779B97F4A7C15 & sampler._MASK),
        ("_filtered", lambda probabilities, params: (probabilities, None)),
        ("_penalise", lambda logits, sequence: logits),
    ],
)
def test_other_noise_and_other_filters_count(
    monkeypatch: pytest.MonkeyPatch, name: str, changed: Callable[..., Any]
) -> None:
    before = list(sampler_results(VOCAB))
    monkeypatch.setattr(sampler, name, changed)
    assert list(sampler_results(VOCAB)) != before


def test_positions_and_the_last_bit_of_a_log_probability_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sampler_results(VOCAB))
    uniform, log_softmax = sampler.uniform, torch.log_softmax
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "uniform", lambda seed, position: uniform(seed, position + 1))
        assert list(sampler_results(VOCAB)) != before
    monkeypatch.setattr(torch, "log_softmax", lambda logits, dim: log_softmax(logits, dim) * (1 + 2**-23))
    assert list(sampler_results(VOCAB)) != before


def in_float32(probabilities: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor | None]:
    return filtered(probabilities.float().double(), params)


def without_min_p_beside_top_k(probabilities: torch.Tensor, params: SamplingParams) -> Any:
    return filtered(probabilities, dataclasses.replace(params, min_p=0.0) if params.top_k else params)


def of_the_whole_row(probabilities: torch.Tensor, params: SamplingParams) -> Any:
    """top_p of all tokens' probability, not of the top_k ones'."""
    values, ids = filtered(probabilities, dataclasses.replace(params, top_p=1.0))
    if params.top_p < 1 and params.top_k:
        values = values * (values.cumsum(0) - values < params.top_p * probabilities.sum())
        return values, ids
    return filtered(probabilities, params)


filtered = sampler._filtered


@pytest.mark.parametrize("changed", [in_float32, without_min_p_beside_top_k, of_the_whole_row])
def test_what_tokens_are_drawn_from_counts_bit_by_bit(
    monkeypatch: pytest.MonkeyPatch, changed: Callable[..., Any]
) -> None:
    before = list(sampler_results(VOCAB))
    monkeypatch.setattr(sampler, "_filtered", changed)
    assert list(sampler_results(VOCAB)) != before


def test_the_last_bit_of_a_bias_and_of_the_temperature_s_quotient_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sampler_results(VOCAB))
    penalise, softmax = sampler._penalise, torch.softmax
    with monkeypatch.context() as patch:
        patch.setattr(torch, "softmax", lambda logits, dim: softmax(logits * (1 + 2**-40), dim))
        assert list(sampler_results(VOCAB)) != before
    monkeypatch.setattr(
        sampler,
        "_penalise",
        lambda logits, sequence: (
            penalise(logits, sequence) + 2**-19 * bool(sequence.sampling.logit_bias) * (torch.arange(len(logits)) == 1)
        ),
    )
    assert list(sampler_results(VOCAB)) != before


def test_the_budget_s_token_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(sampler_results(VOCAB))
    monkeypatch.setattr(Sequence, "forced_token", lambda sequence: None)
    after = list(sampler_results(VOCAB))
    assert (after[:-1], after[-1] != before[-1]) == (before[:-1], True)


def plain_token(logits: npt.NDArray[np.float64], sequence: Sequence) -> int:
    """The same choice once more, in the plainest numpy: everything sorted, one rule after the other."""
    params, output = sequence.sampling, sequence.tokens[sequence.num_prompt :]
    logits = logits.copy()
    for token_id in set(sequence.tokens):
        factor = params.repetition_penalty
        logits[token_id] = logits[token_id] / factor if logits[token_id] > 0 else logits[token_id] * factor
    for token_id in set(output):
        logits[token_id] -= params.presence_penalty + params.frequency_penalty * output.count(token_id)
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    if params.temperature == 0:
        return int(logits.argmax())
    chances = np.exp((logits - logits.max()) / params.temperature)
    chances /= chances.sum()
    chances[chances < params.min_p * chances.max()] = 0
    order = np.arange(len(chances))
    if params.top_k or params.top_p < 1:
        order = np.argsort(-chances, kind="stable")[: params.top_k or None]
        whole = chances[order].sum()
        before = np.cumsum(chances[order]) - chances[order]
        order = order[before < params.top_p * whole] if params.top_p < 1 else order
    sums = np.cumsum(chances[order])
    mixed = splitmix(splitmix(params.seed) ^ (len(sequence.tokens) * 0x9E3779B97F4A7C15 % 2**64))
    return int(order[np.searchsorted(sums, (mixed >> 11) * 2.0**-53 * sums[-1], side="right")])


def splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


GOLDEN_TOKENS = "21cd2c1b1021ad85"  # of the tokens, SHA-256


def test_tokens_are_those_of_the_plainest_sampler_and_never_change() -> None:
    logits = canned((VOCAB,), 95) * 12  # no two are equal
    found = [sample(logits, sequence).token_id for sequence in list(sampled_sequences(VOCAB))[:-1]]
    wanted = [plain_token(logits.double().numpy(), sequence) for sequence in list(sampled_sequences(VOCAB))[:-1]]
    assert found == wanted
    assert len(set(found)) > 40
    assert hashlib.sha256(",".join(map(str, found)).encode()).hexdigest()[:16] == GOLDEN_TOKENS


def test_log_probabilities_are_those_of_float64() -> None:
    logits = canned((VOCAB,), 95) * 12
    token = sample(logits, next(iter(sampled_sequences(VOCAB))))
    exact = logits.double() - math.log(float(logits.double().exp().sum()))
    assert token.logprob == pytest.approx(float(exact[token.token_id]), abs=1e-5)
    assert [value for _, value in token.top] == pytest.approx(exact.topk(20).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("vocab_size", [2, 5, 60, 512])
def test_small_vocabularies_are_tested_as_well(vocab_size: int) -> None:
    assert len(list(sampler_results(vocab_size))) == len(list(sampler_results(VOCAB)))
