"""Sums and means over dimensions of a value, which are the gradient of a broadcast; theirs is a broadcast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lthfunc.sparse.axes import Dimension, Side
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.lowerings.interface import Unsupported, argument, aten, lowers
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.placing import has_tokens_layout, placed, plain_view
from lthfunc.sparse.lowerings.pointwise import pointwise
from lthfunc.sparse.lowerings.pooling import mean_of_image
from lthfunc.sparse.tile_buffers import TileBuffer, no_buffer
from lthfunc.sparse.views import arranged_view


@lowers(aten.mean.dim, arranged=True)
def mean(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """mean(dims, keepdim)."""
    view, dims, keeps = reduced(b, args)
    if view.arranged is None and not view.flat and dims == [2, 3]:
        return mean_of_image(b, plain_view(b, view), keeps=keeps)
    count = math.prod(view.arrangement.sizes[dim] for dim in dims)
    return pointwise(b, _summed(b, view, dims, keeps=keeps), "scale", 1 / count)


@lowers(aten.sum.dim_IntList, arranged=True)
def total(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """sum(dims, keepdim)."""
    view, dims, keeps = reduced(b, args)
    return _summed(b, view, dims, keeps=keeps)


def reduced(b: Builder, args: Sequence[Any]) -> tuple[View, list[int], bool]:
    """(the value, its dimensions to be reduced, whether they are kept with size one), of (x, dims, keepdim)."""
    view = as_view(b, args[0])
    given = argument(args, 1, None)
    dims = sorted(dim % len(view.arrangement.sizes) for dim in given or [])
    if not dims or any(axis.side is Side.EXAMPLE for dim in dims for axis in view.arrangement.dimensions[dim]):
        raise Unsupported("over the batch")
    return view, dims, bool(argument(args, 2, False))


def _summed(b: Builder, view: View, dims: Sequence[int], *, keeps: bool) -> View:
    """Sums over dimensions that are the channels, or else are made columns."""
    last = len(view.arrangement.sizes) - 1
    over_channels = list(dims) == [last] and has_tokens_layout(view)
    if not over_channels:
        sides = [Side.COLUMN if dim in dims else Side.CHANNEL for dim in range(last + 1)]
        view = placed(b, view, sides)
    channels, height, width = view.value.buffer.size
    room = TileBuffer(1, height, width) if over_channels else TileBuffer(channels, 1, 1)
    # Truths are counted, and whole numbers stay what they are.
    whole_numbers = view.value.dtype in (torch.bool, torch.int64)
    out = Value(room, view.value.needs, dtype=torch.int64 if whole_numbers else torch.float32)
    over = {"over_channels": channels if over_channels else 1, "over_height": 1,
            "over_width": 1 if over_channels else width}  # fmt: skip

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        b.hold(out.buffer)
        one = b.numbers([1.0])
        b.emit(lambda: ("combine_gradient", BY_TILES, out.buffer.channels, {
            **x.buffer.columns("grad"), **no_buffer("b"), "b_column": 0, **out.buffer.columns("into"),
            **out.buffer.sides, **over, "number": one, "accumulate": 0, "gate": -1,
        }))  # fmt: skip
        if out.needs:
            b.differentiate(x, out, lambda grad, target: lambda: ("copy", BY_TILES, channels, {
                **grad.columns_of_kind("in"), "in_channel": 0 if over_channels else grad.channel,
                "in_column": int(over_channels), **target.buffer.columns_of_kind("out"), "out_column": 1,
                "height": height, "width": width, **target.columns,
            }))  # fmt: skip

    b.operations.append(Operation([view.value], out, emit))
    return one_place(view, out, dims, keeps=keeps)


def one_place(view: View, out: Value, dims: Sequence[int], *, keeps: bool) -> View:
    """A value that is one place of some dimensions of a view, and otherwise lies as that does."""
    kept: list[Dimension] = [() if dim in dims else each for dim, each in enumerate(view.arrangement.dimensions)]
    dimensions = [each for dim, each in enumerate(kept) if keeps or dim not in dims]
    return arranged_view(out, view.arrangement._replace(dimensions=tuple(dimensions)))
