"""Linear layers over the last dimension of tokens: 1 × 1 convolutions, since tokens are places as pixels are."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.sparse.axes import Axis, Side, merged
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.lowerings.interface import Param, Unsupported
from lthfunc.sparse.lowerings.placing import as_tokens
from lthfunc.sparse.lowerings.product import Product, ProductLowering
from lthfunc.sparse.lowerings.strides import TokensRegion
from lthfunc.sparse.patterns import Blocks, Entries, blocks_of
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, TileBuffer
from lthfunc.sparse.views import arranged_view


def tokens_linear(b: Builder, view: View, weight: Param, bias: Param | None) -> View:
    """``x @ weight.T + bias`` for each token."""
    outs, ins = b.weights[weight.name].shape
    if view.arrangement.sizes[-1] != ins:
        raise Unsupported("of other features than the weight has")
    view = as_tokens(b, view)
    _, height, width = view.value.buffer.size
    product = ProductLowering(b, weight, bias, across=0, positions=height * width)
    out = Value(TileBuffer(outs, height, width), needs=product.learns or view.value.needs)

    def emit(operation: Operation) -> None:
        source = operation.inputs[0].buffer

        def forward(positions: Tensor) -> tuple[Entries, Blocks | None]:
            rows, columns = positions // ins, positions % ins
            return Entries(outs, rows, columns * source.channel), _blocks(columns, ins, outs, near.nx)

        def backward(positions: Tensor) -> tuple[Entries, Blocks | None]:
            rows, columns = positions // ins, positions % ins
            which = torch.arange(len(positions))
            return Entries(ins, columns, rows * out.buffer.channel, which), _blocks(rows, outs, ins, back.nx)

        near, back = TokensRegion(source, ins).pieces, TokensRegion(source, outs).pieces
        product.emit(
            operation,
            Product(TokensRegion(source, ins), TokensRegion(out.buffer, ins), forward),
            [Product(TokensRegion(out.buffer, outs), TokensRegion(source, outs), backward)],
        )

    b.operations.append(Operation([view.value], out, emit, accepts=product.accepts))
    *places, _ = view.arrangement.dimensions
    last = merged([Axis(Side.CHANNEL, outs)])
    return arranged_view(out, view.arrangement._replace(dimensions=(*places, last)))


def _blocks(inputs: Tensor, count: int, rows: int, places: int) -> Blocks | None:
    return blocks_of(inputs, count, rows, places * VECTOR_BYTES)
