"""Memory in large pages, since a step touches all of its own several times."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

#: Bytes from which memory is asked for in large pages, and of such a page on most processors.
_LARGE, _PAGE = 8 << 20, 2 << 20


def zeros(count: int) -> Tensor:
    """float32 (count,), zeros. Large memory is in pages of 2 MB where the system has them: with those of 4 kB, a
    processor looks up addresses in tables in memory again and again.
    """
    size = 4 * count
    if size < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(count, dtype=torch.float32)
    try:
        memory = mmap.mmap(-1, size + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without large pages
        return torch.zeros(count, dtype=torch.float32)
    return torch.frombuffer(memory, dtype=torch.float32, count=count)
