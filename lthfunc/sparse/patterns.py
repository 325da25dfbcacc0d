"""From surviving weights to lists: for each output the inputs it reads, for each input the outputs that read it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.sparse.kernels.build import load_kernels
from lthfunc.sparse.tile_buffers import VECTOR_BYTES


class Entries(NamedTuple):
    """The survivors that a product's rows read, in the order of the leaf.

    outputs: rows of the product. rows, inputs: int64 (entries,), each entry's row and the vectors from the row's first
    place of input to the one that it reads. which: the survivor's number among all of the leaf, or None where all take
    part in turn.
    """

    outputs: int
    rows: Tensor
    inputs: Tensor
    which: Tensor | None = None


class Blocks(NamedTuple):
    """Entries in blocks that are walked one after the other, so that what a block reads stays in a near cache.

    number: int64 (entries,), each entry's block. limits: int64 (kernel_x + kernel_y, 2), the outputs (from, to)
    that the entries of each kernel column and of each kernel row add to, where blocks are columns and rows of a kernel.
    """

    total: int
    number: Tensor
    limits: Tensor | None = None
    kernel_y: int = 0
    kernel_x: int = 0


class Lists(NamedTuple):
    """The lists of a product's rows, row after row, and in a row block after block.

    starts: int64 (rows * blocks + 1,); offsets: int64 (entries,), in bytes; which: int64 (entries,), or None for
    0, 1, 2 … Or all of them int32.
    """

    rows: int
    blocks: int
    starts: Tensor
    offsets: Tensor
    which: Tensor | None


def lists_of(entries: Entries, blocks: Blocks | None) -> Lists:
    """Sort entries into lists: by row, then by block, then by what they read."""
    each = blocks.total if blocks is not None else 1
    key = entries.rows if blocks is None else entries.rows * each + blocks.number
    lengths = torch.bincount(key, minlength=entries.outputs * each)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    inputs, which = entries.inputs, entries.which
    if which is not None:  # otherwise a leaf's own order is that of its rows, and of its inputs in each
        order = torch.argsort(inputs, stable=True)
        order = order[torch.argsort(key[order], stable=True)]
        inputs, which = inputs[order], which[order]
    return Lists(entries.outputs, each, starts, inputs * VECTOR_BYTES, which)


class MatrixLists(NamedTuple):
    """`lists_of` as many survivors of a matrix, or of its transpose, by the kernels, wherever they lie.

    shape: of the matrix. addresses: int64, vectors to each column's input, or to each row's. block: how many of these a
    block has. survivors: their number.
    """

    shape: tuple[int, int]
    transposed: bool
    addresses: Tensor
    block: int
    survivors: int

    @property
    def rows(self) -> int:
        """Of the product."""
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def blocks(self) -> int:
        """Of each row."""
        return -(-len(self.addresses) // self.block)

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Of `starts`, `offsets` and `which`."""
        return self.rows * self.blocks + 1, self.survivors, self.survivors if self.transposed else 0

    def write(self, positions: Tensor, into: Tensor) -> Tensor:
        """Write all three, one after the other. positions: int64 (survivors,), rising, in the flattened matrix. into:
        int32, of their lengths together, which is returned."""
        if not len(positions):  # as where it is only looked at whether a network can be lowered: no kernels are built
            return into.zero_()
        load_kernels()
        torch.ops.lthfunc.matrix_lists.default(
            positions, *self.shape, self.transposed, self.addresses, self.block, into
        )
        return into


def matrix_lists(
    shape: tuple[int, ...], addresses: Tensor, bytes_each: int, survivors: int, *, transposed: bool
) -> MatrixLists:
    """The lists of a matrix. bytes_each: what an input takes; all else as `MatrixLists` has it."""
    rows, columns = shape
    size = block_size(len(addresses), bytes_each, survivors / max(1, rows * columns))
    return MatrixLists((rows, columns), transposed, addresses, size, survivors)


#: Bytes of inputs that a block may span, so that it stays in a first-level cache of 32 kB beside lists and sums.
_BLOCK_BYTES = 24 * 1024
#: Survivors that a row should find in a block: fewer, and loading and storing its sums costs more than it gains.
_LEAST_ENTRIES = 16


def blocks_of(inputs: Tensor, count: int, rows: int, bytes_each: int) -> Blocks | None:
    """Blocks of inputs by their number, or None where one block is best. The rest as in `block_size`."""
    size = block_size(count, bytes_each, len(inputs) / max(1, count * rows))
    blocks = -(-count // size)
    return Blocks(blocks, inputs // size) if blocks > 1 else None


def block_size(inputs: int, bytes_each: int, entries_each: float) -> int:
    """Inputs to take at a time: as many as a first-level cache holds, unless rows find too few survivors in them.

    bytes_each: what an input's positions take; entries_each: survivors that a row has in one input, on average.
    """
    fitting = max(1, _BLOCK_BYTES // bytes_each)
    enough = int(_LEAST_ENTRIES / max(entries_each, 1e-9)) + 1
    size = max(fitting, enough)
    blocks = -(-inputs // size)
    return -(-inputs // blocks)
