"""What a checkpoint says beside its tensors: configuration, tokenizer, template and sampling defaults, read and tried out.

Knows nothing of tensors. Whoever serves reads all of it here, and who checks does too, so nothing is found out later: a
plain conversation is rendered, must be there in what comes out, and must leave room for an answer.
"""

from dataclasses import dataclass
from pathlib import Path

from .chat_template import TEMPLATE_FILE, ChatTemplate, TemplateError
from .errors import CheckpointError
from .generation import GenerationDefaults
from .mistakes import START_BYTES, file_is
from .model_config import ModelConfig
from .tokenizer import TOKENIZER_FILE, Tokenizer

_QUESTION = {"role": "user", "content": "What is the capital of France?"}
_CONVERSATION = (
    _QUESTION,
    {"role": "assistant", "content": "It is Paris."},
    {"role": "user", "content": "And of Italy?"},
)


@dataclass(frozen=True)
class Texts:
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: GenerationDefaults

    @classmethod
    def from_dir(cls, directory: Path) -> "Texts":
        """Raises CheckpointError."""
        config = ModelConfig.from_dir(directory)
        tokenizer = Tokenizer.from_dir(directory)
        template = _template(directory, tokenizer)
        num_tokens, _ = [_try(directory, template, messages) for messages in ((_QUESTION,), _CONVERSATION)]
        if num_tokens >= config.max_position_embeddings:
            problem = f"{config.max_position_embeddings} must exceed the {num_tokens} tokens of one short question"
            raise CheckpointError(config.source, "max_position_embeddings", problem)
        return cls(config, tokenizer, template, GenerationDefaults.from_dir(directory))


def _template(directory: Path, tokenizer: Tokenizer) -> ChatTemplate:
    try:
        return ChatTemplate.from_dir(directory, tokenizer)
    except (SyntaxError, RecursionError) as error:  # Python's own, of what Jinja made of it
        raise _error(directory, f"cannot be compiled: {error}") from error


def _try(directory: Path, template: ChatTemplate, messages: tuple[dict[str, str], ...]) -> int:
    """The tokens that it takes."""
    roles = ", ".join(message["role"] for message in messages)
    try:
        rendered = template.render_text(messages)
        num_tokens = len(template.render_ids(messages))
    except TemplateError as error:
        problem = f"raises for a plain conversation ({roles}): {str(error).removeprefix('messages: ')}"
        raise _error(directory, problem) from error
    for message in messages:
        if message["content"] not in rendered:
            problem = f"leaves out what the {message['role']} says in a plain conversation ({roles})"
            raise _error(directory, problem, file_is(_start(directory)))
    return num_tokens


def _start(directory: Path) -> bytes:
    path = directory / TEMPLATE_FILE
    return path.read_bytes()[:START_BYTES] if path.exists() else b"{"


def _error(directory: Path, problem: str, hint: str = "") -> CheckpointError:
    path = directory / TEMPLATE_FILE
    if path.exists():
        return CheckpointError(path, "", problem, hint)
    return CheckpointError(directory / TOKENIZER_FILE, "chat_template", problem, hint)
