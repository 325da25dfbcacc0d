"""Zeros that a network makes itself: states that recurrent layers begin with, and steps before the first one."""

from __future__ import annotations

from typing import Any

from lthfunc.sparse.axes import Arrangement, Axis, Side, merged
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.capture import TRACED_BATCH
from lthfunc.sparse.lowerings.interface import Unsupported, aten, lowers
from lthfunc.sparse.tile_buffers import TileBuffer


class Zeros(Value):
    """A value of zeros, which the network makes itself."""


@lowers(aten.zeros.default, arranged=True)
def zeros(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """zeros(layers, batch, features), the state that recurrent layers begin with, or steps before the first one."""
    sizes = args[0]
    if len(sizes) != 3 or sizes[1] != TRACED_BATCH:
        raise Unsupported("of other dimensions than (layers, batch, features)")
    value = Zeros(TileBuffer(sizes[2], 1, sizes[0]), needs=False)

    def emit(operation: Operation) -> None:
        if not any(value in each.inputs for each in b.operations):
            return  # recurrent layers read no state before the first one
        b.hold(value.buffer)
        zero = b.numbers([0.0])
        b.fill(value.buffer, zero)

    b.operations.append(Operation([], value, emit))
    batch = (Axis(Side.EXAMPLE, sizes[1]),)
    layers, features = merged([Axis(Side.COLUMN, sizes[0])]), merged([Axis(Side.CHANNEL, sizes[2])])
    return View(value, arranged=Arrangement((layers, batch, features)))
