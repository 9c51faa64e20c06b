"""Token counts as OpenAI reports them.

Knows nothing of choices' texts. Every prompt counts once, however many answers it has. ``inexact_continuations``, ours, is there
if an answer changed its numerics class.
"""

from collections.abc import Sequence
from typing import Any

from ..engine.prepared_request import PreparedRequest
from ..events.answer import Answer
from .schemas import AnyRequest


def usage(job: PreparedRequest[AnyRequest], answers: Sequence[Answer]) -> dict[str, Any]:
    num_prompt = sum(map(len, job.prompts))
    num_completion = sum(answer.num_tokens for answer in answers)
    num_cached = sum(answer.num_cached_tokens for answer in answers[:: job.request.n])
    num_reasoning = sum(answer.reader.num_reasoning_tokens for answer in answers)
    num_inexact = sum(answer.num_inexact for answer in answers)
    inexact = {"inexact_continuations": num_inexact} if num_inexact else {}
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": num_cached},
        "completion_tokens_details": {"reasoning_tokens": num_reasoning},
        **inexact,
    }
