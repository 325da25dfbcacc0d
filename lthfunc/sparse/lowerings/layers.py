"""Convolutions and linear layers: lists of surviving weights, and the same lists transposed for the gradients."""

from __future__ import annotations

import math
from typing import Any

from lthfunc.sparse.axes import Side
from lthfunc.sparse.bands import bands_of
from lthfunc.sparse.builder import Builder, Operation, Value, View, Weights
from lthfunc.sparse.kernels.instructions import CONSTANTS
from lthfunc.sparse.lowerings.banded import InBands
from lthfunc.sparse.lowerings.convolution_lists import STRETCH, ConvolutionLists
from lthfunc.sparse.lowerings.interface import Param, Unsupported, argument, aten, check_real, lowers, pair
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.placing import has_tokens_layout, plain_view
from lthfunc.sparse.lowerings.product import Product, ProductLowering
from lthfunc.sparse.lowerings.rolling_product import RollingProduct
from lthfunc.sparse.lowerings.strides import NEAR_BYTES, ConvolutionAxis, flat
from lthfunc.sparse.lowerings.tokens import tokens_linear
from lthfunc.sparse.patterns import MatrixLists, matrix_lists
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, TileBuffer
from lthfunc.sparse.views import arranged_view

_TILES_AT_ONCE = CONSTANTS["TILES_AT_ONCE"]


@lowers(aten.linear.default, arranged=True)
def linear(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """``x @ weight.T + bias`` on flattened values, or on each token."""
    view, weight, bias = as_view(b, args[0]), args[1], argument(args, 2, None)
    check_real(view)
    shape = _weights(b, weight, bias).shape
    by_example = [axis.side for axis in view.arrangement.dimensions[0]] == [Side.EXAMPLE]
    sizes = view.arrangement.sizes
    if by_example and len(sizes) > 2 and math.prod(sizes[1:-1]) == 1:  # one token is no sequence
        flat_view = arranged_view(view.value, view.arrangement.reshaped([sizes[0], sizes[-1]]))
        found = linear(b, [flat_view, weight, bias], {})
        return arranged_view(found.value, found.arrangement.reshaped([*sizes[:-1], shape[0]]))
    if len(sizes) != 2 or not (view.flat or (by_example and not has_tokens_layout(view))):
        return tokens_linear(b, view, weight, bias)
    view = plain_view(b, view)
    if view.shape != (shape[1],):
        raise Unsupported("of other features than the weight has")
    across = min(b.tiles, _TILES_AT_ONCE)
    product = ProductLowering(b, weight, bias, across, positions=1)
    out = Value(TileBuffer(shape[0], 1, 1), needs=product.learns or view.value.needs)

    def emit(operation: Operation) -> None:
        source = operation.inputs[0].buffer

        def reading(read: TileBuffer, into: TileBuffer, *, transposed: bool) -> Product:
            def lists_of(survivors: int) -> MatrixLists:
                each = across * VECTOR_BYTES
                return matrix_lists(shape, read.addresses(), each, survivors, transposed=transposed)

            return Product(flat(read), flat(into), lists_of=lists_of)

        back = reading(out.buffer, source, transposed=True)
        product.emit(operation, reading(source, out.buffer, transposed=False), [back])

    b.operations.append(Operation([view.value], out, emit, accepts=product.accepts))
    return View(out, flat=True)


@lowers(aten.conv2d.default, aten.conv2d.padding)
def convolution(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """conv2d with stride, padding, dilation and groups."""
    stride, padding, dilation = argument(args, 3, 1), argument(args, 4, 0), pair(argument(args, 5, 1))
    padding = padding if isinstance(padding, str) else pair(padding)
    given = pair(stride), padding, dilation, int(argument(args, 6, 1))
    return convolved(b, args[0], args[1], argument(args, 2, None), *given)


def convolved(
    b: Builder, view: View, weight: Any, bias: Any, stride: tuple[int, int], padded: str | tuple[int, int],
    dilation: tuple[int, int], groups: int,
) -> View:  # fmt: skip
    """A convolution of an image. padded: along both sides, "same" or "valid". A kernel of one side has one row."""
    outs, ins, *sides = _weights(b, weight, bias).shape
    kernel = [*[1] * (2 - len(sides)), *sides]
    if view.flat:
        raise Unsupported("on flattened values")
    check_real(view)
    padding = _padding(padded, kernel, dilation)
    down, right = (
        ConvolutionAxis(size, k, s, p, d)
        for size, k, s, p, d in zip(view.shape[1:], kernel, stride, padding, dilation, strict=True)
    )
    if down.out < 1 or right.out < 1:
        raise Unsupported("whose kernel is larger than its padded input")
    # Two rows of outputs at once should find what they read in a near cache.
    near = ins * (kernel[0] + stride[0]) * (min(right.out, STRETCH) + kernel[1]) * VECTOR_BYTES <= NEAR_BYTES
    product = RollingProduct(b, weight, bias, across=0, positions=down.out * right.out, groups=groups, poolable=near)
    out = Value(TileBuffer(outs, down.out, right.out), needs=product.learns or view.value.needs)
    lists = ConvolutionLists((outs, ins, *kernel), (down, right), groups)
    bands, in_rows = None, False
    if b.local and product.by_lists and lists.keeps_size and not lists.windowed:
        bands = bands_of(max(ins * groups, outs), down.size, right.size, padding[0])
        in_rows = product.takes_rolling(view.value, lists) or bands is not None

    def emit(operation: Operation) -> None:
        source = read = operation.inputs[0].buffer
        source.halo = max(source.halo, *padding)
        in_bands = None if bands is None or operation.fused else InBands(bands, lists)
        if source.half and in_bands is None and not product.rolls(operation):
            read = product.widened(source)
        if operation.inputs[0].needs:
            out.buffer.halo = max(down.reach, right.reach)
        product.emit(operation, lists.of_image(read, out.buffer), lists.of_outputs(out.buffer, source), in_bands)

    b.operations.append(Operation(
        [view.value], out, emit, accepts=product.accepts, gradient_local=product.takes_local_gradient,
        reads_local=product.by_lists and stride == (1, 1), writes_half=product.by_lists and stride == (1, 1),
        gives_half=product.by_lists and stride == (1, 1) and not lists.windowed,
        shares_half=product.by_lists and not lists.windowed, in_rows=in_rows,
    ))  # fmt: skip
    return View(out)


def _weights(b: Builder, weight: Any, bias: Any) -> Weights:
    if not isinstance(weight, Param) or not (bias is None or isinstance(bias, Param)):
        raise Unsupported("with weights that are no parameters of their own")
    return b.weights[weight.name]


def _padding(given: Any, kernel: list[int], dilation: tuple[int, int]) -> tuple[int, int]:
    if given == "valid":
        return 0, 0
    if given == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(each % 2 for each in total):
            raise Unsupported("with uneven padding")
        return total[0] // 2, total[1] // 2
    return given[0], given[1]
