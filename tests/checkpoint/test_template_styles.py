"""Templates built as those of related models are: their text is transformers', their end of turn is found, and no client's
text becomes one of their control tokens."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from expertfleet.checkpoint.chat_template import ChatTemplate
from expertfleet.checkpoint.end_of_turn import end_of_turn_ids
from expertfleet.checkpoint.tokenizer import Tokenizer

NAMED = {"bos_token": "[BOS]", "eos_token": "</s>"}
NAMES = (
    "</s>",
    "<|start|>",
    "<|eot|>",
    "[INST]",
    "[/INST]",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜calls｜>",
    "<｜call｜>",
    "<｜sep｜>",
)
# A call's turn is told by its content, which is null; thinking is opened by the prompt.
R1 = (
    "{%- set ns = namespace(system='', in_tool=false) -%}"
    "{%- for m in messages if m['role'] == 'system' %}{% set ns.system = ns.system + m['content'] %}{% endfor -%}"
    "{{ bos_token }}{{ ns.system }}{%- for m in messages -%}"
    "{%- if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{%- elif m['role'] == 'assistant' and m['content'] is none -%}{%- for call in m['tool_calls'] -%}"
    "{{ ('<｜Assistant｜><｜calls｜>' if loop.first else '\\n') + '<｜call｜>' + call['type'] + '<｜sep｜>' + call['function']['name'] }}"
    "{{ '\\n```json\\n' ~ call['function']['arguments'] ~ '\\n```' }}{{ eos_token if loop.last }}{%- endfor -%}"
    "{%- elif m['role'] == 'assistant' -%}{% set said = m['content'] %}"
    "{%- if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif -%}"
    "{{ '<｜Assistant｜>' + said + eos_token }}{%- elif m['role'] == 'tool' %}{{ '<｜sep｜>' + m['content'] }}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt and messages[-1]['role'] == 'user' %}{{ '<｜Assistant｜><think>\\n' }}{%- endif -%}"
)
# Calls stand behind content, where there is any.
V3 = (
    "{{ bos_token }}{% if tools is defined and tools is not none %}{% for tool in tools %}{{ '### ' + tool.function.name + '\\n' "
    "+ (tool.function.parameters | tojson) + '\\n' }}{% endfor %}{% endif %}{%- for m in messages -%}"
    "{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{%- elif m.role == 'assistant' and m.tool_calls is defined and m.tool_calls is not none -%}"
    "{{ '<｜Assistant｜></think>' }}{% for call in m.tool_calls %}{% if m.content is none %}{{ '<｜calls｜>' + call.function.name }}"
    "{% else %}{{ m.content + '<｜calls｜>' + call.function.name }}{% endif %}{{ '<｜sep｜>' ~ call.function.arguments }}{% endfor %}"
    "{{ eos_token }}{%- elif m.role == 'assistant' %}{% set said = m.content %}{% if '</think>' in said %}"
    "{% set said = said.split('</think>', 1)[1] %}{% endif %}{{ '<｜Assistant｜></think>' + said + eos_token }}"
    "{%- else %}{{ '<｜sep｜>' + m.content }}{%- endif -%}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜></think>' }}{% endif %}"
)
CHATML = (
    "{%- set ns = namespace(last=messages | length - 1) -%}"
    "{%- for m in messages[::-1] if m.role == 'user' and not m.content.startswith('<answer>') -%}"
    "{%- if loop.first %}{% set ns.last = messages.index(m) %}{% endif %}{%- endfor -%}"
    "{%- if tools %}{{ '<|start|>system\\n<tools>' }}{% for t in tools %}{{ '\\n' }}{{ t | tojson }}{% endfor %}{{ '<|eot|>\\n' }}{% endif -%}"
    "{%- for m in messages -%}{%- set said = m.content if m.content is string else '' %}{% set thought = '' -%}"
    "{%- if m.reasoning_content is string %}{% set thought = m.reasoning_content -%}"
    "{%- elif '</think>' in said -%}{% set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- set said = said.split('</think>')[-1].lstrip('\\n') %}{%- endif -%}"
    "{{ '<|start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.index0 > ns.last and thought %}"
    "{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}{{ said }}"
    "{%- for call in m.tool_calls or [] -%}{%- if call.function %}{% set call = call.function %}{% endif -%}"
    '{{ \'\\n{"name": "\' ~ call.name ~ \'", "arguments": \' }}{{ call.arguments if call.arguments is string else call.arguments | tojson }}'
    "{{ '}' }}{%- endfor -%}{{ '<|eot|>\\n' }}{%- endfor -%}{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
# Thinking of both names, content of either form, a switch that nobody sets, and thinking that is opened by the prompt.
K2 = (
    "{%- macro body(m) -%}{%- set c = m.get('content') -%}{%- if c is string -%}{{ c }}{%- elif c is not none -%}"
    "{% for part in c -%}{{ part['text'] }}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
    "{%- macro head(m) -%}{{ '<|im_' ~ (m.role if m.role in ['user', 'assistant'] else 'system') ~ '|>' }}"
    "{{ m.get('name') or m['role'] }}<|im_middle|>{%- endmacro -%}{%- for m in messages -%}{{ head(m) }}"
    "{%- if m['role'] == 'assistant' -%}{%- set said = body(m) -%}{%- if '</think>' in said -%}{%- set said = said.split('</think>')[-1] -%}"
    "{%- endif -%}<think>{{ m.get('thinking', '') if loop.last else m.get('reasoning_content', '') }}</think>{{ said }}"
    "{%- for call in m.get('tool_calls') or [] -%}<|tool_call_begin|>{{ call['id'] }}<|tool_call_argument_begin|>"
    "{{ call['function']['arguments'] if call['function']['arguments'] is string else call['function']['arguments'] | tojson }}"
    "<|tool_call_end|>{%- endfor -%}{%- else -%}{{ body(m) }}{%- endif -%}<|im_end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{{ '<think></think>' if thinking is defined and not thinking else '<think>' }}{%- endif -%}"
)
LLAMA = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
    "{%- else %}{% set system = '' %}{%- endif %}<|start_header_id|>system<|end_header_id|>\\n{{ system }}<|eot|>"
    "{%- for m in messages %}{%- if 'tool_calls' in m %}<|start_header_id|>assistant<|end_header_id|>{{ m.tool_calls | tojson(indent=4) }}<|eot|>"
    "{%- else %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n' + m['content'] | trim + '<|eot|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ bos_token }}{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}{%- for m in messages -%}"
    "{%- if m['role'] == 'user' %}{% if tools and m == asked[-1] %}{{ (tools | map(attribute='function') | list | tojson) ~ '' }}{% endif %}"
    "{{ '[INST] ' + m['content'] + '[/INST]' }}{%- elif m.tool_calls is defined %}{{ (m.tool_calls[0].function | tojson)[:-1] }}"
    "{{ ', \"id\": \"' + m.tool_calls[0].id + '\"}' }}{{ END }}{%- elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim }}{{ END }}"
    "{%- else %}{{ m['content'] | string }}{%- endif %}{%- endfor %}"
)
STYLES = {
    "r1": (R1, ["</s>"]),
    "v3": (V3, ["</s>"]),
    "chatml": (CHATML, ["<|eot|>"]),
    "k2": (K2, ["<|im_end|>"]),
    "llama": (LLAMA, ["<|eot|>"]),
    "mistral": (MISTRAL.replace("{{ END }}", "{{ eos_token }}"), ["</s>"]),
    "endless": (MISTRAL.replace("{{ END }}", ""), ["[INST]"]),
}


@pytest.fixture(scope="module")
def many(tiny: Path) -> Tokenizer:
    """A vocabulary with the control tokens of all the styles."""
    plain = Tokenizer.from_dir(tiny)
    free = [name for name in plain.special if name.startswith("<|reserved_token_")]
    special = dict(plain.special)
    for name, reserved in zip(NAMES, free, strict=False):
        special[name] = special.pop(reserved)
    ranks = {plain.token_bytes(id_): id_ for id_ in range(min(special.values()))}
    return Tokenizer(ranks, special, (), plain.vocab_size)


def template(style: str, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(STYLES[style][0], tokenizer, NAMED, f"{style}.jinja")


def chats(x: str) -> Iterator[list[dict[str, Any]]]:
    """``x`` is a client's text."""

    def user(text: str) -> dict[str, Any]:
        return {"role": "user", "content": text}

    def called(content: str | None, arguments: Any, **more: Any) -> dict[str, Any]:
        calls = [{"id": f"functions.f{x}:0", "type": "function", "function": {"name": f"f{x}", "arguments": arguments}}]
        return {"role": "assistant", "content": content, "tool_calls": calls, **more}

    result = {"role": "tool", "tool_call_id": f"functions.f{x}:0", "content": f"r{x}"}
    yield [user(f"q{x}")]
    yield [{"role": "system", "content": f"s{x}"}, user(x)]
    for said in (f"a{x}", f"<think>{x}</think>\n\na{x}", f"{x}</think>{x}", f"\n {x}\n"):
        yield [user("q"), {"role": "assistant", "content": said}, user(x)]
        yield [user("q"), {"role": "assistant", "content": said, "reasoning_content": f"t{x}\n"}]
    for arguments in ('{"a": 1}', json.dumps({x: x}), {f"k{x}": [x]}):
        for content in (None, "", f"c{x}"):
            yield [user(x), called(content, arguments), result]
            yield [
                user(x),
                called(content, arguments, reasoning_content=f"t{x}"),
                result,
                {"role": "assistant", "content": x},
            ]


def tools(x: str) -> list[dict[str, Any]]:
    """Sorted by key, as the model's own tokenizer sorts them."""
    parameters = {"properties": {f"p{x}": {"enum": [x, "é"], "type": "string"}}, "type": "object"}
    return [{"function": {"description": f"d{x}", "name": f"n{x}", "parameters": parameters}, "type": "function"}]


def specials(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_bytes(id_).decode() for id_ in ids if tokenizer.is_special(id_)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "x", ["", "ä ", "<b>&'\"", "{{ 1 }}%s{0}", "\n\n", "<answer>", *NAMES, "<|im_end|>", "</think>", "<think>"]
)
def test_a_chat_is_what_transformers_makes_of_it_and_its_tokens_are_the_templates(
    many: Tokenizer, style: str, x: str
) -> None:
    ours = template(style, many)
    for chat, harmless in zip(chats(x), chats("~~"), strict=True):
        for declared, others in ((None, None), (tools(x), tools("~~"))):
            (theirs,), _ = render_jinja_template(
                [chat], tools=declared, chat_template=STYLES[style][0], add_generation_prompt=True, **NAMED
            )
            assert ours.render_text(chat, declared) == theirs
            ids = ours.render_ids(chat, declared)
            assert many.decode_bytes(ids).decode() == theirs
            if x in many.special and (style, x) != ("chatml", "</think>"):  # where that template writes more of its own
                assert specials(many, ids) == specials(many, ours.render_ids(harmless, others))


@pytest.mark.parametrize("style", STYLES)
def test_the_end_of_a_turn_is_found(many: Tokenizer, style: str) -> None:
    thinking = {many.special["<think>"], many.special["</think>"]}
    ends = end_of_turn_ids(template(style, many), many, thinking)
    assert [many.token_bytes(id_).decode() for id_ in ends] == STYLES[style][1]


def test_reasoning_is_there_under_both_names(many: Tokenizer) -> None:
    source = "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }}|{{ m }}{% endfor %}"
    messages = [{"role": "assistant", "reasoning_content": "hm", "content": None}]
    (theirs,), _ = render_jinja_template([messages], chat_template=source)
    assert ChatTemplate(source, many, {}, "test.jinja").render_text(messages) == theirs
    assert theirs.startswith("hm|hm|{'thinking': 'hm', ")
