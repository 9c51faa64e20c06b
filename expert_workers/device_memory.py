"""How much memory a shard may take where its experts will lie: the host's, or that of a GPU.

Knows nothing of experts.
"""

import torch

from ..kernels.triton_layer import check_device
from .memory import available_memory


def available_on(device: str) -> int:
    """Bytes. Raises KernelError for a GPU that there is not."""
    return available_memory() if device == "cpu" else _free_of_gpu(device)


def _free_of_gpu(device: str) -> int:
    check_device(device)
    free, _ = torch.cuda.mem_get_info(device)
    return free
