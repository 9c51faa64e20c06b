import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expertfleet.checkpoint.check import check
from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.files import INDEX_FILE, CheckpointFiles

State = dict[str, torch.Tensor]
FILE = "model-00002-of-000004.safetensors"
EXPERT = "model.layers.1.mlp.experts.3"


def rewrite(directory: Path, change: Callable[[State], None], file: str = FILE) -> None:
    """Changes one shard, and the index with it."""
    state = load_file(directory / file)
    change(state)
    save_file(state, directory / file)
    index = json.loads((directory / INDEX_FILE).read_text())
    kept = {name: place for name, place in index["weight_map"].items() if place != file}
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": {**kept, **dict.fromkeys(state, file)}}))


def run_check(directory: Path) -> None:
    with CheckpointFiles.open(directory) as files:
        check(files)


def test_a_good_checkpoint_passes_and_progress_reaches_the_end(tiny: Path) -> None:
    seen: list[tuple[int, int]] = []
    with CheckpointFiles.open(tiny) as files:
        report = check(files, lambda done, total: seen.append((done, total)), threads=2)
        assert report.num_tensors == len(files.tensors)
        assert report.unused == ()
        read = {(file, start) for file, start, _ in files.ranges_read}
        assert report.bytes_read == sum(end - start for _, start, end in files.ranges_read)
        packed = {(info.file, info.start) for name, info in files.tensors.items() if name.endswith("_packed")}
        assert not read & packed, "codes need no reading"
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    "name",
    [
        f"{EXPERT}.down_proj.weight_scale",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.1.self_attn.kv_a_layernorm.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.shared_experts.down_proj.weight",
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named(copy: Path, name: str, value: float) -> None:
    def change(state: State) -> None:
        state[name].view(-1)[-1] = value

    rewrite(copy, change)
    with pytest.raises(CheckpointError) as caught:
        run_check(copy)
    assert str(caught.value).startswith(f"{copy / FILE}: {name}: 1 of its values are not finite")


@pytest.mark.parametrize("span_bytes", [64, 1000, 4096])
def test_a_tensor_larger_than_what_is_read_at_once_is_counted_whole(
    copy: Path, monkeypatch: pytest.MonkeyPatch, span_bytes: int
) -> None:
    def change(state: State) -> None:
        for row in (0, 900, 2047):
            state["lm_head.weight"][row, 5] = float("nan")

    file = "model-00004-of-000004.safetensors"
    rewrite(copy, change, file)
    monkeypatch.setattr("expertfleet.checkpoint.check._SPAN_BYTES", span_bytes)
    with pytest.raises(CheckpointError) as caught:
        run_check(copy)
    assert str(caught.value) == f"{copy / file}: lm_head.weight: 3 of its values are not finite (NaN or infinite)"


def test_all_is_read_whatever_is_read_at_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CheckpointFiles.open(tiny) as files:
        expected = check(files)
    monkeypatch.setattr("expertfleet.checkpoint.check._SPAN_BYTES", 96)
    with CheckpointFiles.open(tiny) as files:
        assert check(files) == expected


def test_texts_are_tried_before_any_tensor_is_read(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with CheckpointFiles.open(copy) as files:
        with pytest.raises(CheckpointError, match="raises for a plain conversation"):
            check(files)
        assert files.ranges_read == []


# The largest bfloat16 below 2^32, and 2^32.
BELOW, LIMIT = 4278190080.0, 4294967296.0


@pytest.mark.parametrize("name", [f"{EXPERT}.up_proj.weight_scale", "model.layers.1.mlp.gate.e_score_correction_bias"])
def test_a_value_that_only_damage_can_make_is_named(copy: Path, name: str) -> None:
    def put(*values: float) -> None:
        def change(state: State) -> None:
            state[name].view(-1)[: len(values)] = torch.tensor(values, dtype=state[name].dtype)

        rewrite(copy, change)

    put(-BELOW, BELOW)
    run_check(copy)
    for values in ((LIMIT, BELOW, -LIMIT), (-torch.finfo(torch.bfloat16).max, 1e30, 0.5)):
        put(*values)
        with pytest.raises(CheckpointError) as caught:
            run_check(copy)
        assert str(caught.value).startswith(f"{copy / FILE}: {name}: 2 of its values are beyond ±4294967296, ")


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("up_proj.weight_scale", torch.ones(32, 4, dtype=torch.bfloat16), "has shape [32, 4], must be [32, 2]"),
        ("up_proj.weight_scale", torch.ones(32, 2), "has dtype F32, must be BF16"),
        ("up_proj.weight_packed", torch.ones(32, 8, dtype=torch.int64), "has dtype I64, must be I32"),
        ("down_proj.weight_shape", torch.tensor([32, 64], dtype=torch.int32), "holds [32, 64], must hold [64, 32]"),
        ("down_proj.weight_shape", torch.tensor([64.0, 32.0]), "has dtype F32, must be I32 or I64"),
        ("down_proj.weight_zero_point", torch.zeros(64, 1, dtype=torch.int32), "must be symmetric INT4"),
        ("gate_proj.weight_g_idx", torch.zeros(64, dtype=torch.int32), "must be symmetric INT4, in the order of the"),
        ("gate_proj.input_scale", torch.ones(1, dtype=torch.bfloat16), "with activations as they are"),
    ],
)
def test_a_wrong_tensor_is_named(copy: Path, name: str, tensor: torch.Tensor, problem: str) -> None:
    rewrite(copy, lambda state: state.update({f"{EXPERT}.{name}": tensor}))
    with pytest.raises(CheckpointError) as caught:
        run_check(copy)
    assert str(caught.value).startswith(f"{copy / FILE}: {EXPERT}.{name}: ")
    assert problem in str(caught.value)


def test_a_vocabulary_larger_than_the_heads_rows_is_named(copy: Path) -> None:
    data = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**data, "vocab_size": 4096}))
    with pytest.raises(CheckpointError, match=r"has shape \[2048, 64\], must be \[4096, 64\] by config\.json"):
        run_check(copy)


@pytest.mark.parametrize("name", [f"{EXPERT}.up_proj.weight_packed", "model.layers.1.self_attn.o_proj.weight"])
def test_a_missing_tensor_is_named(copy: Path, name: str) -> None:
    rewrite(copy, lambda state: state.__delitem__(name))
    with pytest.raises(CheckpointError, match=f"{name}: is in no file"):
        run_check(copy)


def test_an_unquantized_expert_is_missing_its_codes(copy: Path) -> None:
    def change(state: State) -> None:
        for part in ("packed", "scale", "shape"):
            del state[f"{EXPERT}.up_proj.weight_{part}"]
        state[f"{EXPERT}.up_proj.weight"] = torch.ones(32, 64, dtype=torch.bfloat16)

    rewrite(copy, change)
    with pytest.raises(CheckpointError, match=rf"{EXPERT}\.up_proj\.weight_packed: is in no file"):
        run_check(copy)


def test_int64_shapes_and_a_bfloat16_bias_pass(copy: Path) -> None:
    def change(state: State) -> None:
        for name in list(state):
            if name.endswith("weight_shape"):
                state[name] = state[name].long()
        name = "model.layers.1.mlp.gate.e_score_correction_bias"
        state[name] = state[name].bfloat16()

    rewrite(copy, change)
    run_check(copy)


def test_unused_tensors_are_reported_and_prediction_layers_are_not(copy: Path) -> None:
    def change(state: State) -> None:
        state["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        state["model.layers.3.eh_proj.weight"] = torch.ones(4)

    rewrite(copy, change)
    with CheckpointFiles.open(copy) as files:
        assert check(files).unused == ("model.layers.1.self_attn.rotary_emb.inv_freq",)
