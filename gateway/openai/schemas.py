"""The honoured fields of both endpoints, their types and limits.

Knows nothing of messages' contents (``messages.py``), prompts (``completions.py``) or the model. Types are strict:
"0.5" is no number and 1.0 no whole number. Absent and null are the same.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from ...proto.errors import shown
from ..http.errors import ApiError, bad_value, missing
from . import fields

_WHOLE_NUMBER = re.compile(r"[0-9]{1,10}")
_MAX_TOKENS = (1 << 31) - 1
_MAX_NAME = 80
# What pydantic's paths say where a key of an object is at fault.
_KEY = "[key]"

R = TypeVar("R", bound="SamplingFields")


def _check_token(key: str) -> str:
    if not _WHOLE_NUMBER.fullmatch(key):
        raise ValueError("a token id of 1 to 10 digits is needed")
    return key


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenKey = Annotated[str, AfterValidator(_check_token)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
Count = Annotated[int, Field(ge=1, le=_MAX_TOKENS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingFields(BaseModel):
    """What both endpoints share; None means the checkpoint's own default."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    model: Annotated[str, StringConstraints(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=1e-8, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=_MAX_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=1024)] = {}
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] = 1
    stop: Annotated[list[StopString], BeforeValidator(_as_list), Field(max_length=16)] = []
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: Count | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=_MAX_TOKENS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    priority: Annotated[int, Field(ge=0, le=255)] = 0
    cache_salt: Annotated[str, StringConstraints(min_length=1, max_length=256)] = ""
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[!-~]+$")] | None = None
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> "SamplingFields":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed with stream true")
        return self

    @property
    def most_tokens(self) -> int | None:
        """The limit on generated tokens that the client set, if any."""
        return self.max_tokens

    @property
    def most_tokens_field(self) -> str:
        return "max_tokens"

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats


class ChatRequest(SamplingFields):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] = []
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatRequest":
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError(
                f"max_completion_tokens: {self.max_completion_tokens} contradicts max_tokens {self.max_tokens}"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError(f"top_logprobs: {self.top_logprobs} is only allowed with logprobs true")
        return self

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def most_tokens_field(self) -> str:
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"

    @property
    def num_top_logprobs(self) -> int | None:
        """Alternatives a token; None when no log-probabilities are asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SamplingFields):
    prompt: Any
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    skip_special_tokens: bool = True

    @property
    def num_top_logprobs(self) -> int | None:
        """Alternatives a token; None when no log-probabilities are asked for."""
        return self.logprobs


AnyRequest = ChatRequest | CompletionRequest


def parse(kind: type[R], body: Mapping[str, Any]) -> tuple[R, list[str]]:
    """The checked request and the names of its advisory fields."""
    kept, ignored = fields.split(body, frozenset(kind.model_fields))
    if isinstance(kept.get("stream_options"), dict):
        kept["stream_options"], unheeded = fields.split_stream_options(kept["stream_options"])
        ignored += unheeded
    try:
        return kind.model_validate(kept), ignored
    except ValidationError as error:
        raise _first_problem(error, body) from error


def _first_problem(error: ValidationError, body: Mapping[str, Any]) -> ApiError:
    problem = error.errors(include_url=False)[0]
    path = _path(problem["loc"], body)
    message = (
        problem["msg"].removeprefix("Value error, ").replace("dictionary", "object").partition(" or instance of ")[0]
    )
    if not path:
        path, _, message = message.partition(": ")
    if problem["type"] == "missing":
        return missing(path)
    if problem["type"] == "extra_forbidden":
        return bad_value(path, "unknown field", code="unknown_parameter")
    return bad_value(path, f"{message} (got {shown(problem['input'])})" if problem["loc"] else message)


def _path(location: tuple[int | str, ...], body: Any) -> str:
    """In what the client sent: not into a list that was made of its single string, nor to a key as opposed to its value."""
    path = ""
    for part in location:
        if part == _KEY or not isinstance(body, (dict, list)):
            break
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part[:_MAX_NAME]}"
        body = body.get(part) if isinstance(body, dict) else body[int(part)]
    return path[:200]
