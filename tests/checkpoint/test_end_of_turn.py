"""The end of a turn is found in whatever way a template writes it."""

from pathlib import Path

import pytest

from expertfleet.checkpoint.chat_template import ChatTemplate
from expertfleet.checkpoint.end_of_turn import end_of_turn_ids
from expertfleet.checkpoint.tokenizer import Tokenizer

TURN = "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>"


def ends(source: str, tokenizer: Tokenizer, *written: str) -> list[str]:
    template = ChatTemplate(source, tokenizer, {"eos_token": "[EOS]"}, "test.jinja")
    ids = end_of_turn_ids(template, tokenizer, {tokenizer.special[name] for name in written})
    return [tokenizer.token_bytes(token_id).decode() for token_id in ids]


def test_k2s_turns_end_with_im_end(tiny: Path, tokenizer: Tokenizer) -> None:
    written = {tokenizer.special[name] for name in ("<think>", "</think>")}
    template = ChatTemplate.from_dir(tiny, tokenizer)
    assert end_of_turn_ids(template, tokenizer, written) == (tokenizer.special["<|im_end|>"],)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TURN + "{{ m.content }}<|im_end|>{% endfor %}", ["<|im_end|>"]),
        (TURN + "{{ m.content | trim | title }}\n<|im_end|>\n{% endfor %}", ["<|im_end|>"]),
        (TURN + "{{ m.content }}{{ eos_token }}{% endfor %}", ["[EOS]"]),
        (TURN + "{{ m.content }}<|im_end|>{{ eos_token }}{% endfor %}", ["<|im_end|>"]),
        (TURN + "<think></think>{{ m.content }}</think><|reserved_token_1800|>{% endfor %}", ["<|reserved_token_1800|>"]),
        # an answer that is the last message stays open, or ends in its own way
        (TURN + "{{ m.content }}{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}", ["<|im_end|>"]),
        (TURN + "{{ m.content }}{{ '[EOS]' if loop.last else '[EOT]' }}{% endfor %}", ["[EOS]", "[EOT]"]),
        (TURN + "{{ m.content }}{% endfor %}", ["<|im_user|>"]),
        # templates that refuse some chats
        ("{{ messages[0].role == 'system' or raise_exception('no') }}" + TURN + "{{ m.content }}[EOT]{% endfor %}", ["[EOT]"]),
        ("{{ messages[-1].role == 'user' or raise_exception('no') }}" + TURN + "{{ m.content }}[EOT]{% endfor %}", ["[EOT]"]),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TURN + "{{ m.content }}[EOT]{% endfor %}", ["[EOT]"]),
        # nothing to be found
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", []),
        ("<|im_user|>{{ messages[0].content }}<|im_end|>", []),
        ("{{ raise_exception('never') }}", []),
    ],
)  # fmt: skip
def test_the_token_behind_an_answer_is_found(tokenizer: Tokenizer, source: str, expected: list[str]) -> None:
    assert sorted(ends(source, tokenizer, "<think>", "</think>")) == sorted(expected)


def test_what_the_answer_itself_may_hold_ends_nothing(tokenizer: Tokenizer) -> None:
    source = TURN + "{{ m.content }}<|tool_call_end|>[EOT]{% endfor %}"
    assert ends(source, tokenizer, "<|tool_call_end|>") == ["[EOT]"]
    assert ends(source, tokenizer) == ["<|tool_call_end|>"]
