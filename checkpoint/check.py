"""Checks a whole checkpoint before anything is served from it; the first fault ends the check with file and tensor.

Knows nothing of shards or devices. 1. Its texts can be used; 2. every tensor that the configuration asks for is there with
its shape and dtype; 3. the experts' ``weight_shape`` values agree; 4. every scale and every unpacked weight is finite, and not so
large that its products are not, read in large pieces by a few threads. Packed codes need no reading: each bit pattern is a valid code. Tensors beyond those are
reported, not refused.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from .errors import CheckpointError
from .files import CheckpointFiles
from .model_config import CODES_PER_WORD, CONFIG_FILE
from .safetensors_header import TensorInfo
from .tensor_names import TensorSpec, all_tensors
from .texts import Texts

_logger = logging.getLogger(__name__)
_SPAN_BYTES = 8 << 20
_SHAPES_PER_TASK = 512
# Trained weights are below thousands; a flipped bit of an exponent makes 1e30, which is finite, and whose products are not.
_LIMIT_BITS = 32
_INFINITE_BITS = 128
_NUMBERED_LAYER = re.compile(r"model\.layers\.(\d+)\.")
# An expert that carries one of these was not quantized as the configuration says.
_FOREIGN_PARTS = {
    ".weight_zero_point": "symmetric",
    ".weight_g_idx": "in the order of the columns",
    ".weight_global_scale": "scaled by group alone",
    ".input_scale": "with activations as they are",
    ".input_global_scale": "with activations as they are",
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckReport:
    """What was checked; ``unused`` are tensors that the model has no place for."""

    num_tensors: int
    bytes_read: int
    unused: tuple[str, ...]


@dataclass
class _Span:
    """Neighbouring tensors of one file, or a piece of one tensor, that are read at once."""

    file: str
    start: int
    end: int
    names: list[str]


def check(checkpoint: CheckpointFiles, progress: Progress | None = None, threads: int = 4) -> CheckReport:
    Texts.from_dir(checkpoint.directory)
    specs = list(all_tensors(checkpoint.config))
    for spec in specs:
        _check_entry(checkpoint, spec)
    unused = _unused(checkpoint, specs)
    _check_values(checkpoint, specs, progress or (lambda done, total: None), threads)
    if unused:
        _logger.warning("%s: %d tensors are not used, the first is %s", checkpoint.directory, len(unused), unused[0])
    return CheckReport(len(specs), sum(end - start for _, start, end in checkpoint.ranges_read), unused)


def _check_entry(checkpoint: CheckpointFiles, spec: TensorSpec) -> None:
    info = checkpoint.info(spec.name)
    file = checkpoint.directory / info.file
    if info.shape != spec.shape:
        raise CheckpointError(
            file, spec.name, f"has shape {list(info.shape)}, must be {list(spec.shape)} by {CONFIG_FILE}"
        )
    if info.dtype not in spec.dtypes:
        raise CheckpointError(file, spec.name, f"has dtype {info.dtype}, must be {' or '.join(spec.dtypes)}")


def _unused(checkpoint: CheckpointFiles, specs: Iterable[TensorSpec]) -> tuple[str, ...]:
    """Layers behind the last one (multi-token prediction) are known and silently left alone."""
    unused = []
    for name in sorted(checkpoint.tensors.keys() - {spec.name for spec in specs}):
        layer = _NUMBERED_LAYER.match(name)
        if layer and int(layer[1]) >= checkpoint.config.num_layers:
            continue
        must = next((must for part, must in _FOREIGN_PARTS.items() if name.endswith(part)), None)
        if ".mlp.experts." in name and must is not None:
            file = checkpoint.directory / checkpoint.info(name).file
            raise CheckpointError(file, name, f"is not supported: experts must be symmetric INT4, {must}")
        unused.append(name)
    return tuple(unused)


def _check_values(checkpoint: CheckpointFiles, specs: Iterable[TensorSpec], progress: Progress, threads: int) -> None:
    shapes = [spec for spec in specs if spec.kind == "shape"]
    spans = _spans(checkpoint, [spec.name for spec in specs if spec.kind not in ("packed", "shape")])
    total = sum(span.end - span.start for span in spans)
    done = 0
    progress(done, total)
    buffers = threading.local()
    with ThreadPoolExecutor(threads) as pool:
        tasks = [
            pool.submit(_check_shapes, checkpoint, shapes[start : start + _SHAPES_PER_TASK])
            for start in range(0, len(shapes), _SHAPES_PER_TASK)
        ]
        tasks += [pool.submit(_check_sound, checkpoint, span, buffers) for span in spans]
        try:
            for task in as_completed(tasks):
                done += task.result()
                progress(done, total)
        except CheckpointError:
            pool.shutdown(cancel_futures=True)
            raise


def _spans(checkpoint: CheckpointFiles, names: Iterable[str]) -> list[_Span]:
    """Tensors that touch in the file share a span of at most the limit; larger ones are cut."""
    spans: list[_Span] = []
    for info, name in sorted(((checkpoint.info(name), name) for name in names), key=_position):
        last = spans[-1] if spans else None
        if last and last.file == info.file and last.end == info.start and info.end - last.start <= _SPAN_BYTES:
            last.end = info.end
            last.names.append(name)
        else:
            spans += _pieces(info, name)
    return spans


def _pieces(info: TensorInfo, name: str) -> list[_Span]:
    starts = range(info.start, info.end, _SPAN_BYTES)
    return [_Span(info.file, start, min(start + _SPAN_BYTES, info.end), [name]) for start in starts]


def _position(item: tuple[TensorInfo, str]) -> tuple[str, int, int]:
    return item[0].file, item[0].start, item[0].end


def _check_shapes(checkpoint: CheckpointFiles, specs: Iterable[TensorSpec]) -> int:
    for spec in specs:
        packed = checkpoint.info(spec.name.removesuffix("_shape") + "_packed")
        expected = [packed.shape[0], packed.shape[1] * CODES_PER_WORD]
        info = checkpoint.info(spec.name)
        content = bytearray(info.num_bytes)
        checkpoint.read_bytes(spec.name, info.start, memoryview(content))
        actual = np.frombuffer(content, dtype="<i4" if info.dtype == "I32" else "<i8").tolist()
        if actual != expected:
            raise CheckpointError(checkpoint.directory / info.file, spec.name, f"holds {actual}, must hold {expected}")
    return 0


def _check_sound(checkpoint: CheckpointFiles, span: _Span, buffers: threading.local) -> int:
    if not hasattr(buffers, "memory"):
        buffers.memory = memoryview(bytearray(_SPAN_BYTES))
    view = buffers.memory[: span.end - span.start]
    checkpoint.read_bytes(span.names[0], span.start, view)
    infos = [checkpoint.info(name) for name in span.names]
    if len({info.dtype for info in infos}) == 1 and _num_beyond(view, infos[0].dtype, _LIMIT_BITS) == 0:
        return len(view)
    for name, info in zip(span.names, infos, strict=True):
        mine = view[max(info.start - span.start, 0) : info.end - span.start]
        if _num_beyond(mine, info.dtype, _LIMIT_BITS):
            raise CheckpointError(checkpoint.directory / info.file, name, _unsound(checkpoint, name, info))
    return len(view)


def _unsound(checkpoint: CheckpointFiles, name: str, info: TensorInfo) -> str:
    if count := _count_all(checkpoint, name, info, _INFINITE_BITS):
        return f"{count} of its values are not finite (NaN or infinite)"
    count = _count_all(checkpoint, name, info, _LIMIT_BITS)
    return f"{count} of its values are beyond ±{1 << _LIMIT_BITS}, as no weight is; the file is damaged, fetch it again"


def _count_all(checkpoint: CheckpointFiles, name: str, info: TensorInfo, limit_bits: int) -> int:
    """In all of a tensor, of which a span may hold a piece."""
    count = 0
    for piece in _pieces(info, name):
        content = memoryview(bytearray(piece.end - piece.start))
        checkpoint.read_bytes(name, piece.start, content)
        count += _num_beyond(content, info.dtype, limit_bits)
    return count


def _num_beyond(content: memoryview, dtype: str, limit_bits: int) -> int:
    """Values of at least 2 to the power of ``limit_bits``, either sign; infinities and NaNs have the largest exponent."""
    kind, mask, shift = ("<u2", 0x7FFF, 7) if dtype == "BF16" else ("<u4", 0x7FFFFFFF, 23)
    bits = np.frombuffer(content, dtype=kind)
    return int(np.count_nonzero((bits & bits.dtype.type(mask)) >= bits.dtype.type((127 + limit_bits) << shift)))
