"""From surviving weights to lists: for each output the places it reads, for each input the places it is read by."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Lists(NamedTuple):
    """The lists of a product's rows, one block of inputs at a time.

    starts: int64 (blocks * rows + 1,); offsets: int64 (entries,), vectors from a row's first place of input to the one
    read; order: int64 (entries,), which survivor each entry is, of those that the lists were made from.
    """

    blocks: int
    rows: int
    starts: Tensor
    offsets: Tensor
    order: Tensor


def lists_of(rows: Tensor, offsets: Tensor, count: int, block: Tensor, blocks: int) -> Lists:
    """Sort survivors into lists: by block of inputs, then by row, then by offset.

    rows, offsets, block: int64 (survivors,), each survivor's output row, input offset and block of inputs.
    """
    order = torch.argsort(offsets, stable=True)
    order = order[torch.argsort((block * count + rows)[order], stable=True)]
    lengths = torch.bincount((block * count + rows)[order], minlength=blocks * count)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Lists(blocks, count, starts, offsets[order], order)


#: Bytes of inputs that a block may span, so that it stays in a first-level cache of 32 kB beside lists and sums.
_BLOCK_BYTES = 24 * 1024
#: Survivors that a row should find in a block: fewer, and loading and storing its sums costs more than it gains.
_LEAST_ENTRIES = 16


def block_size(inputs: int, bytes_each: int, entries_each: float) -> int:
    """Inputs to take at a time: as many as a first-level cache holds, unless rows find too few survivors in them.

    bytes_each: what an input's places take; entries_each: survivors that a row has in one input, on average.
    """
    fitting = max(1, _BLOCK_BYTES // bytes_each)
    enough = int(_LEAST_ENTRIES / max(entries_each, 1e-9)) + 1
    size = max(fitting, enough)
    blocks = -(-inputs // size)
    return -(-inputs // blocks)
