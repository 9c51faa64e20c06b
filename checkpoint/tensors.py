"""A checkpoint's tensors as torch tensors with memory of their own, read by byte range without a copy between.

Knows nothing of what a tensor is for; the files are ``files.py``'s. May be used from many threads.
"""

import torch

from .errors import CheckpointError
from .files import CheckpointFiles

TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I32": torch.int32,
    "I64": torch.int64,
}


class Checkpoint(CheckpointFiles):
    def read(self, name: str, folder: int | None = None) -> torch.Tensor:
        """From the first folder that can give it, or from one alone."""
        info = self.info(name)
        if info.dtype not in TORCH_DTYPES:
            problem = f"dtype {info.dtype} cannot be read (must be one of {', '.join(TORCH_DTYPES)})"
            raise CheckpointError(self.directory / info.file, name, problem)
        tensor = torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype])
        self.read_into(name, tensor, folder)
        return tensor

    def read_into(self, name: str, tensor: torch.Tensor, folder: int | None = None) -> None:
        """Fills a contiguous CPU tensor of the stored shape and dtype."""
        info = self.info(name)
        expected = (info.shape, TORCH_DTYPES.get(info.dtype), True, "cpu")
        actual = (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous(), tensor.device.type)
        assert actual == expected, f"{name}: destination is {actual}, must be {expected}"
        if tensor.numel():
            self.read_bytes(name, info.start, tensor.reshape(-1).view(torch.uint8).numpy().data, folder)
