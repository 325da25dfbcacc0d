"""Transposed convolutions: what a convolution's input gradient computes, with gradients that its products are."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from lthfunc.sparse.builder import Builder, FusedStep, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES, SUMS
from lthfunc.sparse.lowerings.convolution_lists import ConvolutionLists
from lthfunc.sparse.lowerings.interface import (
    WHOLE_SUMS,
    Param,
    Unsupported,
    argument,
    aten,
    check_real,
    claim,
    gradient_at,
    lowers,
    pair,
    value_at,
)
from lthfunc.sparse.lowerings.parameters import bias_gradients
from lthfunc.sparse.lowerings.product import Product
from lthfunc.sparse.lowerings.product_columns import UNFUSED, sums_columns
from lthfunc.sparse.lowerings.strides import ConvolutionAxis, plain
from lthfunc.sparse.lowerings.whole_layers import gradients_of_rows
from lthfunc.sparse.patterns import lists_of
from lthfunc.sparse.tile_buffers import TileBuffer


@lowers(aten.conv_transpose2d.input)
def transposed_convolution(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """conv_transpose2d with stride, padding, output padding, groups and dilation."""
    stride, padding, extra = (pair(argument(args, 3 + k, default)) for k, default in enumerate((1, 0, 0)))
    dilation = pair(argument(args, 7, 1))
    given = stride, padding, extra, int(argument(args, 6, 1)), dilation
    return transposed(b, args[0], args[1], argument(args, 2, None), *given)


def transposed(
    b: Builder, view: View, weight: Any, bias: Any, stride: tuple[int, int], padding: tuple[int, int],
    output_padding: tuple[int, int], groups: int, dilation: tuple[int, int],
) -> View:  # fmt: skip
    """A transposed convolution of an image. A kernel of one side has one row."""
    if not isinstance(weight, Param) or not (bias is None or isinstance(bias, Param)):
        raise Unsupported("with weights that are no parameters of their own")
    if view.flat:
        raise Unsupported("on flattened values")
    check_real(view)
    ins, outs, *kernel = b.weights[weight.name].shape
    shape = ins, outs, *[1] * (2 - len(kernel)), *kernel
    learns = claim(b, weight, bias)
    sides = []
    for size, k, s, p, d, extra in zip(
        view.shape[1:], shape[2:], stride, padding, dilation, output_padding, strict=True
    ):
        # The convolution whose input gradient this is: from the larger image to the smaller one.
        side = ConvolutionAxis((size - 1) * s - 2 * p + d * (k - 1) + extra + 1, k, s, p, d)
        side.out = size
        sides.append(side)
    down, right = sides
    lists = ConvolutionLists(shape, (down, right), groups)
    out = Value(TileBuffer(shape[1] * groups, down.size, right.size), needs=learns or view.value.needs)
    product = _Transposed(b, weight.name, bias, lists)

    def emit(operation: Operation) -> None:
        source = operation.inputs[0].buffer
        source.halo = max(source.halo, down.reach, right.reach)
        if b.training:  # its gradient is read as an image is
            out.buffer.halo = max(padding)
        product.emit(operation)

    steps = {FusedStep.RECTIFY} if b.training else {FusedStep.RECTIFY, FusedStep.NORMALISE}
    b.operations.append(Operation([view.value], out, emit, accepts=frozenset(steps)))
    return View(out)


class _Transposed:
    """The instructions of a transposed convolution and of its gradients."""

    def __init__(self, b: Builder, weight: str, bias: Param | None, lists: ConvolutionLists) -> None:
        self._b, self._weight, self._lists = b, weight, lists
        self._bias_at, self._bias_gradient = value_at(b, bias), gradient_at(b, bias)

    def emit(self, operation: Operation) -> None:
        """The products of all phases; then those of the gradients."""
        b, out, (x,) = self._b, operation.out, operation.inputs
        b.hold(out.buffer)
        normalised = operation.fused.get(FusedStep.NORMALISE)

        def one_phase(phase: Product) -> Any:
            return self._products(phase, {
                "bias": self._bias_at, "relu": int(out.rectified), "accumulate": 0, "gate": -1,
                "saved": -1 if normalised is None else normalised.kept,
            })  # fmt: skip

        for phase in self._lists.of_outputs(x.buffer, out.buffer):
            b.emit(functools.partial(one_phase, phase))
        b.backward.append(lambda: self._gradients(x, out) if out.needs else None)

    def _gradients(self, x: Value, out: Value) -> None:
        b, grad = self._b, self._b.gradient_of(out)
        if self._weight not in b.frozen:
            self._weight_gradients(x.buffer, grad)
        if self._bias_gradient >= 0:
            bias_gradients(b, self._bias_gradient, grad)
        if x.needs:
            target = b.target(x)
            b.emit(lambda: self._products(self._lists.of_image(grad, target.buffer), {
                "bias": -1, "relu": 0, **target.columns,
            }))  # fmt: skip
        b.release(out)

    def _weight_gradients(self, x: TileBuffer, grad: TileBuffer) -> None:
        """Of the product that reads the gradient as an image: what it gives stands where its gradient would."""
        b, lists = self._b, self._lists

        def whole() -> Any:
            columns = lists.ins * math.prod(lists.kernel)
            firsts = torch.arange(lists.groups) * (lists.outs // lists.groups) * columns
            product = lists.of_image(grad, x)
            entries, _ = product.entries((firsts[:, None] + torch.arange(columns)).flatten())
            return gradients_of_rows(
                b, {**product.region_in.columns("in"), **plain(x).columns("grad"), "ny": x.height, "nx": x.width},
                entries.inputs, plain(x).rows(), columns=columns, groups=lists.groups,
            )  # fmt: skip

        b.whole_layer(self._weight, whole)

        def late() -> Any:
            product = self._lists.of_image(grad, x)
            entries, blocks = product.entries(b.positions_of(self._weight))
            lists = lists_of(entries, blocks)
            return "weight_gradients", SUMS, lists.rows, {
                **product.region_in.columns("in"), **plain(x).columns("grad"), "ny": x.height, "nx": x.width,
                "starts": b.table(lists.starts), "blocks": lists.blocks, "offsets": b.table(lists.offsets),
                "row_grad": b.table(plain(x).rows()), "gradients": b.leaves[self._weight].first, "bias": -1,
                "across": 0, **WHOLE_SUMS,
            }  # fmt: skip

        b.emit(late)

    def _products(self, product: Product, columns: dict[str, int]) -> Any:
        b = self._b
        region_in, region_out, *_ = product
        entries, blocks = product.entries(b.positions_of(self._weight))
        lists = lists_of(entries, blocks)
        limits = None if blocks is None else blocks.limits
        gate = columns["gate"]
        return "products", BY_TILES, lists.rows, {
            **region_in.columns("in"), **region_out.columns("out"), "ny": region_out.ny, "nx": region_out.nx,
            "starts": b.table(lists.starts), "blocks": lists.blocks, "offsets": b.table(lists.offsets),
            "which": -1 if lists.which is None else b.table(lists.which),
            "limits": -1 if limits is None else b.table(limits.flatten()),
            "kernel_y": 0 if blocks is None else blocks.kernel_y, "kernel_x": 0 if blocks is None else blocks.kernel_x,
            "row_out": b.table(region_out.rows()), "values": b.leaves[self._weight].first, "across": 0, **UNFUSED,
            **sums_columns(None), "out_half": 0, "streamed": 0, **columns,
            "gate": -1 if gate < 0 else region_out.shifted(gate),
        }  # fmt: skip
