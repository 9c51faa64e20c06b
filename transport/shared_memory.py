"""Memory that both ends of a local lane map: rows lie there and results are written there, so that no socket copies them.

Knows nothing of frames. The attention worker's end makes it, decides what lies where and tells the shard, which only maps it. It is
a file without a name, far larger than what is ever used of it: only pages that were written take memory. Nobody can
shrink it once it is made, so a mapped page never vanishes under a reader.
"""

import fcntl
import mmap
import os
from bisect import insort

import torch

from ..proto.errors import Code, FleetError
from ..proto.rows import Rows, address_of

ALIGNMENT = 64
_SIZE = 1 << 36
_LEAST_SIZE = 1 << 32  # where an address space is limited
KEPT_BYTES = 64 << 20  # beyond them nothing stays that is not used


def aligned(num_bytes: int) -> int:
    """As many, or as few more as end at a place where rows may begin."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


class SharedMemory:
    def __init__(self, file: int, size: int) -> None:
        """Maps ``size`` bytes of ``file``, which the caller keeps and may close."""
        self.memory: mmap.mmap | None = mmap.mmap(file, size)  # None once this is closed; goes with whoever has it last
        self.size = size

    @classmethod
    def received(cls, file: int) -> "SharedMemory":
        """Raises FleetError BAD_FRAME for a file that could shrink or is none."""
        try:
            sealed = fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            if not sealed:
                raise FleetError(Code.BAD_FRAME, "the shared memory could shrink: it is not sealed against that")
            return cls(file, os.fstat(file).st_size)
        except (OSError, ValueError) as error:
            raise FleetError(Code.BAD_FRAME, f"the shared memory cannot be mapped: {error}") from error

    @property
    def address(self) -> int:
        """Where it begins in this process. Raises FleetError LANE_LOST once this is closed."""
        if self.memory is None:
            raise FleetError(Code.LANE_LOST, "the shared memory is closed")
        return address_of(self.memory)

    def rows(self, offset: int, dtype: torch.dtype, count: int, width: int, alignment: int = ALIGNMENT) -> Rows:
        """A view. Raises FleetError BAD_FRAME for what does not lie inside, LANE_LOST once this is closed."""
        if offset < 0 or offset % alignment or offset + count * width * dtype.itemsize > self.size:
            what = f"{count * width} values of {dtype} at {offset}"
            raise FleetError(Code.BAD_FRAME, f"{what} do not lie in the {self.size} bytes of shared memory")
        if self.memory is None:
            raise FleetError(Code.LANE_LOST, "the shared memory is closed")
        return Rows(count, width, dtype, self.memory, offset)

    def put(self, offset: int, rows: Rows) -> None:
        """Copies rows to a place inside. Raises FleetError LANE_LOST once this is closed."""
        self.rows(offset, rows.dtype, rows.count, rows.width, rows.dtype.itemsize).copy(rows)

    def close(self) -> None:
        """The memory goes with its last view, at either end; it does not wait for a garbage collection."""
        self.memory = None


class Arena(SharedMemory):
    """Hands out areas, each the first that is free, so that what was touched is used again."""

    def __init__(self) -> None:
        self.file = os.memfd_create("expertfleet-lane", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            super().__init__(self.file, self._stretch())
        except BaseException:
            os.close(self.file)
            raise
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._areas: list[tuple[int, int]] = []  # begin and end, sorted
        self._touched = 0

    def allocate(self, num_bytes: int) -> int:
        """Where ``num_bytes`` may lie. Raises FleetError OVERLOADED when there is no room."""
        num_bytes = aligned(num_bytes)
        begin = 0
        for taken, end in self._areas:
            if taken - begin >= num_bytes:
                break
            begin = end
        if begin + num_bytes > self.size:
            raise FleetError(Code.OVERLOADED, f"no {num_bytes} bytes are free in {self.size} of shared memory")
        insort(self._areas, (begin, begin + num_bytes))
        self._touched = max(self._touched, begin + num_bytes)
        return begin

    def free(self, begin: int) -> None:
        index = next(index for index, area in enumerate(self._areas) if area[0] == begin)
        del self._areas[index]
        is_low = not self._areas or self._areas[-1][1] <= KEPT_BYTES
        if is_low and self._touched > KEPT_BYTES and self.memory is not None:
            length = -(-self._touched // mmap.PAGESIZE) * mmap.PAGESIZE - KEPT_BYTES
            self.memory.madvise(mmap.MADV_REMOVE, KEPT_BYTES, length)  # a burst's pages go back to the system
            self._touched = KEPT_BYTES

    def close(self) -> None:
        super().close()
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    def _stretch(self) -> int:
        size = _SIZE
        while True:
            try:
                os.ftruncate(self.file, size)
                mmap.mmap(self.file, size).close()
            except (OSError, ValueError):
                if size <= _LEAST_SIZE:
                    raise
                size //= 4
            else:
                return size
