"""From fields to a worker's request: defaults, seeds, limits."""

import dataclasses
from typing import Any

from expertfleet.checkpoint.generation import GenerationDefaults
from expertfleet.gateway.events.served_model import Model
from expertfleet.gateway.openai.sampling import generate_request, seed_of
from expertfleet.gateway.openai.schemas import ChatRequest, parse
from expertfleet.proto.generated import generate_pb2 as pb


def request(model: Model, defaults: GenerationDefaults, **fields: Any) -> pb.GenerateRequest:
    parsed, _ = parse(ChatRequest, {"model": "m", "messages": [{}], **fields})
    model = dataclasses.replace(model, defaults=defaults)
    return generate_request(parsed, model, request_id="r", prompt_ids=[1, 2], seed=1)


def test_the_checkpoints_defaults_hold_where_the_client_is_silent(model: Model) -> None:
    defaults = GenerationDefaults(temperature=0.25, top_k=7, repetition_penalty=1.25, max_new_tokens=11)
    made = request(model, defaults)
    assert (made.sampling.temperature, made.sampling.top_k, made.sampling.repetition_penalty) == (0.25, 7, 1.25)
    assert made.max_tokens == 11
    made = request(model, defaults, temperature=0, top_k=-1, max_tokens=20)
    assert (made.sampling.temperature, made.sampling.top_k, made.max_tokens) == (0.0, 0, 20)


def test_without_any_default_openais_hold(model: Model) -> None:
    sampling = request(model, GenerationDefaults()).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)
    assert sampling.repetition_penalty == 1.0


def test_log_probabilities_are_asked_for_only_when_wanted(model: Model) -> None:
    assert not request(model, GenerationDefaults()).logprobs
    made = request(model, GenerationDefaults(), logprobs=True, top_logprobs=4)
    assert (made.logprobs, made.num_top_logprobs) == (True, 4)
    assert request(model, GenerationDefaults(), logprobs=True).num_top_logprobs == 0


def test_a_thinking_budget_of_nothing_is_not_none(model: Model) -> None:
    assert not request(model, GenerationDefaults()).HasField("thinking_budget")
    assert request(model, GenerationDefaults(), thinking_token_budget=0).HasField("thinking_budget")


def test_seeds_of_one_request_differ_and_repeat() -> None:
    seeds = [seed_of(seed, index) for seed in (0, 1, -1, 1 << 63) for index in range(8)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 64 for seed in seeds)
    assert seeds == [seed_of(seed, index) for seed in (0, 1, -1, 1 << 63) for index in range(8)]
