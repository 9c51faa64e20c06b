"""/v1/completions: from the checked request to a job.

Knows nothing of chats: no template is used, and text that spells a control token's name is plain text. A prompt is a
string, a list of strings, a list of token ids, or a list of such lists.
"""

from typing import Any

from ...proto.errors import shown
from ..engine.prepared_request import PreparedRequest
from ..events.answer import Ending
from ..events.plain_text import PlainText
from ..events.served_model import Model
from ..http.errors import bad_value
from .sampling import draw_seed, generate_request, seed_of, stop_ids
from .schemas import CompletionRequest


def completion_job(
    request: CompletionRequest, model: Model, request_id: str, ignored: list[str], *, max_choices: int
) -> PreparedRequest[CompletionRequest]:
    prompts = _read_prompts(request, model, max_choices)
    seed = draw_seed() if request.seed is None else request.seed
    special_text = model.special_text(skip=request.skip_special_tokens)
    return PreparedRequest(
        request=request,
        request_id=request_id,
        response_id=f"cmpl-{request_id}",
        sequences=tuple(
            generate_request(
                request,
                model,
                request_id=f"{request_id}-{number * request.n + index}",
                prompt_ids=prompt_ids,
                seed=seed_of(seed, index),
                prompt_field="prompt" if _is_single(request.prompt) else f"prompt[{number}]",
            )
            for number, prompt_ids in enumerate(prompts)
            for index in range(request.n)
        ),
        ending=Ending(
            stop_ids=frozenset(stop_ids(request, model)),
            stops=tuple(request.stop),
            keep_stop=request.include_stop_str_in_output,
        ),
        new_reader=lambda: PlainText(model.new_decoder(), special_text),
        prompts=tuple(prompts),
        ignored=tuple(ignored),
    )


def _read_prompts(request: CompletionRequest, model: Model, max_choices: int) -> list[list[int]]:
    raw = request.prompt
    if _is_single(raw):
        return [_read_prompt(raw, "prompt", model)]
    if not isinstance(raw, list) or not raw:
        raise bad_value("prompt", f"{shown(raw)} is neither text nor token ids nor a list of either")
    if len(raw) * request.n > max_choices:
        raise bad_value("prompt", f"{len(raw)} prompts × n {request.n} are more than the limit of {max_choices}")
    return [_read_prompt(prompt, f"prompt[{index}]", model) for index, prompt in enumerate(raw)]


def _read_prompt(raw: Any, where: str, model: Model) -> list[int]:
    if isinstance(raw, str):
        ids = model.tokenizer.encode_text(raw)
    elif isinstance(raw, list):
        ids = raw
        for index, value in enumerate(raw):
            if not _is_id(value) or not 0 <= value < model.vocab_size:
                raise bad_value(f"{where}[{index}]", f"{shown(value)} is no token id, 0 to {model.vocab_size - 1}")
    else:
        raise bad_value(where, f"{shown(raw)} is neither text nor token ids")
    if not ids:
        raise bad_value(where, "a prompt needs at least one token")
    return ids


def _is_single(raw: Any) -> bool:
    """Whether it is one prompt, rather than a list of them."""
    return isinstance(raw, str) or (isinstance(raw, list) and bool(raw) and _is_id(raw[0]))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
