"""How numbers lie in a compiled loop's memory.

On a CPU the defaults were measured; on a GPU `lthfunc benchmark training --device cuda` times the others beside them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MemoryFormats(NamedTuple):
    """floating_masks: whether a loop holds masks as floats, else as bools. channels_last: whether images of a single
    network lie channels last; vmapped convolutions are grouped, and run faster on plain ones."""

    floating_masks: bool = True
    channels_last: bool = True

    def of(self, leaf: Tensor, width: int) -> torch.memory_format:
        """The memory format of a leaf of `width` vmapped networks."""
        last = self.channels_last and width == 1 and leaf.ndim == 4
        return torch.channels_last if last else torch.contiguous_format


MEMORY_FORMATS = MemoryFormats()
