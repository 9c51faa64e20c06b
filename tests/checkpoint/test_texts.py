import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.make_tiny import make_tiny
from expertfleet.checkpoint.texts import Texts

TEMPLATE = "chat_template.jinja"


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_good_checkpoint_is_read_whole(tiny: Path) -> None:
    texts = Texts.from_dir(tiny)
    assert texts.config.num_experts == 8
    assert texts.defaults.temperature == 1.0
    assert texts.template.render_ids([{"role": "user", "content": "hi"}])
    assert set(texts.defaults.eos_token_ids) <= set(texts.tokenizer.stop_ids)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("eos_token_id", 2048, "2048 must be below vocab_size, 2048"),
        ("eos_token_id", [5, 163_586], "163586 must be below vocab_size, 2048"),
        ("eos_token_id", -1, "-1 is out of range"),
        ("temperature", 100.5, "100.5 is out of range (0.0 to 100.0)"),
        ("top_p", 0, "0 is out of range"),
        ("repetition_penalty", 0, "0 is out of range"),
        ("max_new_tokens", 0, "0 is out of range"),
    ],
)
def test_a_default_that_no_request_could_be_served_with_is_named(
    copy: Path, key: str, value: Any, problem: str
) -> None:
    rewrite(copy / "generation_config.json", **{key: value})
    with pytest.raises(CheckpointError) as caught:
        Texts.from_dir(copy)
    assert str(caught.value).startswith(f"{copy / 'generation_config.json'}: {key}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for message in messages %}", "line 1: "),
        ("{{ messages[0].content | no_such_filter }}", "line 1: No filter named 'no_such_filter'"),
        ("{% for a in 'a' %}" * 25 + "{% endfor %}" * 25, "cannot be compiled: "),
        ("{{ raise_exception('only tools') }}", "raises for a plain conversation (user): only tools"),
        ("{{ messages[0].no_such.thing }}", "raises for a plain conversation (user): "),
        ("{{ 1 // 0 }}{{ messages[0].content }}", "raises for a plain conversation (user): "),
        (
            "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}{{ messages[0].content }}",
            "raises for a plain conversation (user, assistant, user): one",
        ),
        (
            "{{ messages[0].content }}",
            "leaves out what the assistant says in a plain conversation (user, assistant, user)",
        ),
        ("{{ messages[-1].content }}", "leaves out what the user says in a plain conversation (user, assistant, user)"),
        ("{{ messages[:2] }}", "leaves out what the user says in a plain conversation (user, assistant, user)"),
        ("", "leaves out what the user says in a plain conversation (user)"),
        ("<|im_user|>user<|im_middle|>{{ messages[0].text }}<|im_end|>", "leaves out what the user says"),
        (
            "<!DOCTYPE html><title>404</title>",
            "leaves out what the user says in a plain conversation (user); is a web page",
        ),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4711\n",
            "leaves out what the user says in a plain conversation (user); is a git-lfs pointer",
        ),
    ],
)
@pytest.mark.parametrize("place", ["file", "key"])
def test_a_template_that_cannot_render_a_plain_conversation_is_named(
    copy: Path, template: str, problem: str, place: str
) -> None:
    if place == "file":
        (copy / TEMPLATE).write_text(template)
        where = f"{copy / TEMPLATE}: "
    else:
        (copy / TEMPLATE).unlink()
        rewrite(copy / "tokenizer_config.json", chat_template=template)
        where = f"{copy / 'tokenizer_config.json'}: "
        problem = problem.split("; is a")[0]
    with pytest.raises(CheckpointError) as caught:
        Texts.from_dir(copy)
    assert str(caught.value).startswith(where)
    assert problem in str(caught.value)


def test_a_template_need_not_know_tools_and_systems(copy: Path) -> None:
    (copy / TEMPLATE).write_text(
        "{% if tools or messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{% for message in messages %}<|im_user|>{{ message.content | trim }}<|im_end|>{% endfor %}"
    )
    Texts.from_dir(copy)


def test_a_context_must_have_room_for_a_question_and_an_answer(copy: Path) -> None:
    rewrite(copy / "config.json", max_position_embeddings=9)
    with pytest.raises(CheckpointError, match=r"config\.json: max_position_embeddings: 9 must exceed the \d+ tokens"):
        Texts.from_dir(copy)


@pytest.mark.parametrize(
    ("file", "damage", "problem"),
    [
        ("tokenizer_config.json", {"163838": {"content": "[UNK]"}}, "163838: '[UNK]' is out of range"),
        ("tokenizer_config.json", {"2000": {"content": "\ud800<x"}}, "2000: '\\ud800<x' holds half a character"),
        ("tokenizer_config.json", {"1800": {"content": "[A]"}, "1801": {"content": "[A]"}}, "'[A]' is the name of"),
    ],
)
def test_a_control_token_that_cannot_be_is_named(copy: Path, file: str, damage: dict[str, Any], problem: str) -> None:
    listed = json.loads((copy / file).read_text())["added_tokens_decoder"]
    rewrite(copy / file, added_tokens_decoder=listed | damage)
    with pytest.raises(CheckpointError) as caught:
        Texts.from_dir(copy)
    assert str(caught.value).startswith(f"{copy / file}: added_tokens_decoder.")
    assert problem in str(caught.value)


@pytest.fixture
def more_ranks(tmp_path: Path) -> Callable[[int], bytes]:
    """The vocabulary of another model."""

    def make(vocab: int) -> bytes:
        make_tiny(tmp_path / "other", hidden=64, layers=2, experts=2, top_k=1, expert_width=32, vocab=vocab)
        return (tmp_path / "other" / "tiktoken.model").read_bytes()

    return make


@pytest.mark.parametrize("num_left", [1000, 1791])
def test_a_vocabulary_that_lacks_its_last_lines_is_refused(copy: Path, num_left: int) -> None:
    path = copy / "tiktoken.model"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:num_left]))
    with pytest.raises(
        CheckpointError, match=rf"1792: tiktoken\.model ends with rank {num_left - 1}, and nothing lies"
    ):
        Texts.from_dir(copy)


def test_another_models_vocabulary_is_refused(copy: Path, more_ranks: Callable[[int], bytes]) -> None:
    (copy / "tiktoken.model").write_bytes(more_ranks(4000))
    with pytest.raises(CheckpointError, match=r"tiktoken\.model: \d+ tokens, more than vocab_size, 2048"):
        Texts.from_dir(copy)
