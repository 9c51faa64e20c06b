"""Log-probabilities in OpenAI's two shapes.

Knows nothing of how they were computed. They cover every generated token, those of reasoning and the last one included.
"""

from collections.abc import Sequence
from typing import Any

from ...proto.generated import generate_pb2 as pb
from ..events.served_model import Model

# JSON has no infinity; OpenAI writes this for a token that has no chance.
_IMPOSSIBLE = -9999.0


def chat_logprobs(token_ids: Sequence[int], entries: Sequence[pb.TokenLogprobs], model: Model) -> list[dict[str, Any]]:
    return [
        _token(token_id, entry.logprob, model)
        | {"top_logprobs": [_token(*pair, model) for pair in zip(entry.top_ids, entry.top_logprobs, strict=True)]}
        for token_id, entry in zip(token_ids, entries, strict=True)
    ]


def completion_logprobs(
    token_ids: Sequence[int], entries: Sequence[pb.TokenLogprobs], model: Model, offset: int
) -> tuple[dict[str, Any], int]:
    """The object, and the text offset behind the last token. The token itself is always among its alternatives."""
    shown: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token_id, entry in zip(token_ids, entries, strict=True):
        text = model.token_text(token_id)
        top = {
            model.token_text(id_): _finite(value) for id_, value in zip(entry.top_ids, entry.top_logprobs, strict=True)
        }
        shown["tokens"].append(text)
        shown["token_logprobs"].append(_finite(entry.logprob))
        shown["top_logprobs"].append({text: _finite(entry.logprob)} | top)
        shown["text_offset"].append(offset)
        offset += len(text)
    return shown, offset


def _token(token_id: int, logprob: float, model: Model) -> dict[str, Any]:
    raw = model.tokenizer.token_bytes(token_id)
    return {"token": model.token_text(token_id), "bytes": list(raw), "logprob": _finite(logprob)}


def _finite(value: float) -> float:
    return max(_IMPOSSIBLE, value)
