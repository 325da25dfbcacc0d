"""Convolutions and linear layers: lists of surviving weights, and the same lists transposed for the gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder, Operation, Value, View, Weights
from lthfunc.sparse.kernels.instructions import CONSTANTS
from lthfunc.sparse.lowerings.interface import Param, Unsupported, argument, aten, lowers, pair
from lthfunc.sparse.lowerings.product import EntriesOf, Product, ProductLowering
from lthfunc.sparse.lowerings.strides import ConvolutionAxis, StridedRegion, flat, plain
from lthfunc.sparse.patterns import Blocks, Entries, Lists, blocks_of, matrix_lists
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, TileBuffer

#: What two rows of pooled outputs may read together: a little more than a first-level cache.
_NEAR_BYTES = 40 * 1024
_STRETCH, _TILES_AT_ONCE, _MAX_MISSING = (CONSTANTS[name] for name in ("STRETCH", "TILES_AT_ONCE", "MAX_MISSING"))
#: Share of a product's entries and positions that lie inside the image, from which windows gain nothing; and survivors
#: that a row should find in one kernel column's list before the channels are taken in parts.
_INSIDE, _LEAST_IN_LIST = 0.75, 12
#: Places of a row below which a list's kernel has too few sums.
_FEW = 8


@lowers(aten.linear.default)
def linear(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """``x @ weight.T + bias`` on flattened values."""
    view, weight, bias = args[0], args[1], argument(args, 2, None)
    shape = _weights(b, weight, bias).shape
    if view.shape != (shape[1],):
        raise Unsupported("on more than one dimension of features")
    out = Value(TileBuffer(shape[0], 1, 1), needs=True)
    across = min(b.tiles, _TILES_AT_ONCE)
    product = ProductLowering(b, weight, bias, across, positions=1)

    def emit(operation: Operation) -> None:
        source = operation.inputs[0].buffer

        def reading(read: TileBuffer, into: TileBuffer, *, transposed: bool) -> Product:
            def lists_of(positions: Tensor) -> Lists:
                each = across * VECTOR_BYTES
                return matrix_lists(positions, shape, read.addresses(), each, transposed=transposed)

            return Product(flat(read), flat(into), lists_of=lists_of)

        back = reading(out.buffer, source, transposed=True)
        product.emit(operation, reading(source, out.buffer, transposed=False), [back])

    b.operations.append(Operation([view.value], out, emit, accepts=product.accepts))
    return View(out, flat=True)


@lowers(aten.conv2d.default, aten.conv2d.padding)
def convolution(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """conv2d with stride, padding, dilation and groups."""
    view, weight, bias = args[0], args[1], argument(args, 2, None)
    stride, dilation = pair(argument(args, 3, 1)), pair(argument(args, 5, 1))
    groups = int(argument(args, 6, 1))
    outs, ins, *kernel = _weights(b, weight, bias).shape
    if view.flat:
        raise Unsupported("on flattened values")
    padding = _padding(argument(args, 4, 0), kernel, dilation)
    height, width = size_in = view.shape[1:]
    sides = [
        ConvolutionAxis(size, k, s, p, d)
        for size, k, s, p, d in zip(size_in, kernel, stride, padding, dilation, strict=True)
    ]
    down, right = sides
    if down.out < 1 or right.out < 1:
        raise Unsupported("whose kernel is larger than its padded input")
    out = Value(TileBuffer(outs, down.out, right.out), needs=True)
    # Two rows of outputs at once should find what they read in a near cache.
    near = ins * (kernel[0] + stride[0]) * (min(right.out, _STRETCH) + kernel[1]) * VECTOR_BYTES <= _NEAR_BYTES
    product = ProductLowering(
        b, weight, bias, across=0, positions=down.out * right.out, grouped=groups > 1, poolable=near
    )

    def split(positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        row, rest = positions // (ins * kernel[0] * kernel[1]), positions % (ins * kernel[0] * kernel[1])
        channel, position = rest // (kernel[0] * kernel[1]), rest % (kernel[0] * kernel[1])
        return row, channel, position // kernel[1], position % kernel[1]

    windows = _windows(sides) if stride == (1, 1) else None

    def backward(phase: tuple[int, int]) -> EntriesOf:
        """Of the input's positions at this distance from a multiple of the stride."""

        def entries(positions: Tensor) -> tuple[Entries, Blocks | None]:
            row, channel, ky, kx = split(positions)
            steps = [a + side.padding - k * side.dilation for a, side, k in zip(phase, sides, (ky, kx), strict=True)]
            mine = ((steps[0] % stride[0] == 0) & (steps[1] % stride[1] == 0)).nonzero().flatten()
            row, channel, ky, kx = row[mine], channel[mine], ky[mine], kx[mine]
            up = steps[0][mine] // stride[0]
            buffer = out.buffer
            reads = row * buffer.channel + up * buffer.row + steps[1][mine] // stride[1]
            width = (min(right.out, _STRETCH) + kernel[1] - 1) * VECTOR_BYTES
            inputs, in_group = row // (outs // groups) * ins + channel, row % (outs // groups)
            blocks: Blocks | None
            if windows is not None:
                parts = -(-(outs // groups) // max(1, _NEAR_BYTES // (kernel[0] * width)))
                if len(mine) < _LEAST_IN_LIST * parts * kernel[1] * ins * groups:
                    parts = 1
                number = (in_group * parts // (outs // groups) * kernel[1] + kx) * kernel[0] + ky
                blocks = Blocks(parts * kernel[0] * kernel[1], number, windows.limits, *kernel)
            else:
                blocks = blocks_of(in_group, outs // groups, ins * groups, kernel[0] * width)
            return Entries(ins * groups, inputs, reads, mine), blocks

        return entries

    # A stride divides the input's positions into phases, each with its own weights; each phase is a product.
    phases = [(a, c) for a in range(min(stride[0], height)) for c in range(min(stride[1], width))]
    # For few positions lists are slow, whatever they leave out.
    inside = windows.inside if windows is not None and right.size >= _FEW else 1.0

    def emit(operation: Operation) -> None:
        source = operation.inputs[0].buffer
        source.halo = max(source.halo, *padding)
        if operation.inputs[0].needs:
            out.buffer.halo = max(side.reach for side in sides)

        def forward(positions: Tensor) -> tuple[Entries, Blocks | None]:
            row, channel, ky, kx = split(positions)
            inputs = (row // (outs // groups) * ins + channel) * source.channel
            inputs = inputs + ky * dilation[0] * source.row + kx * dilation[1]
            width = min(right.out, _STRETCH) * stride[1] + (kernel[1] - 1) * dilation[1]
            return Entries(outs, row, inputs), blocks_of(channel, ins, outs, kernel[0] * width * VECTOR_BYTES)

        back = [
            Product(plain(out.buffer), StridedRegion(
                source, (-phase[0], -phase[1]), stride,
                tuple(-(-(size - first) // step) for size, first, step in zip(size_in, phase, stride, strict=True)),
            ), backward(phase), inside)
            for phase in phases
        ]  # fmt: skip
        padded = StridedRegion(source, padding, stride, (down.out, right.out))
        product.emit(operation, Product(padded, plain(out.buffer), forward), back)

    b.operations.append(Operation([view.value], out, emit, accepts=product.accepts))
    return View(out)


def _weights(b: Builder, weight: Any, bias: Any) -> Weights:
    if not isinstance(weight, Param) or not (bias is None or isinstance(bias, Param)):
        raise Unsupported("with weights that are no parameters of their own")
    return b.weights[weight.name]


class _Windows(NamedTuple):
    """For each kernel column and then each kernel row the positions (from, to) inside the image; their share of all."""

    limits: Tensor
    inside: float


def _windows(sides: list[ConvolutionAxis]) -> _Windows | None:
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


def _padding(given: Any, kernel: list[int], dilation: tuple[int, int]) -> tuple[int, int]:
    if given == "valid":
        return 0, 0
    if given == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(each % 2 for each in total):
            raise Unsupported("with uneven padding")
        return total[0] // 2, total[1] // 2
    return pair(given)
