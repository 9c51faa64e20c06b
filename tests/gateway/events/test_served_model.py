"""What the gateway knows of the model: where a prompt ends, what ends an answer, and what it refuses at start."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expertfleet.checkpoint.check import check
from expertfleet.checkpoint.files import CheckpointFiles
from expertfleet.gateway.events.output_parser import Markers
from expertfleet.gateway.events.served_model import Model


@pytest.mark.parametrize(
    ("prompt", "thinks"),
    [
        ("", False),
        ("hello", False),
        ("<think>", True),
        ("<|im_assistant|>assistant<|im_middle|><think>\n", True),
        ("<|im_middle|><think>Let me see, 1 < 2", True),
        ("<think></think>", False),
        ("<think>a</think>b", False),
        ("<think>a</think><think>", True),
        ("<think>a<|tool_calls_section_begin|>", False),
        ("<think>a<|im_end|><|im_user|>user<|im_middle|>q<|im_end|><|im_assistant|>assistant<|im_middle|>", False),
        ("<|im_system|>Begin with <think> always<|im_end|><|im_assistant|>assistant<|im_middle|>", False),
    ],
)
def test_a_prompt_ends_in_thinking_that_is_open(model: Model, text: Any, prompt: str, thinks: bool) -> None:
    assert model.ends_in_thinking(text.ids(prompt)) is thinks


def test_text_that_spells_the_marker_opens_nothing(model: Model) -> None:
    assert not model.ends_in_thinking(model.tokenizer.encode_text("<think>"))
    assert not model.ends_in_thinking(model.template.render_ids([{"role": "user", "content": "<think>"}]))
    without = dataclasses.replace(model, markers=Markers())
    assert not without.ends_in_thinking([model.tokenizer.special["<think>"]])


@pytest.fixture
def with_template(model_dir: Path, tmp_path: Path) -> Any:
    def load(template: str) -> Model:
        copy = Path(shutil.copytree(model_dir, tmp_path / "model"))
        (copy / "chat_template.jinja").write_text(template)
        return Model.load(copy, (copy.name,), None)

    return load


def test_a_templates_own_end_of_turn_ends_chats_beside_the_files_ids(with_template: Any) -> None:
    model = with_template("{% for m in messages %}{{ m.content }}<|reserved_token_1800|>{% endfor %}")
    assert model.chat_stop_ids == (*model.tokenizer.stop_ids, 1800)


def test_markers_that_an_answer_may_hold_do_not_end_it(with_template: Any) -> None:
    model = with_template("{% for m in messages %}<think>{{ m.content }}</think><|tool_call_end|>[UNK]{% endfor %}")
    assert model.chat_stop_ids == (*model.tokenizer.stop_ids, model.tokenizer.special["[UNK]"])


def test_a_template_without_an_end_of_turn_is_told_of(with_template: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = with_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert model.chat_stop_ids == model.tokenizer.stop_ids
    assert "the chat template writes no control token behind an answer" in caplog.text


def set_default(directory: Path, key: str, value: object) -> None:
    path = directory / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def fault(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: set_default(directory, "eos_token_id", 163_586),
        lambda directory: set_default(directory, "temperature", 1000),
        lambda directory: set_default(directory, "top_p", 0.0),
        lambda directory: (directory / "chat_template.jinja").write_text("{{ raise_exception('no') }}"),
        lambda directory: (directory / "tiktoken.model").write_bytes(b""),
    ],
)
def test_what_a_gateway_cannot_serve_is_what_the_check_refuses(
    model_dir: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    copy = Path(shutil.copytree(model_dir, tmp_path / "copy"))
    damage(copy)
    with CheckpointFiles.open(copy) as files:
        checked = fault(lambda: check(files))
    assert checked.startswith(str(copy))
    assert fault(lambda: Model.load(copy, (copy.name,), None)) == checked
