"""How numbers lie in a compiled loop's memory, on each type of device: what `lthfunc benchmark training` decides."""

from __future__ import annotations

from collections.abc import Mapping
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


#: A CPU's are measured. A GPU's are a CPU's until `lthfunc benchmark training --device cuda`, which times the others
#: beside them, has shown better ones.
MEMORY_FORMATS: Mapping[str, MemoryFormats] = {"cpu": MemoryFormats(), "cuda": MemoryFormats()}


def formats_on(device: torch.device, formats_by_device: Mapping[str, MemoryFormats] = MEMORY_FORMATS) -> MemoryFormats:
    """Of a device; a CPU's for those of other kinds."""
    return formats_by_device.get(device.type, formats_by_device["cpu"])
