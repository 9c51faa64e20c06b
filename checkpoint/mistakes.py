"""What people take for a checkpoint: tells what a file, a folder or a tensor's name really is, and what to do about it.

Knows nothing of why somebody asks. Every answer is the rest of an error's sentence, or empty where nothing is recognised.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

# So many first bytes of a file tell what it is.
START_BYTES = 512
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_SIZE = re.compile(rb"^size (\d+)", re.MULTILINE)
_AGAIN = "the download failed, fetch it again"
_ONLY_SAFETENSORS = "only safetensors in the published format are read"
_KINDS = {
    b"<!doctype html": f"is a web page; {_AGAIN}",
    b"<html": f"is a web page; {_AGAIN}",
    b"<?xml": f"is a server's answer in XML; {_AGAIN}",
    b"<error": f"is a server's answer in XML; {_AGAIN}",
    b"gguf": f"is a GGUF file; {_ONLY_SAFETENSORS}",
    b"pk\x03\x04": f"is a ZIP archive, as PyTorch writes .bin files; {_ONLY_SAFETENSORS}",
    b"\x80\x02": f"is a Python pickle, as PyTorch writes .bin files; {_ONLY_SAFETENSORS}",
    b"\x1f\x8b": "is compressed with gzip; unpack it",
}
_FOREIGN_WEIGHTS = {
    "*.gguf": f"GGUF files are not supported; {_ONLY_SAFETENSORS}",
    "*.bin": f"PyTorch's .bin files are not supported; {_ONLY_SAFETENSORS}",
    "*.pt*": f"PyTorch's files are not supported; {_ONLY_SAFETENSORS}",
}
# From a folder to a checkpoint in it: the Hub's cache, one model of it, its snapshots, or a folder around it.
_DEEPER = ("snapshots/*", "*", "*/snapshots/*", "*/*/snapshots/*")
# What stands where an INT4 weight's packed codes should.
_OTHER_EXPERTS = {
    ".weight": "experts that are not quantized, or to FP8, are not supported",
    ".qweight": "experts quantized by GPTQ or AWQ are not supported",
}
_ONE_EXPERT = re.compile(r"\.experts\.\d+\..*")
_LAYER = re.compile(r"layers\.\d+\.")


def file_is(start: bytes) -> str:
    """From a file's first bytes."""
    if not start:
        return f"is empty; {_AGAIN}"
    if start.startswith(_POINTER):
        size = _POINTER_SIZE.search(start)
        what = f"file of {int(size[1])} bytes" if size else "file"
        return f"is a git-lfs pointer, not the {what} it stands for; run `git lfs pull` there, or `checkpoint pull`"
    if not any(start[:8]):
        return f"begins with zeros: it was never written whole; {_AGAIN}"
    begin = start.lstrip().lower()
    return next((kind for magic, kind in _KINDS.items() if begin.startswith(magic)), "")


def text_is(start: bytes) -> str:
    """The same of a file that should not be text."""
    line = start.split(b"\n", 1)[0][:80].decode("latin-1")
    is_text = line.isascii() and line.isprintable()
    return file_is(start) or (f"is text, which begins {line!r}; {_AGAIN}" if is_text else "")


def path_is(path: Path) -> str:
    """Of a path that is no folder."""
    if path.is_file():
        return "give the folder that it lies in"
    return "give a checkpoint's folder on this machine, which `checkpoint pull` can fill"


def folder_lacks_config(directory: Path) -> str:
    """Of a folder without a configuration."""
    for pattern in _DEEPER:
        found = sorted(path.parent for path in directory.glob(f"{pattern}/config.json"))
        if found:
            return f"{found[0]} has one: give that folder" + (f", or one of {len(found) - 1} more" * (len(found) > 1))
    return _foreign(directory, {**_FOREIGN_WEIGHTS, "*.safetensors": "fetch the configuration as well"})


def folder_lacks_index(directory: Path) -> str:
    """Of a folder in which the safetensors files are not found."""
    without = "without the index nobody knows which of them belong together; fetch it as well"
    return _foreign(directory, {**_FOREIGN_WEIGHTS, "*.safetensors": without})


def _foreign(directory: Path, problems: Mapping[str, str]) -> str:
    for pattern, problem in problems.items():
        found = sorted(path.name for path in directory.glob(pattern))
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return f"it holds {found[0]}{more}: {problem}"
    return ""


def folder_lacks_ranks(directory: Path) -> str:
    """Of a folder without a vocabulary."""
    if not (directory / "tokenizer.json").exists():
        return ""
    return (
        "tokenizer.json, which is there, is not supported; a model that was trained further has the vocabulary of the one "
        "that it was made from: take its tiktoken.model"
    )


def folder_lacks(path: Path) -> str:
    """Of a file that is not there."""
    if path.is_symlink():
        return f"is a symbolic link to {path.readlink()}, which does not exist; copy what it stands for as well"
    for ending in (".partial", ".incomplete"):
        if path.with_name(path.name + ending).exists():
            return f"is there in part, as {path.name}{ending}; finish the download"
    return ""


def tensor_is(name: str, names: Collection[str]) -> str:
    """Of a tensor that is not there, by those that are."""
    for ending, problem in _OTHER_EXPERTS.items():
        other = name.removesuffix(".weight_packed") + ending
        if name.endswith(".weight_packed") and other in names:
            return f"{other} is: {problem}, only INT4 pack-quantized ones are"
    if name.endswith(".weight") and f"{name}_packed" in names:
        return f"{name}_packed is: only routed experts may be INT4"
    fused = _ONE_EXPERT.sub(".experts.gate_up_proj", name)
    if fused != name and any(other.startswith(fused) for other in names):
        return f"{fused} is: experts joined in one tensor are not supported, only INT4 pack-quantized ones by themselves are"
    core = name.removeprefix("model.")
    for prefix in (other.removesuffix(core) for other in names if f".{other}".endswith(f".{core}")):
        if _LAYER.search(prefix):
            continue  # a prediction layer's own
        whole = f"{prefix}{core}"
        if prefix.endswith(".model.") and core != name:
            prefix = prefix.removesuffix("model.")
        problem = f"names that begin with {prefix!r} are" if prefix else "names that do not begin with 'model.' are"
        return f"{whole} is: {problem} not supported; rename the tensors in the files and in the index"
    return ""
