"""From a request's sampling fields to what a worker needs to generate a sequence.

Knows nothing of prompts' making. Where the client is silent the checkpoint's defaults hold, and where those are silent
OpenAI's: temperature 1, everything else off. A seed is drawn if none is given, so that any sequence can be resumed.
"""

import secrets
from collections.abc import Sequence

from ...proto.generated import generate_pb2 as pb
from ..events.served_model import Model
from ..http.errors import bad_value, unsupported
from .schemas import AnyRequest, ChatRequest

_U64 = (1 << 64) - 1
_FORBIDDEN_BIAS = -100.0


def draw_seed() -> int:
    return secrets.randbits(63)


def seed_of(seed: int, index: int) -> int:
    """The seed of a request's ``index``-th sequence: its own for the first, well-mixed ones for the others."""
    if index == 0:
        return seed & _U64
    value = (seed + index * 0x9E3779B97F4A7C15) & _U64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _U64
    return value ^ (value >> 31)


def max_tokens_for(num_prompt_tokens: int, request: AnyRequest, model: Model, prompt_field: str) -> int:
    """The client's limit or what is left of the context; a 400 where prompt and limit do not fit."""
    limit, wanted = model.max_model_len, request.most_tokens
    left = limit - num_prompt_tokens
    if left >= (wanted or 1):
        return wanted or min(left, model.defaults.max_new_tokens or left)
    if wanted is None:
        asked = f"{num_prompt_tokens} tokens in the prompt alone"
    else:
        total = num_prompt_tokens + wanted
        asked = f"{total} tokens ({num_prompt_tokens} in the prompt, {wanted} in the answer)"
    message = f"this model's maximum context length is {limit} tokens, but you asked for {asked}"
    field = prompt_field if left < 1 else request.most_tokens_field
    raise bad_value(field, message, code="context_length_exceeded")


def generate_request(
    request: AnyRequest,
    model: Model,
    *,
    request_id: str,
    prompt_ids: Sequence[int],
    seed: int,
    forbidden: Sequence[int] = (),
    prompt_field: str = "messages",
) -> pb.GenerateRequest:
    """``forbidden`` tokens are never sampled; ``prompt_field`` is where the client wrote the prompt."""
    top = request.num_top_logprobs
    return pb.GenerateRequest(
        request_id=request_id,
        prompt_ids=prompt_ids,
        sampling=_sampling(request, model, seed, forbidden),
        max_tokens=max_tokens_for(len(prompt_ids), request, model, prompt_field),
        stop_token_ids=stop_ids(request, model),
        thinking_budget=_thinking_budget(request, model, prompt_ids),
        cache_salt=request.cache_salt,
        priority=request.priority,
        deadline_s=request.timeout or 0.0,
        num_top_logprobs=top or 0,
        logprobs=top is not None,
    )


def stop_ids(request: AnyRequest, model: Model) -> list[int]:
    """The client's and, unless it ignores them, the model's; only in a chat does the template's end of turn count."""
    for index, token_id in enumerate(request.stop_token_ids):
        _check_id(token_id, f"stop_token_ids[{index}]", model)
    own = model.chat_stop_ids if isinstance(request, ChatRequest) else model.tokenizer.stop_ids
    return list(dict.fromkeys((*(() if request.ignore_eos else own), *request.stop_token_ids)))


def _sampling(request: AnyRequest, model: Model, seed: int, forbidden: Sequence[int]) -> pb.Sampling:
    defaults = model.defaults
    bias = {int(key): value for key, value in request.logit_bias.items()}
    for token_id in bias:
        _check_id(token_id, f"logit_bias.{token_id}", model)
    return pb.Sampling(
        seed=seed,
        temperature=_first(request.temperature, defaults.temperature, 1.0),
        top_p=_first(request.top_p, defaults.top_p, 1.0),
        top_k=max(0, int(_first(request.top_k, defaults.top_k, 0))),
        min_p=_first(request.min_p, defaults.min_p, 0.0),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty, 1.0),
        logit_bias={**bias, **dict.fromkeys(forbidden, _FORBIDDEN_BIAS)},
    )


def _thinking_budget(request: AnyRequest, model: Model, prompt_ids: Sequence[int]) -> pb.ThinkingBudget | None:
    if request.thinking_token_budget is None:
        return None
    markers = model.markers
    if markers.think is None or markers.think_end is None:
        raise unsupported("thinking_token_budget", "this model's vocabulary has no thinking markers")
    return pb.ThinkingBudget(
        max_tokens=request.thinking_token_budget,
        start_id=markers.think,
        end_id=markers.think_end,
        forced_ids=[markers.think_end],
        until_ids=[id_ for id_ in (*markers.sections, markers.call) if id_ is not None],
        begun=model.ends_in_thinking(prompt_ids),
    )


def _check_id(token_id: int, where: str, model: Model) -> None:
    if token_id >= model.vocab_size:
        raise bad_value(where, f"{token_id} is not in the vocabulary of {model.vocab_size} tokens")


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
