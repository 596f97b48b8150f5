"""Memory for tensors that live for a step or two: reused, so that pages are not faulted in again and again.

A big tensor's memory goes back to its shelf by itself when the last tensor that uses it is gone, whoever held it; so
nothing is ever given out twice, and nobody has to say that he is done. Blocks are private anonymous mappings that ask
for huge pages: copying into reused memory is about five times faster than into fresh memory, and the sockets of a
killed process close sooner (the kernel frees memory first).
"""

import functools
import math
import mmap
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

POOLED_FROM = 1 << 20  # bytes; smaller tensors come from torch's own allocator (64-byte aligned on the CPU)
KEPT_PER_SIZE = 64  # free blocks of one size
_GRAIN = 1 << 20
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)


class Shelf:
    """Free blocks by size."""

    def __init__(self, kept_per_size: int = KEPT_PER_SIZE) -> None:
        self._kept = kept_per_size
        self._free: dict[int, list[mmap.mmap]] = {}

    def empty(self, shape: int | Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised, contiguous CPU tensor, aligned to 64 bytes or better."""
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        count = math.prod(sizes)
        wanted = count * dtype.itemsize
        if wanted < POOLED_FROM:
            return torch.empty(sizes, dtype=dtype)
        size = -(-wanted // _GRAIN) * _GRAIN
        free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:
            block = _map(size)
        array = np.frombuffer(block, dtype=np.uint8)
        weakref.finalize(array, self._take_back, size, block).atexit = False
        return torch.from_numpy(array)[:wanted].view(dtype).view(sizes)

    def _take_back(self, size: int, block: mmap.mmap) -> None:
        free = self._free[size]
        if len(free) < self._kept:
            free.append(block)


def empty(shape: int | Sequence[int], dtype: torch.dtype) -> Tensor:
    """As :meth:`Shelf.empty`, from the process's own shelf."""
    return _shelf().empty(shape, dtype)


@functools.cache
def _shelf() -> Shelf:
    return Shelf()


def _map(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _HUGE is not None:
        try:
            block.madvise(_HUGE)
        except OSError:
            pass  # a kernel without them
    return block
