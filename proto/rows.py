"""Rows of values on their way: a tensor, or bytes of a frame or of shared memory; neither is made of the other before it is wanted.

Knows nothing of frames. Between two layers the caches are swept by the experts' weights, and a first look at bytes as a tensor then
takes longer than to send them.
"""

import ctypes
import mmap
import warnings

import numpy as np
import torch

from .frame_prefix import Buffer

_SMALL_BYTES = 128 << 10  # are zeroed, and copied, sooner than a tensor is made or looked at


class Rows:
    """[count, width] values of one dtype, one after the other. What they lie in is kept as long as they are."""

    __slots__ = ("_at", "_memory", "_tensor", "count", "dtype", "nbytes", "row_bytes", "width")

    def __init__(
        self, count: int, width: int, dtype: torch.dtype, memory: "Buffer | mmap.mmap | torch.Tensor", at: int = 0
    ) -> None:
        """In a contiguous tensor of just that shape, or from byte ``at`` of a buffer on."""
        self.count, self.width, self.dtype = count, width, dtype
        self.row_bytes = width * dtype.itemsize
        self.nbytes = count * self.row_bytes
        self._memory, self._at = memory, at
        self._tensor = memory if isinstance(memory, torch.Tensor) else None
        assert self._tensor is not None or 0 <= at <= len(memory) - self.nbytes, (
            f"{self!r} at {at} of {len(memory)} bytes"
        )

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Rows":
        assert tensor.is_contiguous(), tensor.stride()
        count, width = tensor.shape
        return cls(count, width, tensor.dtype, tensor)

    @classmethod
    def new(cls, count: int, width: int, dtype: torch.dtype) -> "Rows":
        """To be written by somebody."""
        num_bytes = count * width * dtype.itemsize
        if num_bytes <= _SMALL_BYTES:
            return cls(count, width, dtype, bytearray(num_bytes))
        return cls.of(torch.empty(count, width, dtype=dtype))

    @property
    def tensor(self) -> torch.Tensor:
        """A view of them."""
        if self._tensor is None:
            flat = torch.frombuffer(self._memory, dtype=self.dtype, count=self.count * self.width, offset=self._at)
            self._tensor = flat.view(self.count, self.width)
        return self._tensor

    @property
    def address(self) -> int:
        """Where they lie on this machine."""
        memory = self._memory
        return memory.data_ptr() if isinstance(memory, torch.Tensor) else address_of(memory) + self._at

    def data(self) -> Buffer:
        """Their bytes; many are not copied, nor is memory that has nothing else: whoever keeps a few shall not keep all of it."""
        if isinstance(self._memory, torch.Tensor):
            return _tensor_bytes(self._memory)
        inside = memoryview(self._memory)[self._at : self._at + self.nbytes]
        is_all = self.nbytes == len(self._memory)
        return inside if is_all or self.nbytes > _SMALL_BYTES else bytes(inside)

    def copy(self, rows: "Rows") -> None:
        """As many others of the same width and dtype take their place."""
        assert (rows.count, rows.width, rows.dtype) == (self.count, self.width, self.dtype), f"{rows!r} for {self!r}"
        assert not isinstance(self._memory, bytes), "bytes are not written to"
        ctypes.memmove(self.address, rows.address, self.nbytes)

    def __repr__(self) -> str:
        return f"Rows({self.count}, {self.width}, {self.dtype})"

    def part(self, first: int, count: int) -> "Rows":
        """``count`` of them, from the ``first`` on."""
        assert 0 <= first <= self.count - count, f"{count} from {first} on of {self!r}"
        if count == self.count:
            return self
        if isinstance(self._memory, torch.Tensor):
            return Rows.of(self._memory[first : first + count])
        return Rows(count, self.width, self.dtype, self._memory, self._at + first * self.row_bytes)


def address_of(memory: Buffer | mmap.mmap) -> int:
    """Where its first byte lies on this machine; whoever asks keeps it."""
    if isinstance(memory, bytes) or (isinstance(memory, memoryview) and memory.readonly):
        return int(np.frombuffer(memory, np.uint8).ctypes.data)
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _tensor_bytes(tensor: torch.Tensor) -> Buffer:
    if tensor.nbytes <= _SMALL_BYTES:
        return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    return tensor.view(torch.uint8).numpy().reshape(-1).data


def _accept_read_only_buffers() -> None:
    """torch warns once per process that a view of ``bytes`` is not writable; nobody writes to a frame."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(b"\0", dtype=torch.uint8)


_accept_read_only_buffers()
