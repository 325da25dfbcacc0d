"""Parameters and buffers that are read as values: positional tables, class tokens, whatever is joined with values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.axes import Arrangement, Axis, Side, merged
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES
from lthfunc.sparse.lowerings.interface import Buffer, Param, Unsupported, claim
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.views import arranged_view


def as_view(b: Builder, given: Any) -> View:
    """A value as it is, or a parameter or buffer as one: its last dimension along channels, the others along places."""
    if isinstance(given, View):
        return given
    if not isinstance(given, (Param, Buffer)):
        raise Unsupported("of anything but values, parameters and buffers")
    if given.name not in b.read_as_values:
        b.read_as_values[given.name] = _leaf(b, given)
    return b.read_as_values[given.name]


def _leaf(b: Builder, leaf: Param | Buffer) -> View:
    shape = b.shapes[leaf.name]
    if not shape:
        raise Unsupported("of a parameter or buffer of no dimension")
    channels, places = shape[-1], math.prod(shape[:-1])

    def addresses(buffer: TileBuffer, positions: Tensor) -> Tensor:
        return positions % channels * buffer.channel + positions // channels

    out = leaf_value(b, leaf, TileBuffer(channels, 1, places), addresses)
    all_places = Arrangement((merged([Axis(Side.COLUMN, places)]),))
    dimensions = all_places.reshaped(shape[:-1]).dimensions if len(shape) > 1 else ()
    return arranged_view(out, Arrangement((*dimensions, merged([Axis(Side.CHANNEL, channels)]))))


def leaf_value(
    b: Builder, leaf: Param | Buffer, room: TileBuffer, addresses: Callable[[TileBuffer, Tensor], Tensor]
) -> Value:
    """A parameter or buffer as a value that all examples share. addresses: where in the room, once its halo is known,
    numbers of these positions in the flattened leaf lie."""
    if isinstance(leaf, Buffer) and leaf.name not in b.statistics:
        raise Unsupported("of a buffer of whole numbers or truth values")
    out = Value(room, needs=isinstance(leaf, Param) and claim(b, leaf))
    first = b.leaves[leaf.name].first if isinstance(leaf, Param) else b.statistics[leaf.name]
    known = b.weights[leaf.name].positions if leaf.name in b.weights else None
    positions = torch.arange(math.prod(b.shapes[leaf.name])) if known is None else known
    count = len(positions)

    def emit(operation: Operation) -> None:
        b.hold(out.buffer)
        if not count:  # all pruned: what is never written is zero
            return
        b.emit(lambda: ("load_numbers", BY_TILES, count, {
            "out": out.buffer.first, "out_tile": out.buffer.tile, "first": first,
            "addresses": b.table(addresses(out.buffer, positions)), "constant": int(isinstance(leaf, Buffer)),
        }))  # fmt: skip

        def gradient() -> None:
            grad = b.gradient_of(out)
            b.emit(lambda: ("number_gradients", BY_ROWS, count, {
                "grad": grad.first, "grad_tile": grad.tile, "addresses": b.table(addresses(grad, positions)), "ny": 1,
                "grad_y": 0, "nx": 1, "grad_x": 0, "gradients": first, "accumulate": 0,
            }))  # fmt: skip
            b.release(out)

        if out.needs:
            b.backward.append(gradient)

    b.operations.append(Operation([], out, emit))
    return out


def bias_gradients(b: Builder, first: int, grad: TileBuffer) -> None:
    """Of a number for each channel, which all its places share. first: where among the gradients they begin."""
    b.emit(lambda: ("number_gradients", BY_ROWS, grad.channels, {
        "grad": grad.first, "grad_tile": grad.tile, "addresses": b.table(torch.arange(grad.channels) * grad.channel),
        "ny": grad.height, "grad_y": grad.row, "nx": grad.width, "grad_x": 1, "gradients": first, "accumulate": 0,
    }))  # fmt: skip
