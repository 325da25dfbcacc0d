"""Memory that shows whether something was written beside it."""

from __future__ import annotations

import os

import torch

#: Numbers around each memory that nothing may change. The sanitizer sees more where memory ends with its numbers.
GUARD = 0 if os.environ.get("LTHFUNC_SANITIZE") else 4096


class Room:
    """Memory of exactly so many numbers, and what lies around it."""

    def __init__(self, count: int, value: float = 0.5, dtype: torch.dtype = torch.float32) -> None:
        self._whole = torch.full((count + 2 * GUARD,), 77.0, dtype=dtype)
        self.inside = self._whole[GUARD : GUARD + count]
        self.inside.fill_(value)

    def is_whole(self) -> bool:
        """Whether nothing was written beside it."""
        return bool((torch.cat([self._whole[:GUARD], self._whole[GUARD + len(self.inside) :]]) == 77.0).all())
