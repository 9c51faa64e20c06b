import json
from pathlib import Path
from typing import Any

import pytest

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.generation import GenerationDefaults


def read(directory: Path, document: Any) -> GenerationDefaults:
    (directory / "generation_config.json").write_text(json.dumps(document))
    return GenerationDefaults.from_dir(directory)


def test_an_absent_file_says_nothing(tmp_path: Path) -> None:
    assert GenerationDefaults.from_dir(tmp_path) == GenerationDefaults()


def test_what_is_written_holds_and_the_rest_is_none(tmp_path: Path) -> None:
    defaults = read(tmp_path, {"temperature": 0.6, "top_p": 0.95, "top_k": 40, "eos_token_id": [5, 7], "pad": 3})
    assert defaults == GenerationDefaults(temperature=0.6, top_p=0.95, top_k=40, eos_token_ids=(5, 7))
    assert read(tmp_path, {"eos_token_id": 9}) == GenerationDefaults(eos_token_ids=(9,))


def test_no_sampling_is_temperature_zero(tmp_path: Path) -> None:
    assert read(tmp_path, {"do_sample": False, "temperature": 0.6}).temperature == 0.0
    assert read(tmp_path, {"do_sample": True, "temperature": 0.6}).temperature == 0.6


@pytest.mark.parametrize("top_k", [0, -1, None])
def test_top_k_without_a_limit_is_none(tmp_path: Path, top_k: int | None) -> None:
    assert read(tmp_path, {"top_k": top_k}).top_k is None


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"temperature": "1"}, "temperature: must be a finite number"),
        ({"temperature": -1}, "temperature: -1 is out of range"),
        ({"top_p": 1.5}, "top_p: 1.5 is out of range"),
        ({"temperature": 100.1}, "temperature: 100.1 is out of range (0.0 to 100.0)"),
        ({"top_p": 0}, "top_p: 0 is out of range (1e-09 to 1.0)"),
        ({"top_p": 1e-9}, "top_p: 1e-09 is out of range"),  # as the wire's 32 bits have it, it is less
        ({"min_p": 1.01}, "min_p: 1.01 is out of range"),
        ({"repetition_penalty": 0}, "repetition_penalty: 0 is out of range (0.001 to 100.0)"),
        ({"repetition_penalty": 1e9}, "repetition_penalty: 1000000000.0 is out of range"),
        ({"top_k": -2}, "top_k: -2 is out of range"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is out of range"),
        ({"top_k": 1.5}, "top_k: must be a whole number"),
        ({"do_sample": "no"}, "do_sample: must be true or false"),
        ({"eos_token_id": [None]}, "eos_token_id: must hold token ids"),
        ([], "must hold a JSON object"),
    ],
)
def test_a_wrong_value_names_file_and_key(tmp_path: Path, document: Any, problem: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, document)
    assert str(caught.value).startswith(f"{tmp_path / 'generation_config.json'}: ")
    assert problem in str(caught.value)
