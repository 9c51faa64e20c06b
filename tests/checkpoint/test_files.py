import json
import random
import threading
import tracemalloc
from pathlib import Path

import pytest

from expertfleet.checkpoint.errors import CheckpointError
from expertfleet.checkpoint.files import INDEX_FILE, CheckpointFiles
from expertfleet.checkpoint.make_tiny import make_tiny


def change_index(directory: Path, name: str, file: str | None) -> None:
    index = json.loads((directory / INDEX_FILE).read_text())
    if file is None:
        del index["weight_map"][name]
    else:
        index["weight_map"][name] = file
    (directory / INDEX_FILE).write_text(json.dumps(index))


def test_only_headers_are_read_on_opening(tiny: Path) -> None:
    with CheckpointFiles.open(tiny) as files:
        assert files.ranges_read == []
        assert {file for file, _, _ in files.header_ranges} == {path.name for path in tiny.glob("*.safetensors")}


def test_ranges_read_are_merged_and_only_what_was_asked_for(tiny: Path) -> None:
    with CheckpointFiles.open(tiny) as files:
        by_place = sorted((info.file, info.start, info.end, name) for name, info in files.tensors.items())
        (file, start, middle, first), (_, _, end, second) = by_place[3:5]
        for name in (second, first, first):
            info = files.info(name)
            files.read_bytes(name, info.start, memoryview(bytearray(info.end - info.start)))
        assert middle > start
        assert files.ranges_read == [(file, start, end)]


def test_what_is_read_again_and_again_takes_no_more_memory(tiny: Path) -> None:
    with CheckpointFiles.open(tiny) as files:
        infos = [(name, info) for name, info in files.tensors.items() if name.endswith(".weight_scale")][:40]

        def read_all(times: int) -> None:
            for _ in range(times):
                for name, info in infos:
                    files.read_bytes(name, info.start, memoryview(bytearray(info.end - info.start)))

        read_all(100)
        tracemalloc.start()
        try:
            read_all(400)  # 16,000 ranges, about 2 MB if each were kept
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 500_000
        assert files.ranges_read == sorted(files.ranges_read)
        assert sum(end - start for _, start, end in files.ranges_read) == sum(
            info.end - info.start for _, info in infos
        )


def test_many_threads_read_what_one_reads(tiny: Path) -> None:
    with CheckpointFiles.open(tiny) as files:
        names = [name for name in files.tensors if ".experts." in name]
        contents = {path.name: path.read_bytes() for path in tiny.glob("*.safetensors")}
        wrong: list[str] = []

        def read(seed: int) -> None:
            for name in random.Random(seed).sample(names, 60):
                info = files.info(name)
                content = bytearray(info.end - info.start)
                files.read_bytes(name, info.start, memoryview(content))
                if content != contents[info.file][info.start : info.end]:
                    wrong.append(name)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_an_index_naming_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "model-00002-of-000004.safetensors").rename(copy / "renamed.safetensors")
    with pytest.raises(CheckpointError, match=r"index\.json: model\.layers\.1.*which does not exist in"):
        CheckpointFiles.open(copy)


def test_a_tensor_that_is_not_where_the_index_says_is_named(copy: Path) -> None:
    change_index(copy, "model.norm.weight", "model-00001-of-000004.safetensors")
    with pytest.raises(CheckpointError, match=r"model-00001-of-000004\.safetensors: model\.norm\.weight: missing"):
        CheckpointFiles.open(copy)


@pytest.mark.parametrize("file", ["../tiny/model-00001-of-000004.safetensors", "/etc/passwd", "weights.bin", ""])
def test_an_index_cannot_lead_out_of_the_directory(copy: Path, file: str) -> None:
    change_index(copy, "model.norm.weight", file)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: .* is not the name of a safetensors file"):
        CheckpointFiles.open(copy)


def test_a_tensor_in_two_files_is_refused(copy: Path) -> None:
    content = (copy / "model-00001-of-000004.safetensors").read_bytes()
    (copy / "again.safetensors").write_bytes(content)
    change_index(copy, "model.layers.0.input_layernorm.weight", "again.safetensors")
    with pytest.raises(CheckpointError, match=r"lies in \S+ as well"):
        CheckpointFiles.open(copy)


def test_a_truncated_shard_names_its_last_tensor(copy: Path) -> None:
    path = copy / "model-00003-of-000004.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)
    with pytest.raises(CheckpointError, match=rf"{path}: model\.layers\.2\.\S+: truncated: ends at byte"):
        CheckpointFiles.open(copy)


def test_a_shard_that_shrinks_while_it_is_open_is_an_error(copy: Path) -> None:
    with CheckpointFiles.open(copy) as files:
        name = max(files.tensors, key=lambda name: (files.info(name).file, files.info(name).end))
        info = files.info(name)
        with (copy / info.file).open("r+b") as file:
            file.truncate(info.end - 1)
        with pytest.raises(CheckpointError, match="truncated at byte"):
            files.read_bytes(name, info.start, memoryview(bytearray(info.end - info.start)))


def test_a_directory_without_tensors_is_refused(copy: Path) -> None:
    (copy / INDEX_FILE).unlink()
    with pytest.raises(CheckpointError, match="holds neither"):
        CheckpointFiles.open(copy)


def test_an_unknown_tensor_is_an_error_that_names_it(tiny: Path) -> None:
    with CheckpointFiles.open(tiny) as files, pytest.raises(CheckpointError, match="nonsense: is in no file"):
        files.info("nonsense")


def test_the_fingerprint_follows_content_and_not_place(tiny: Path, copy: Path, tmp_path: Path) -> None:
    with CheckpointFiles.open(tiny) as files, CheckpointFiles.open(copy) as same:
        fingerprint = files.fingerprint
        assert len(fingerprint) == 64
        assert same.fingerprint == fingerprint
    other = tmp_path / "other"
    options = {"hidden": 64, "layers": 3, "experts": 8, "top_k": 2, "expert_width": 32, "dense_width": 64}
    make_tiny(other, seed=8, **options)
    with CheckpointFiles.open(other) as files:
        assert files.fingerprint != fingerprint, "only the seed differs: equal names, shapes and sizes"
    data = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**data, "routed_scaling_factor": 2.5}))
    with CheckpointFiles.open(copy) as files:
        assert files.fingerprint != fingerprint
