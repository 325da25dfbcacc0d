"""The larger or smaller of two values, and the largest or smallest of some dimensions of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.lowerings.broadcasting import combined, laid_out
from lthfunc.sparse.lowerings.columns import along_columns
from lthfunc.sparse.lowerings.interface import Lowering, aten, check_real, lowers
from lthfunc.sparse.lowerings.pointwise import pointwise
from lthfunc.sparse.lowerings.pooling import emit_maxima
from lthfunc.sparse.lowerings.reductions import one_place, reduced
from lthfunc.sparse.tile_buffers import TileBuffer


def of_two(kind: str) -> Lowering:
    """The lowering of `maximum` or `minimum` of values, parameters, buffers and numbers, broadcast to one shape."""

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
        # A tensor of one number has become that number.
        given = [torch.tensor(float(each)) if isinstance(each, (int, float)) else each for each in args[:2]]
        return combined(b, *laid_out(b, *given), kind)

    return lowering


for _operations, _kind in (
    ((aten.maximum.default, aten.max.other), "maximum"), ((aten.minimum.default, aten.min.other), "minimum"),
):  # fmt: skip
    lowers(*_operations, arranged=True)(of_two(_kind))


def over_dimensions(*, least: bool) -> Lowering:
    """The lowering of amax(x, dims, keepdim), or of amin, which share their gradient among all that are equal."""

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
        return _extremes(b, args, least=least, shared=True)

    return lowering


def over_dimension(*, least: bool) -> Lowering:
    """The lowering of max(x, dim, keepdim), or of min, whose gradient the first of them gets: values without places."""

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> list[View | None]:
        return [_extremes(b, [args[0], [args[1]], *args[2:]], least=least, shared=False), None]

    return lowering


lowers(aten.amax.default, arranged=True)(over_dimensions(least=False))
lowers(aten.amin.default, arranged=True)(over_dimensions(least=True))
lowers(aten.max.dim, arranged=True)(over_dimension(least=False))
lowers(aten.min.dim, arranged=True)(over_dimension(least=True))


def _extremes(b: Builder, args: Sequence[Any], *, least: bool, shared: bool) -> View:
    if not least:
        return _maxima(b, args, shared=shared)
    largest = _maxima(b, [pointwise(b, args[0], "scale", -1.0), *args[1:]], shared=shared)
    return pointwise(b, largest, "scale", -1.0)


def _maxima(b: Builder, args: Sequence[Any], *, shared: bool) -> View:
    """The largest of some dimensions. shared: whether all that are equal get their share of its gradient."""
    view, dims, keeps = reduced(b, args)
    check_real(view)
    of_images = view.arranged is None and not view.flat and dims == [2, 3]
    view = view if of_images else along_columns(b, view, *dims)
    channels, height, width = view.value.buffer.size
    rows = height if of_images else 1
    out = Value(TileBuffer(channels, height // rows, 1), view.value.needs)
    window = {
        "height": height, "width": width, "out_height": out.buffer.height, "out_width": 1, "kernel_y": rows,
        "kernel_x": width, "stride_y": rows, "stride_x": width, "pad_y": 0, "pad_x": 0, "dilation_y": 1,
        "dilation_x": 1,
    }  # fmt: skip

    def emit(operation: Operation) -> None:
        columns = {"height": height, "width": width, "window": rows, "shared": int(shared)}
        emit_maxima(b, operation, window, "maxima_gradient", columns)

    b.operations.append(Operation([view.value], out, emit))
    return one_place(view, out, dims, keeps=keeps)
