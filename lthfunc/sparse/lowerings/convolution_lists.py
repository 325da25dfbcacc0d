"""What a convolution's weights read: of its images, and of its outputs where images are made of them.

A convolution's rows are its outputs' channels, and read the image; its input gradient's rows are the image's channels,
and read the outputs' gradients. A transposed convolution is that input gradient, so it takes the same lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.sparse.kernels.instructions import CONSTANTS
from lthfunc.sparse.lowerings.product import EntriesOf, Product
from lthfunc.sparse.lowerings.strides import NEAR_BYTES, ConvolutionAxis, StridedRegion, plain
from lthfunc.sparse.patterns import Blocks, Entries, blocks_of
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, TileBuffer

STRETCH, _MAX_MISSING = CONSTANTS["STRETCH"], CONSTANTS["MAX_MISSING"]
#: Share of a product's entries and positions that lie inside the image, from which windows gain nothing; and survivors
#: that a row should find in one kernel column's list before the channels are taken in parts.
_INSIDE, _LEAST_IN_LIST = 0.75, 12
#: Places of a row below which a list's kernel has too few sums.
_FEW = 8


class ConvolutionLists:
    """The lists of a weight (outputs, inputs of a group, kernel height, kernel width).

    sides: from the image down and to the right. groups: of channels, each with weights of its own.
    """

    def __init__(self, shape: Sequence[int], sides: tuple[ConvolutionAxis, ConvolutionAxis], groups: int) -> None:
        self.outs, self.ins, *self.kernel = shape
        self.sides, self.groups = sides, groups
        self.stride = sides[0].stride, sides[1].stride
        self.padding = sides[0].padding, sides[1].padding
        self._windows = _windows(sides) if self.stride == (1, 1) else None

    def _split(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        each = self.kernel[0] * self.kernel[1]
        row, rest = positions // (self.ins * each), positions % (self.ins * each)
        channel, position = rest // each, rest % each
        return row, channel, position // self.kernel[1], position % self.kernel[1]

    @property
    def windowed(self) -> bool:
        """Whether the product of the image's channels leaves out what is outside."""
        return self._windows is not None

    @property
    def keeps_size(self) -> bool:
        """Whether outputs are as many as the image has places, and reach as far around each, also for gradients."""
        reaches = {each for side in self.sides for each in (side.padding, side.reach)}
        return len(reaches) == 1 and all(side.stride == 1 and side.out == side.size for side in self.sides)

    @property
    def inside(self) -> float:
        """The share of its work that the product of the image's channels does, leaving out what is outside."""
        # For few positions lists are slow, whatever they leave out.
        return self._windows.inside if self._windows is not None and self.sides[1].size >= _FEW else 1.0

    def reads(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What weights read, by where they lie in the flattened leaf: each one's row, the image's channel, and how many
        rows and columns behind the first place that is read."""
        row, channel, ky, kx = self._split(positions)
        down, right = self.sides
        channel = row // (self.outs // self.groups) * self.ins + channel
        return row, channel, ky * down.dilation, kx * right.dilation

    def of_image(self, image: TileBuffer, outputs: TileBuffer) -> Product:
        """The product that reads the image, which must have a halo of the padding."""

        def entries(positions: Tensor) -> tuple[Entries, Blocks | None]:
            row, channel, rows, columns = self.reads(positions)
            right = self.sides[1]
            inputs = channel * image.channel + rows * image.row + columns
            width = min(right.out, STRETCH) * right.stride + (self.kernel[1] - 1) * right.dilation
            blocks = blocks_of(channel % self.ins, self.ins, self.outs, self.kernel[0] * width * VECTOR_BYTES)
            return Entries(self.outs, row, inputs), blocks

        return Product(self.padded(image), plain(outputs), entries)

    def padded(self, image: TileBuffer) -> StridedRegion:
        """The places of the image that its products begin to read at."""
        down, right = self.sides
        return StridedRegion(image, self.padding, self.stride, (down.out, right.out))

    def of_outputs(self, outputs: TileBuffer, image: TileBuffer) -> list[Product]:
        """The products that read outputs (with a halo of the sides' reach) and write the image between them: a stride
        divides its positions into phases, each with weights of its own."""
        down, right = self.sides
        phases = [(a, c) for a in range(min(down.stride, down.size)) for c in range(min(right.stride, right.size))]
        return [
            Product(plain(outputs), StridedRegion(
                image, (-phase[0], -phase[1]), self.stride,
                tuple(-(-(side.size - first) // side.stride) for side, first in zip(self.sides, phase, strict=True)),
            ), self._of_phase(phase, outputs), self.inside)
            for phase in phases
        ]  # fmt: skip

    def _of_phase(self, phase: tuple[int, int], outputs: TileBuffer) -> EntriesOf:
        """Of the image's positions at this distance from a multiple of the stride."""
        outs, ins, groups, kernel, stride = self.outs, self.ins, self.groups, self.kernel, self.stride

        def entries(positions: Tensor) -> tuple[Entries, Blocks | None]:
            row, channel, ky, kx = self._split(positions)
            steps = [
                a + side.padding - k * side.dilation for a, side, k in zip(phase, self.sides, (ky, kx), strict=True)
            ]
            mine = ((steps[0] % stride[0] == 0) & (steps[1] % stride[1] == 0)).nonzero().flatten()
            row, channel, ky, kx = row[mine], channel[mine], ky[mine], kx[mine]
            up = steps[0][mine] // stride[0]
            reads = row * outputs.channel + up * outputs.row + steps[1][mine] // stride[1]
            width = (min(self.sides[1].out, STRETCH) + kernel[1] - 1) * VECTOR_BYTES
            inputs, in_group = row // (outs // groups) * ins + channel, row % (outs // groups)
            blocks: Blocks | None
            if self._windows is not None:
                parts = -(-(outs // groups) // max(1, NEAR_BYTES // (kernel[0] * width)))
                if len(mine) < _LEAST_IN_LIST * parts * kernel[1] * ins * groups:
                    parts = 1
                number = (in_group * parts // (outs // groups) * kernel[1] + kx) * kernel[0] + ky
                blocks = Blocks(parts * kernel[0] * kernel[1], number, self._windows.limits, kernel[0], kernel[1])
            else:
                blocks = blocks_of(in_group, outs // groups, ins * groups, kernel[0] * width)
            return Entries(ins * groups, inputs, reads, mine), blocks

        return entries


class _Windows(NamedTuple):
    """For each kernel column and then each kernel row the positions (from, to) inside the image; their share of all."""

    limits: Tensor
    inside: float


def _windows(sides: tuple[ConvolutionAxis, ConvolutionAxis]) -> _Windows | None:
    """Where a convolution's gradient lies inside the image, if leaving out the rest pays."""
    limits, inside = [], 1.0
    for side in reversed(sides):
        steps = [side.padding - k * side.dilation for k in range(side.kernel)]
        each = [(max(0, -step), max(0, -step, min(side.size, side.out - step))) for step in steps]
        if side is sides[1] and any(first + side.size - last > _MAX_MISSING for first, last in each):
            return None
        limits += each
        inside *= sum(last - first for first, last in each) / (side.kernel * side.size)
    return None if inside > _INSIDE else _Windows(torch.tensor(limits), inside)
