"""Parameters, buffers and constants that are read as values: positional tables, class tokens, masks of attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.axes import Arrangement, Axis, Side, merged
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, WHOLE
from lthfunc.sparse.lowerings.interface import Buffer, Param, Unsupported, claim
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.views import arranged_view

Leaf = Param | Buffer | Tensor
#: Of constants that are read as values.
_KINDS = (torch.float32, torch.int64, torch.bool)


def as_view(b: Builder, given: Any) -> View:
    """A value as it is, or a parameter, buffer or constant as one: its last dimension along channels, the others along
    places."""
    if isinstance(given, View):
        return given
    if not isinstance(given, (Param, Buffer, Tensor)):
        raise Unsupported("of anything but values, parameters and buffers")
    key: object = (given, given._version) if isinstance(given, Tensor) else given.name
    if key not in b.read_as_values:
        b.read_as_values[key] = _leaf(b, given)
    return b.read_as_values[key]


def folded(b: Builder, given: Any) -> Any:
    """A buffer that nothing changes as the constant that it is; anything else as it is."""
    is_fixed = isinstance(given, (Param, Buffer)) and given.name in b.fixed
    return b.fold(given.name) if is_fixed else given


def shape_of(b: Builder, leaf: Leaf) -> tuple[int, ...]:
    """Of a parameter, buffer or constant."""
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else b.shapes[leaf.name]


def _leaf(b: Builder, leaf: Leaf) -> View:
    shape = shape_of(b, leaf)
    channels, places = (shape or (1,))[-1], math.prod(shape[:-1])

    def addresses(buffer: TileBuffer, positions: Tensor) -> Tensor:
        return positions % channels * buffer.channel + positions // channels

    return as_leaf(leaf_value(b, leaf, TileBuffer(channels, 1, places), addresses), shape)


def as_leaf(value: Value, shape: tuple[int, ...]) -> View:
    """A value as a leaf of this shape: its last dimension along channels, the others along places."""
    places = Arrangement((merged([Axis(Side.COLUMN, value.buffer.width)]),))
    dimensions = places.reshaped(shape[:-1]).dimensions if len(shape) > 1 else ()
    last = (merged([Axis(Side.CHANNEL, value.buffer.channels)]),) if shape else ()
    return arranged_view(value, Arrangement((*dimensions, *last)))


def leaf_value(b: Builder, leaf: Leaf, room: TileBuffer, addresses: Callable[[TileBuffer, Tensor], Tensor]) -> Value:
    """A parameter, buffer or constant as a value that all examples share. addresses: where in the room, once its halo
    is known, numbers of these positions in the flattened leaf lie."""
    out = Value(room, needs=isinstance(leaf, Param) and claim(b, leaf))
    first, dtype = _numbers_of(b, leaf)
    out.dtype = dtype
    name = leaf.name if isinstance(leaf, Param) and leaf.name in b.weights else None
    count = math.prod(shape_of(b, leaf)) if name is None else b.leaves[name].size

    def positions() -> Tensor:
        return torch.arange(count) if name is None else b.positions_of(name)

    def emit(operation: Operation) -> None:
        b.hold(out.buffer)
        if not count:  # all pruned: what is never written is zero
            return
        b.emit(lambda: ("load_numbers", BY_TILES, count, {
            "out": out.buffer.first, "out_tile": out.buffer.tile, "first": first,
            "addresses": b.table(addresses(out.buffer, positions())), "constant": int(not isinstance(leaf, Param)),
        }))  # fmt: skip

        def gradient() -> None:
            grad = b.gradient_of(out)
            if name is not None:
                every = torch.arange(math.prod(shape_of(b, leaf)))
                b.whole_layer(name, lambda: ("largest_number_gradients", WHOLE, len(every), {
                    "grad": grad.first, "grad_tile": grad.tile, "addresses": b.table(addresses(grad, every)),
                }))  # fmt: skip
            b.emit(lambda: ("number_gradients", BY_ROWS, count, {
                "grad": grad.first, "grad_tile": grad.tile, "addresses": b.table(addresses(grad, positions())), "ny": 1,
                "grad_y": 0, "nx": 1, "grad_x": 0, "gradients": first, "accumulate": 0,
            }))  # fmt: skip
            b.release(out)

        if out.needs:
            b.backward.append(gradient)

    b.operations.append(Operation([], out, emit))
    return out


def _numbers_of(b: Builder, leaf: Leaf) -> tuple[int, torch.dtype]:
    """(where they lie: a parameter's among the values, others among the constants; their dtype in the network)."""
    if isinstance(leaf, Param):
        return b.leaves[leaf.name].first, torch.float32
    if isinstance(leaf, Buffer) and leaf.name in b.statistics:
        return b.statistics[leaf.name], torch.float32
    value = folded(b, leaf)
    if not isinstance(value, Tensor) or value.dtype not in _KINDS:
        raise Unsupported("of a buffer of whole numbers or truth values")
    return b.numbers(value.flatten().tolist()), value.dtype


def bias_gradients(b: Builder, first: int, grad: TileBuffer) -> None:
    """Of a number for each channel, which all its places share. first: where among the gradients they begin."""
    b.emit(lambda: ("number_gradients", BY_ROWS, grad.channels, {
        "grad": grad.first, "grad_tile": grad.tile, "addresses": b.table(torch.arange(grad.channels) * grad.channel),
        "ny": grad.height, "grad_y": grad.row, "nx": grad.width, "grad_x": 1, "gradients": first, "accumulate": 0,
    }))  # fmt: skip
