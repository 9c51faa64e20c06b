"""Which request fields do what: each is honoured, advisory without effect, or refused when it would change the meaning.

Knows nothing of the values of honoured fields (``schemas.py`` checks those). A field that is in no table is a 400.
An advisory field is accepted and named in the response header ``x-expertfleet-ignored``. A refused field passes only
with a neutral value: one that asks for what happens anyway.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...proto.errors import shown
from ..http.errors import bad_value, unsupported

IGNORED_HEADER = "x-expertfleet-ignored"
_MAX_HEADER = 2000

# Name → why it has no effect here.
ADVISORY: Mapping[str, str] = {
    "user": "a name for abuse tracking",
    "safety_identifier": "a name for abuse tracking",
    "metadata": "labels for stored completions",
    "store": "nothing is stored",
    "service_tier": "there is one tier",
    "prompt_cache_key": "prefixes are found by their tokens alone",
    "prompt_cache_retention": "prefixes stay as long as there is room",
    "prompt_cache_options": "prefixes are found by their tokens alone",
    "cache_control": "prefixes are found by their tokens alone",
    "prediction": "a hint for speed",
    "reasoning_effort": "the model has one level of effort",
    "session_id": "a hint for routing",
    "spaces_between_special_tokens": "no spaces are ever added",
    "add_special_tokens": "the tokenizer adds none",
}

# Advisory values that would turn reasoning off, which the model cannot do.
_REFUSED_ADVICE: Mapping[str, frozenset[str]] = {"reasoning_effort": frozenset({"none"})}

_Neutral = Callable[[Any], bool]


def _is(*values: Any) -> _Neutral:
    return lambda value: any(value == neutral and type(value) is type(neutral) for neutral in values)


def _empty(value: Any) -> bool:
    return value in ([], {}, "")


def _never(_: Any) -> bool:
    return False


def _number(neutral: float) -> _Neutral:
    return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and value == neutral


def _thinking_on(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key in {"thinking", "enable_thinking"} and on is True for key, on in value.items()
    )


# Name → whether a value (null always is) asks for nothing but the ordinary.
REFUSED: Mapping[str, _Neutral] = {
    # OpenAI
    "audio": _never,
    "modalities": _is(["text"]),
    "web_search_options": _never,
    "functions": _empty,
    "function_call": _is("none"),
    "response_format": _is({"type": "text"}),
    "verbosity": _is("medium"),
    "moderation": _never,
    "best_of": _number(1),
    "suffix": _is(""),
    # vLLM and SGLang
    "add_generation_prompt": _is(True),
    "allowed_token_ids": _empty,
    "bad_words": _empty,
    "chat_template": _never,
    "chat_template_kwargs": _thinking_on,
    "continue_final_message": _is(False),
    "custom_logit_processor": _never,
    "custom_params": _empty,
    "data_parallel_rank": _never,
    "documents": _empty,
    "ebnf": _never,
    "echo": _is(False),
    "enable_thinking": _is(True),
    "guided_choice": _never,
    "guided_grammar": _never,
    "guided_json": _never,
    "guided_regex": _never,
    "include_reasoning": _is(True),
    "json_schema": _never,
    "kv_transfer_params": _empty,
    "length_penalty": _number(1),
    "logits_processors": _empty,
    "lora_path": _never,
    "min_tokens": _number(0),
    "no_stop_trim": _is(False),
    "prompt_logprobs": _never,
    "regex": _never,
    "return_cached_tokens_details": _is(False),
    "return_hidden_states": _is(False),
    "return_routed_experts": _is(False),
    "return_tokens_as_token_ids": _is(False),
    "separate_reasoning": _is(True),
    "skip_special_tokens": _is(True),
    "stop_regex": _empty,
    "stream_reasoning": _is(True),
    "structural_tag": _never,
    "structured_outputs": _empty,
    "truncate_prompt_tokens": _never,
    "use_beam_search": _is(False),
    "vllm_xargs": _empty,
    # Moonshot and Anthropic
    "thinking": _is({"type": "enabled"}),
}


def split(body: Mapping[str, Any], honoured: frozenset[str]) -> tuple[dict[str, Any], list[str]]:
    """The honoured fields that are set, and the names of advisory ones; refuses all others."""
    kept: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in body.items():
        if name in honoured:
            if value is not None:
                kept[name] = value
        elif name in ADVISORY:
            _check_advice(name, value)
            if value is not None:
                ignored.append(name)
        elif name in REFUSED:
            if value is not None and not REFUSED[name](value):
                raise unsupported(name, f"{shown(value)} is not supported by this server")
        else:
            raise bad_value(name[:80], f"unknown field{_nearest(name, honoured)}", code="unknown_parameter")
    return kept, sorted(ignored)


def split_stream_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Streams carry no random padding, whatever ``include_obfuscation`` says."""
    kept = {name: value for name, value in options.items() if name != "include_obfuscation" and value is not None}
    return kept, ["stream_options.include_obfuscation"] if "include_obfuscation" in options else []


def listed(names: Sequence[str]) -> str:
    """For the header: all of them, or as many as fit a line that every client and proxy takes."""
    line, num_listed = "", 0
    for name in names:
        if len(line) + len(name) > _MAX_HEADER:
            return f"{line}, and {len(names) - num_listed} more"
        line, num_listed = f"{line}, {name}" if line else name, num_listed + 1
    return line


def _check_advice(name: str, value: Any) -> None:
    if isinstance(value, str) and value in _REFUSED_ADVICE.get(name, frozenset()):
        raise unsupported(name, f"{shown(value)} is not supported: the model always reasons")


def _nearest(name: str, honoured: frozenset[str]) -> str:
    close = difflib.get_close_matches(name[:80], sorted(honoured), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
