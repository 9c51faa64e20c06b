"""Writes a random checkpoint in the exact published format, of any size from a unit test's to K2's own.

Knows nothing of serving. 1. The options, over the default or K2's dimensions, become a ``config.json``; 2. every shard
file is laid out, and filled in parallel by chunks, so little memory is needed; 3. all of it lands in a folder beside the
target, which takes the target's place when it is complete. Same options, same bytes.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from . import tiny_vocabulary
from .errors import CheckpointError
from .files import INDEX_FILE
from .model_config import ModelConfig
from .random_tensors import CHUNK_BYTES, RandomTensors
from .safetensors_header import encode_header
from .tensor_names import TensorSpec, all_tensors
from .tiny_config import SHAPES, TinyShape, config_document, option_name

MARKER_FILE = "make_tiny.json"
_TEMPLATE = Path(__file__).with_name("kimi_k2_thinking.jinja")
_FREE_SPACE_MARGIN = 64 << 20

Progress = Callable[[int, int], None]


def make_tiny(
    directory: Path,
    *,
    seed: int = 0,
    like: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **dimensions: int | None,
) -> ModelConfig:
    """``dimensions`` are fields of TinyShape; None leaves one as it is. Replaces only an earlier output of its own."""
    if like is not None and like not in SHAPES:
        raise ValueError(f"--like {like}: must be one of {', '.join(SHAPES)}")
    given = {name: value for name, value in dimensions.items() if value is not None}
    unknown = set(given) - {field.name for field in dataclasses.fields(TinyShape)}
    if unknown:
        raise ValueError(f"{option_name(min(unknown))}: no such dimension")
    shape = dataclasses.replace(SHAPES[like] if like else TinyShape(), **given)
    data = config_document(shape)
    config = ModelConfig.from_dict(data)
    specs = list(all_tensors(config))
    _check_target(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    _check_space(directory.parent, specs)
    partial = directory.parent / f".{directory.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        index = _write_shards(partial, config, specs, seed, threads or os.cpu_count() or 1, progress)
        _write_texts(partial, shape, data, index, {"seed": seed, "like": like, **dataclasses.asdict(shape)})
        if directory.exists():
            shutil.rmtree(directory)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ModelConfig.from_dir(directory)


def _check_target(directory: Path) -> None:
    """Free, empty, or nothing but what an earlier call wrote."""
    if not directory.exists():
        return
    if not directory.is_dir() or directory.is_symlink():
        raise CheckpointError(directory, "", "is in the way: not a directory")
    present = {entry.name for entry in directory.iterdir()}
    written = set()
    if MARKER_FILE in present:
        written = set(json.loads((directory / MARKER_FILE).read_bytes())["files"])
    foreign = present - written
    if foreign:
        raise CheckpointError(directory, min(foreign), "was not written by make-tiny; choose an empty directory")


def _check_space(parent: Path, specs: Iterable[TensorSpec]) -> None:
    needed = sum(_num_bytes(spec) for spec in specs) + _FREE_SPACE_MARGIN
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise CheckpointError(parent, "", f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def _num_bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * (2 if spec.dtypes[0] == "BF16" else 4)


def _write_shards(
    directory: Path, config: ModelConfig, specs: list[TensorSpec], seed: int, threads: int, progress: Progress | None
) -> dict[str, str]:
    """One file per layer and one for the rest, as K2 has it; returns the index's weight map."""
    shards = [[spec for spec in specs if _layer(spec) == layer] for layer in (*range(config.num_layers), None)]
    weight_map = {}
    random = RandomTensors(config, seed)
    total = sum(map(_num_bytes, specs))
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
            # As the safetensors library orders them: wide items first, then by name.
            shard.sort(key=lambda spec: (spec.dtypes[0] == "BF16", spec.name))
            for count in _write_shard(directory / name, shard, config, random, pool):
                done += count
                if progress:
                    progress(done, total)
            weight_map.update({spec.name: name for spec in shard})
    return weight_map


def _layer(spec: TensorSpec) -> int | None:
    parts = spec.name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def _write_shard(
    path: Path, shard: list[TensorSpec], config: ModelConfig, random: RandomTensors, pool: ThreadPoolExecutor
) -> Iterator[int]:
    """Yields the bytes written by each piece of work."""
    header, ranges = encode_header([(spec.name, spec.dtypes[0], spec.shape) for spec in shard])
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, header, 0)
        pending: list[Future[int]] = []
        for spec in shard:
            start = ranges[spec.name][0]
            for index in range(-(-_num_bytes(spec) // CHUNK_BYTES)):
                pending.append(pool.submit(_write_chunk, descriptor, spec, start, index, config, random))
        for work in pending:
            yield work.result()
    finally:
        for work in pending:
            work.cancel()
        os.close(descriptor)


def _write_chunk(
    descriptor: int, spec: TensorSpec, start: int, index: int, config: ModelConfig, random: RandomTensors
) -> int:
    content = _shape_content(spec, config) if spec.kind == "shape" else random.chunk(spec, spec.dtypes[0], index)
    remaining = content.data.cast("B")
    position = start + index * CHUNK_BYTES
    while remaining:
        count = os.pwrite(descriptor, remaining, position)
        remaining, position = remaining[count:], position + count
    return int(content.nbytes)


def _shape_content(spec: TensorSpec, config: ModelConfig) -> Any:
    width, hidden = config.moe_intermediate_size, config.hidden_size
    return np.array((hidden, width) if ".down_proj." in spec.name else (width, hidden), dtype="<i4")


def _write_texts(
    directory: Path, shape: TinyShape, config: dict[str, Any], weight_map: dict[str, str], options: dict[str, Any]
) -> None:
    total = sum(map(_num_bytes, all_tensors(ModelConfig.from_dict(config))))
    end_of_turn = tiny_vocabulary.special_id(shape.vocab, tiny_vocabulary.END_OF_TURN)
    documents = {
        "config.json": config,
        "generation_config.json": {"eos_token_id": end_of_turn, "max_length": shape.context, "temperature": 1.0},
        "tokenizer_config.json": tiny_vocabulary.tokenizer_config(shape.vocab),
        INDEX_FILE: {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    }
    for name, document in documents.items():
        (directory / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (directory / "tiktoken.model").write_bytes(tiny_vocabulary.ranks_file(shape.vocab))
    shutil.copyfile(_TEMPLATE, directory / "chat_template.jinja")
    files = sorted([*(entry.name for entry in directory.iterdir()), MARKER_FILE])
    (directory / MARKER_FILE).write_text(json.dumps({"options": options, "files": files}, indent=2) + "\n")
